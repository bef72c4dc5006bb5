"""Learning rate schedule, weight decay, parameter groups, the optax chain: gradients -> updates."""

import math
from typing import Any

import jax
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from gpt_jax.config import Config, OptimizerConfig

DECAYED = {"kernel", "embedding"}  # Names of the parameters that weight decay applies to.


def make_schedule(config: Config) -> optax.Schedule:
    """The learning rate of each update, as a function of the number of updates before it.

    Update i of the warm-up, counted from 1, uses i / warmup_steps of the peak, so no update is
    wasted at a rate of 0. The schedule after it reaches the minimum at `train.steps`.
    """
    c = config.optimizer
    after = _after_warmup(c, max(config.train.steps - c.warmup_steps, 1), config.train.steps)
    if c.warmup_steps < 2:
        return after
    first = c.learning_rate / c.warmup_steps
    warmup = optax.linear_schedule(first, c.learning_rate, c.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [c.warmup_steps])


def _after_warmup(c: OptimizerConfig, left: int, steps: int) -> optax.Schedule:
    """The schedule of the `left` steps after the warm-up, in a run of `steps`."""
    peak, end = c.learning_rate, c.min_learning_rate
    if c.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, left, end / peak)
    if c.schedule == "linear":
        return optax.linear_schedule(peak, end, left)
    if c.schedule == "stable":
        decay = min(left, max(1, round(c.decay_fraction * steps)))
        return optax.linear_schedule(peak, end, decay, transition_begin=left - decay)
    return optax.constant_schedule(peak)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clips the gradient by its global norm, then updates at the scheduled learning rate."""
    c = config.optimizer
    clip = optax.clip_by_global_norm(c.grad_clip) if c.grad_clip else optax.identity()
    return optax.chain(clip, _muon(config) if c.name == "muon" else _adam(config))


def _adam(config: Config) -> optax.GradientTransformation:
    c, schedule = config.optimizer, make_schedule(config)
    if c.name == "adam":
        return optax.adam(schedule, c.b1, c.b2)
    return optax.adamw(schedule, c.b1, c.b2, weight_decay=c.weight_decay, mask=is_decayed)


def _muon(config: Config) -> optax.GradientTransformation:
    """Muon (Jordan, 2024) for the matrices of the blocks, AdamW for all other parameters.

    Muon makes a matrix's averaged gradient orthogonal: it moves equally far in all directions.
    """
    c, schedule = config.optimizer, make_schedule(config)
    ratio = c.matrix_learning_rate / c.learning_rate
    matrices = optax.chain(
        scale_by_muon(beta=c.matrix_momentum, weight_dimension_numbers=matrix_axes),
        optax.stateless(scaled_by_shape),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(lambda count: ratio * schedule(count)),
    )
    return optax.partition({"matrix": matrices, "other": _adam(config)}, groups)


def is_decayed(params: Any) -> Any:
    """A tree like `params`: True for kernels and embeddings, False for biases and scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(_names(path) & DECAYED), params)


def groups(params: Any) -> Any:
    """A tree like `params`: "matrix" for the kernels of the blocks, which Muon updates; "other"."""

    def group(path: tuple[Any, ...], _: Any) -> str:
        in_block = any(name == "h" or name.startswith("h_") for name in _names(path))
        return "matrix" if in_block and "kernel" in _names(path) else "other"

    return jax.tree_util.tree_map_with_path(group, params)


def matrix_axes(params: Any) -> Any:
    """Which axes of each kernel of a block are its inputs, and which its outputs.

    Heads and their width belong together: (C, H, D) maps C to H D, and (H, D, C) maps H D to C. The
    first axis of scanned kernels is neither, because each layer has a matrix of its own.
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers:
        every = tuple(range("h" in _names(path), leaf.ndim))
        split = len(every) - 1 if "c_proj" in _names(path) else 1
        return MuonDimensionNumbers(every[:split], every[split:])

    return jax.tree_util.tree_map_with_path(axes, params)


def scaled_by_shape(updates: Any, params: Any = None) -> Any:
    """Scales up the update of a matrix with more outputs than inputs, by the root of their ratio.

    Jordan's factor: an orthogonal update of any shape then moves the outputs equally far.
    """

    def scaled(update: Array, axes: MuonDimensionNumbers) -> Array:
        inputs, outputs = (math.prod(update.shape[axis] for axis in group) for group in axes)
        return update * max(1.0, outputs / inputs) ** 0.5

    return jax.tree.map(scaled, updates, matrix_axes(updates))


def _names(path: tuple[Any, ...]) -> set[str]:
    """The names on a parameter's path, such as {"h_0", "attn", "q", "kernel"}."""
    return {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
