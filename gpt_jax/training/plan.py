"""What a training run would take: its sizes and operations, before anything is allocated.

The sizes of the state follow from its shapes. The rest is XLA's analysis of the compiled step.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from gpt_jax.config import Config, GPTConfig
from gpt_jax.devices import (
    BatchLayout,
    hardware,
    make_abstract_mesh,
    make_batch_layout,
    make_mesh,
    pinned_settings,
    start_devices,
)
from gpt_jax.training.communication import communication
from gpt_jax.training.memory import activation_bytes, batch_bytes, bytes_on_device, fits
from gpt_jax.training.run import model_vocabulary_size, resolve
from gpt_jax.training.state import TrainState, abstract_state
from gpt_jax.training.step import jit_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """The figures of a run."""

    config: Config  # Resolved, except for the corpus.
    mesh: dict[str, int]  # Devices along each axis.
    at_hand: bool  # Whether this machine has these devices.
    microbatches: int  # How many times a step runs the model.
    parameters: int  # How many numbers the model has.
    # Bytes of arrays that live as long as the run, over all devices that share them.
    parameter_bytes: int
    optimizer_bytes: int
    average_bytes: int
    state_bytes: int  # The whole state on each device.
    # The batch, activations and gradients on each device during a step. With the devices at hand,
    # XLA's upper bound; else a lower bound, see `activation_bytes`.
    step_bytes: int
    tokens: int  # Per update.
    flops: float  # Per update, by the formula in `flops_per_token`.
    # Per update, by XLA: its count for the program of one device, times microbatches and devices,
    # because it counts a loop's body once. 0 = unknown: the devices are not at hand, or the blocks
    # are scanned, which is another loop.
    counted_flops: float
    sent: dict[str, float]  # Bytes that each device sends in a step along each axis.

    @property
    def devices(self) -> int:
        """The number of devices that share a step."""
        return math.prod(self.mesh.values())


@pinned_settings()
def plan(config: Config) -> Plan:
    """Plans the training step. Allocates nothing.

    If this machine has the devices of the mesh, the step is compiled, unless their memory is too
    small for it. Otherwise all sizes of the mesh must be given; the step is planned from shapes
    alone, as for accelerators.

    The corpus is read only if the vocabulary depends on it: with a tokenizer of characters or byte
    pairs, and `model.vocab_size` not given.

    Raises:
      UserError: if the layout or the corpus cannot be used.
    """
    devices = start_devices(config.mesh, config.train.batch_size)
    sizes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    if config.mesh.data == -1 or math.prod(sizes) == len(devices):
        return _plan_at_hand(config, make_mesh(config.mesh, devices))
    config = config.with_values("model", vocab_size=model_vocabulary_size(config))
    if config.model.matmul_dtype == "auto":
        config = config.with_values("model", matmul_dtype="bfloat16")
    hardware.check_attention(config.model, None)
    layout = make_batch_layout(config, make_abstract_mesh(config.mesh))
    return _plan(config, layout, abstract_state(config, layout.sharding.mesh))


def _plan_at_hand(config: Config, mesh: Mesh) -> Plan:
    layout = make_batch_layout(config, mesh)
    config = resolve(config, config.data.corpus, model_vocabulary_size(config), layout)
    abstract = abstract_state(config, mesh)
    if not fits(config, abstract, layout):
        return _plan(config, layout, abstract)
    shape = (layout.microbatches, layout.rows, config.model.block_size + 1)
    batch_AMW = jax.ShapeDtypeStruct(shape, "int32", sharding=layout.sharding)
    # Any: the declared type is a plain function, without `lower`.
    step: Any = jit_train_step(config, abstract, layout)
    compiled = step.lower(abstract, batch_AMW).compile()
    counted = 0 if config.model.scan_layers else compiled.cost_analysis()["flops"]
    return dataclasses.replace(
        _plan(config, layout, abstract),
        at_hand=True,
        step_bytes=compiled.memory_analysis().temp_size_in_bytes
        + batch_bytes(config.model, layout),
        counted_flops=counted * layout.microbatches * mesh.size,
    )


def _plan(config: Config, layout: BatchLayout, abstract: TrainState) -> Plan:
    """The plan from shapes alone."""
    tokens = config.train.batch_size * config.model.block_size
    parameters, mesh = count_parameters(abstract.params), layout.sharding.mesh.shape
    gradients = bytes_on_device(abstract.params) * (2 if layout.microbatches > 1 else 1)
    activations = activation_bytes(config.model, layout.rows_per_device, mesh["tensor"])
    return Plan(
        config=config,
        mesh=dict(mesh),
        at_hand=False,
        microbatches=layout.microbatches,
        parameters=parameters,
        parameter_bytes=_bytes(abstract.params),
        optimizer_bytes=_bytes(abstract.opt_state),
        average_bytes=_bytes(abstract.average),
        state_bytes=bytes_on_device(abstract),
        step_bytes=gradients + activations + batch_bytes(config.model, layout),
        tokens=tokens,
        flops=tokens * flops_per_token(config.model, parameters),
        counted_flops=0,
        sent=communication(abstract, layout, config),
    )


def flops_per_token(config: GPTConfig, parameters: int) -> int:
    """Floating-point operations of a token's forward and backward pass: 6 N + 12 L C T.

    The first term has six for each of the N parameters that multiply, so it leaves out tables that
    are only looked up. The second is attention's scores and sums over a whole window of T, in L
    blocks of width C; causal attention needs half of it. As in Kaplan et al. (2020), section 2.1,
    and PaLM (Chowdhery et al., 2022), appendix B.
    """
    looked_up = 0 if config.tie_embeddings else config.vocab_size
    looked_up += config.block_size if config.position == "learned" else 0
    multiplying = parameters - looked_up * config.n_embd
    return 6 * multiplying + 12 * config.n_layer * config.n_embd * config.block_size


def count_parameters(params: Any) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
