"""The memory that arrays take, by formulas, and whether this machine has it.

The formulas are lower bounds, so what fits is never refused. What they let pass may still be too
large: JAX then fails by itself, and the scripts say so in a sentence.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
from jax.sharding import Mesh

from gpt_jax.config import Config, GPTConfig
from gpt_jax.devices import BatchLayout, hardware
from gpt_jax.errors import UserError
from gpt_jax.model import query_blocks
from gpt_jax.training.state import TrainState

STATE, PARAMETERS = "the model and its optimizer", "the model"
TOKENS, ACTIVATIONS, CACHE = "the tokens of a batch", "activations", "keys and values"
SMALLER = "choose a smaller model (n_embd, n_inner, n_layer, vocab_size or block_size)"
REMEDIES = {
    STATE: SMALLER,
    PARAMETERS: SMALLER,
    TOKENS: "lower train.batch_size",
    ACTIVATIONS: "lower train.microbatch_size, or model.block_size in a new run",
    CACHE: "draw fewer samples at a time, or use a model with a smaller block_size",
}


def check_run(config: Config, abstract: TrainState, layout: BatchLayout, trains: bool) -> None:
    """Checks that this process's devices can hold a run's arrays.

    Args:
      trains: whether the run trains, or only evaluates parameters.

    Raises:
      UserError: with the memory that is needed and the memory that there is.
    """
    devices = cast(Mesh, layout.sharding.mesh).local_devices
    needs = _run_needs(config, abstract, layout, trains)
    check("training" if trains else "evaluation", devices, needs)


def fits(config: Config, abstract: TrainState, layout: BatchLayout) -> bool:
    """Whether `check_run` lets a run train here."""
    try:
        check_run(config, abstract, layout, True)
    except UserError:
        return False
    return True


def _run_needs(
    config: Config, abstract: TrainState, layout: BatchLayout, trains: bool
) -> dict[str, int]:
    """The least memory on each device, in bytes, by what it is for."""
    params = bytes_on_device(abstract.evaluated)
    needs = {TOKENS: batch_bytes(config.model, layout)}
    if not trains:
        return needs | {PARAMETERS: params}
    tensor = layout.sharding.mesh.shape["tensor"]
    least = least_activation_bytes(config.model, layout.rows_per_device, tensor)
    return needs | {STATE: bytes_on_device(abstract) + params, ACTIVATIONS: least}


def check_windows(config: GPTConfig, rows: int, devices: Sequence[jax.Device]) -> None:
    """Raises UserError if each of the devices cannot hold what it computes of `rows` windows."""
    check("evaluation", devices, {ACTIVATIONS: least_activation_bytes(config, rows)})


def check_sampling(config: GPTConfig, num_samples: int, devices: Sequence[jax.Device]) -> None:
    """Raises UserError if the devices cannot hold the KV cache of so many samples."""
    rows = -(-num_samples // len(devices))
    width = config.kv_heads * config.head_dim
    width += config.n_embd if config.short_convolution else 0
    check("sampling", devices, {CACHE: 4 * 2 * config.n_layer * rows * config.block_size * width})


def check(action: str, devices: Sequence[jax.Device], needs: Mapping[str, int]) -> None:
    """Compares bytes on each device, by what they are for, with the memory of this machine.

    Args:
      action: what needs them.
      needs: its keys are those of REMEDIES.

    Raises:
      UserError: if they are more.
    """
    on_cpu = devices[0].platform == "cpu"
    shared = len(devices) if on_cpu else 1  # The devices of a CPU share its memory.
    needed, found = shared * sum(needs.values()), hardware.memory_bytes(devices[0])
    if needed <= found:
        return
    most = max(needs, key=lambda part: needs[part])
    raise UserError(
        f"{action} needs at least {_gigabytes(needed)} of memory, "
        f"{_gigabytes(shared * needs[most])} of it for {most}, but "
        f"{'this machine' if on_cpu else 'each device'} has {_gigabytes(found)}: {REMEDIES[most]}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def batch_bytes(config: GPTConfig, layout: BatchLayout) -> int:
    """Bytes of a device's share of a batch: int32 ids, T + 1 for each window."""
    return 4 * layout.microbatches * layout.rows_per_device * (config.block_size + 1)


def activation_bytes(config: GPTConfig, rows: int, tensor: int = 1) -> int:
    """Bytes that the forward pass of `rows` windows must keep for the backward pass, per device.

    The count follows Korthikanti et al. (2022), section 4, who count another arrangement. Factors
    of products have s bytes, other numbers 4. A block keeps, per token:

        8 C         the stream before both norms
        6 s C       the factors of width C
        (4 + s) F   the MLP before and after its activation
        s H T       attention's weights, less the part above the diagonal; none with cuDNN

    The logits and their gradient add 8 V per token. With `remat`, one block at a time is kept, and
    the stream before each of the others. `tensor` devices share what has heads, the MLP's width or
    the vocabulary. XLA needs more: on a CPU 1.2 to 1.8 times as much.
    """
    c, size = config, 4 if config.matmul_dtype == "float32" else 2
    visible = (1 + 1 / query_blocks(c.block_size)) / 2
    inner = (4 + size) * (c.n_inner or 4 * c.n_embd)
    weights = size * c.n_head * c.block_size * visible if c.attention == "xla" else 0
    sharded = inner + 4 * size * c.n_embd + weights
    block = (8 + 2 * size) * c.n_embd + sharded / tensor
    blocks = block + (c.n_layer - 1) * (4 * c.n_embd if c.remat else block)
    token = blocks + 8 * c.vocab_size / tensor
    return int(rows * c.block_size * token)


def least_activation_bytes(config: GPTConfig, rows: int, tensor: int = 1) -> int:
    """A quarter of the activations of one block: less than any pass over `rows` windows needs.

    A forward pass has one of four blocks of queries at a time, and XLA recomputes some arrays where
    memory is short.
    """
    return activation_bytes(dataclasses.replace(config, n_layer=1), rows, tensor) // 4


def bytes_on_device(tree: Any) -> int:
    """Bytes on each device of a tree of arrays with shardings, such as `abstract_state`'s."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
