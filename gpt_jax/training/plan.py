"""What a training run would take: sizes and operations, told before anything is allocated.

Sizes of the state are those of its shapes; the rest is what XLA says of the compiled step.
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
    start_devices,
)
from gpt_jax.model import MOST_QUERY_BLOCKS, QUERY_BLOCK
from gpt_jax.training.communication import communication
from gpt_jax.training.run import model_vocabulary_size, resolve
from gpt_jax.training.state import TrainState, abstract_state
from gpt_jax.training.step import jit_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures of a run.

    Attributes:
      config: resolved, but for the corpus.
      mesh: devices along each axis; at_hand: whether they are here.
      microbatches: how often a step runs over its model.
      parameters: how many numbers; parameter_bytes, optimizer_bytes, average_bytes: of arrays that
        live as long as the run, which its devices share as far as the mesh lets them.
      state_bytes: of these and the rest of the state, on each device.
      step_bytes: on each device, of what lives within a step, activations and gradients: where
        devices are at hand, at most, by XLA; else at least, see `activation_bytes`.
      tokens: that an update learns from.
      flops: of an update, by the formula in `flops_per_token`.
      counted_flops: of an update, by XLA: what it counts in the program of one device, where the
        loop over microbatches counts once, times microbatches and devices. 0 = not known, where
        none is at hand, or where blocks are scanned: another loop of which XLA counts one turn.
      sent: bytes that each device sends in a step along each axis, see communication.py.
    """

    config: Config
    mesh: dict[str, int]
    at_hand: bool
    microbatches: int
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    average_bytes: int
    state_bytes: int
    step_bytes: int
    tokens: int
    flops: float
    counted_flops: float
    sent: dict[str, float]

    @property
    def devices(self) -> int:
        """How many share a step."""
        return math.prod(self.mesh.values())


def plan(config: Config) -> Plan:
    """Lays out the training step, and allocates nothing.

    Where the mesh is one of the devices at hand, the step is compiled. A mesh of others, with all
    its sizes given, is planned from shapes alone, as of accelerators.

    The corpus is read only where its characters or byte pairs make the vocabulary, and
    `model.vocab_size` does not give it.

    Raises:
      UserError: for a layout or a corpus that cannot serve.
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
    compiled = _compiled_step(config, abstract, layout)
    counted = 0 if config.model.scan_layers else compiled.cost_analysis()["flops"]
    return dataclasses.replace(
        _plan(config, layout, abstract),
        at_hand=True,
        step_bytes=compiled.memory_analysis().temp_size_in_bytes,
        counted_flops=counted * layout.microbatches * mesh.size,
    )


def _plan(config: Config, layout: BatchLayout, abstract: TrainState) -> Plan:
    """From shapes alone."""
    tokens = config.train.batch_size * config.model.block_size
    parameters = count_parameters(abstract.params)
    mesh = layout.sharding.mesh.shape
    gradients = _bytes_on_device(abstract.params) * (2 if layout.microbatches > 1 else 1)
    return Plan(
        config=config,
        mesh=dict(mesh),
        at_hand=False,
        microbatches=layout.microbatches,
        parameters=parameters,
        parameter_bytes=_bytes(abstract.params),
        optimizer_bytes=_bytes(abstract.opt_state),
        average_bytes=_bytes(abstract.average),
        state_bytes=_bytes_on_device(abstract),
        step_bytes=gradients
        + activation_bytes(config.model, layout.rows_per_device, mesh["tensor"]),
        tokens=tokens,
        flops=tokens * flops_per_token(config.model, parameters),
        counted_flops=0,
        sent=communication(abstract, layout, config.model),
    )


def _compiled_step(config: Config, abstract: TrainState, layout: BatchLayout) -> Any:
    """The step's program, as training compiles it, from shapes alone."""
    shape = (layout.microbatches, layout.rows, config.model.block_size + 1)
    batch_AMW = jax.ShapeDtypeStruct(shape, "int32", sharding=layout.sharding)
    # Of a jitted function; its type says only that it can be called.
    step: Any = jit_train_step(config, abstract, layout)
    return step.lower(abstract, batch_AMW).compile()


def activation_bytes(config: GPTConfig, rows: int, tensor: int = 1) -> int:
    """What the forward pass of some windows must keep for the backward one, on each device.

    By counting (as Korthikanti et al., 2022, section 4, do for another arrangement), in numbers of
    s bytes, the factors of products, and of four: of each token in each block, the stream before
    both norms (8 C), the factors of width C (6 s C), the MLP's before and after its activation
    ((4 + s) F), attention's weights (s H T, less what lies behind the diagonal); and the logits
    with their gradient (8 V). cuDNN's attention keeps no weights. With `remat` there is that of one
    block at a time, and the stream before the others. `tensor` devices share what has heads, the
    MLP's width or the vocabulary. XLA takes more: on a CPU 1.2 to 1.8 times as much.
    """
    c, size = config, 4 if config.matmul_dtype == "float32" else 2
    visible = (1 + 1 / max(1, min(MOST_QUERY_BLOCKS, c.block_size // QUERY_BLOCK))) / 2
    inner = (4 + size) * (c.n_inner or 4 * c.n_embd)
    weights = size * c.n_head * c.block_size * visible if c.attention == "xla" else 0
    shared = inner + 4 * size * c.n_embd + weights
    block = (8 + 2 * size) * c.n_embd + shared / tensor
    blocks = block + (c.n_layer - 1) * (4 * c.n_embd if c.remat else block)
    token = blocks + 8 * c.vocab_size / tensor
    return int(rows * c.block_size * token)


def flops_per_token(config: GPTConfig, parameters: int) -> int:
    """Floating-point operations of a token's forward and backward pass: 6 N + 12 L C T.

    Six for each of the N parameters that multiply (all but the tables that are only looked up), and
    those of attention's scores and sums over a whole window of T, of L blocks of width C: as in
    Kaplan et al. (2020), section 2.1, and PaLM (Chowdhery et al., 2022), appendix B. Causal
    attention needs half of the second part.
    """
    looked_up = 0 if config.tie_embeddings else config.vocab_size
    looked_up += config.block_size if config.position == "learned" else 0
    multiplying = parameters - looked_up * config.n_embd
    return 6 * multiplying + 12 * config.n_layer * config.n_embd * config.block_size


def count_parameters(params: Any) -> int:
    """How many numbers a tree of arrays has."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes_on_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
