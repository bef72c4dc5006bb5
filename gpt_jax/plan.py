"""What a training run would take: sizes and operations, told before anything is allocated.

Sizes of the state are those of its shapes; the rest is what XLA says of the compiled step.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from gpt_jax import sharding
from gpt_jax.config import Config, GPTConfig
from gpt_jax.run import resolve, vocabulary_size
from gpt_jax.train_step import abstract_state, jit_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures of a run; bytes of the state are of the whole, its devices share what they can.

    Attributes:
      config: resolved, but for the corpus.
      devices, microbatches: how a step is shared, and how often it runs over its model.
      parameters: how many numbers; parameter_bytes, optimizer_bytes, average_bytes: of arrays that
        live as long as the run.
      step_bytes: on each device, at most, of what lives within a step: activations, gradients.
      tokens: that an update learns from.
      flops: of an update, by the formula in `flops_per_token`.
      counted_flops: of an update, by XLA: what it counts in the program of one device, where the
        loop over microbatches counts once, times microbatches and devices. 0 = not known, where
        blocks are scanned: that is another loop of which XLA counts one turn.
    """

    config: Config
    devices: int
    microbatches: int
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    average_bytes: int
    step_bytes: int
    tokens: int
    flops: float
    counted_flops: float


def plan(config: Config) -> Plan:
    """Lays out and compiles the training step, and allocates nothing.

    The corpus is read only where its characters or byte pairs make the vocabulary, and
    `model.vocab_size` does not give it.

    Raises:
      UserError: for a layout or a corpus that cannot serve.
    """
    devices = sharding.start_devices(config.mesh, config.train.batch_size)
    mesh = sharding.make_mesh(config.mesh, devices)
    layout = sharding.make_batch_layout(config, mesh)
    config = resolve(config, config.data.corpus, vocabulary_size(config), layout)
    abstract = abstract_state(config, mesh)
    compiled = _compiled_step(config, mesh, layout)
    tokens = config.train.batch_size * config.model.block_size
    parameters = _count(abstract.params)
    counted = 0 if config.model.scan_layers else compiled.cost_analysis()["flops"]
    return Plan(
        config=config,
        devices=mesh.size,
        microbatches=layout.microbatches,
        parameters=parameters,
        parameter_bytes=_bytes(abstract.params),
        optimizer_bytes=_bytes(abstract.opt_state),
        average_bytes=_bytes(abstract.average),
        step_bytes=compiled.memory_analysis().temp_size_in_bytes,
        tokens=tokens,
        flops=tokens * flops_per_token(config.model, parameters),
        counted_flops=counted * layout.microbatches * mesh.size,
    )


def _compiled_step(config: Config, mesh: Mesh, layout: sharding.BatchLayout) -> Any:
    """The step's program, as training compiles it, from shapes alone."""
    abstract = abstract_state(config, mesh)
    shape = (layout.microbatches, layout.rows, config.model.block_size + 1)
    batch_AMW = jax.ShapeDtypeStruct(shape, "int32", sharding=layout.sharding)
    # Of a jitted function; its type says only that it can be called.
    step: Any = jit_train_step(config, abstract, layout)
    return step.lower(abstract, batch_AMW).compile()


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


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
