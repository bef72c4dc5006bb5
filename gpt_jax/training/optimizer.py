"""Learning-rate schedules, groups of parameters, and the optax chain: gradients -> updates."""

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from gpt_jax.config import Config, OptimizerConfig

DECAYED = ("kernel", "embedding")


def make_schedule(config: Config) -> optax.Schedule:
    """The learning rate of each update, as a function of the updates already made.

    Update i of the warm-up (counted from 1) uses i / warmup_steps of the peak, so none is wasted at
    a rate of 0. What follows reaches the minimum at `train.steps`.
    """
    c = config.optimizer
    after = _after_warmup(c, max(config.train.steps - c.warmup_steps, 1), config.train.steps)
    if c.warmup_steps < 2:
        return after
    first = c.learning_rate / c.warmup_steps
    warmup = optax.linear_schedule(first, c.learning_rate, c.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [c.warmup_steps])


def _after_warmup(c: OptimizerConfig, left: int, steps: int) -> optax.Schedule:
    """The schedule of the `left` steps after the warm-up, of `steps` in all."""
    peak, end = c.learning_rate, c.min_learning_rate
    if c.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, left, end / peak)
    if c.schedule == "linear":
        return optax.linear_schedule(peak, end, left)
    if c.schedule == "stable":
        decay = min(left, max(1, round(c.decay_fraction * steps)))
        return optax.linear_schedule(peak, end, decay, transition_begin=left - decay)
    return optax.constant_schedule(peak)


def is_decayed(params: Any) -> Any:
    """The tree of `params` with True at matrices and tables, False at biases and scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(_keys(path) & {*DECAYED}), params
    )


def is_block_matrix(params: Any) -> Any:
    """The tree of `params` with True at the matrices of the blocks: what Muon is for."""

    def by_name(path: tuple[Any, ...], leaf: Any) -> bool:
        keys = _keys(path)
        return "kernel" in keys and any(key == "h" or key.startswith("h_") for key in keys)

    return jax.tree_util.tree_map_with_path(by_name, params)


def _keys(path: tuple[Any, ...]) -> set[str]:
    return {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}


def matrix_axes(params: Any) -> Any:
    """Which axes of each matrix of a block are its rows and its columns; heads belong to a width.

    (C, H, D) of queries, keys and values is a matrix from C to H D, (H, D, C) one from H D to C. Of
    stacked blocks the first axis is neither: every block has a matrix of its own.
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers:
        every = tuple(range("h" in _keys(path), leaf.ndim))
        split = len(every) - 1 if "c_proj" in _keys(path) else 1
        return MuonDimensionNumbers(every[:split], every[split:])

    return jax.tree_util.tree_map_with_path(axes, params)


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
    """Muon (Jordan, 2024) for the matrices of the blocks, AdamW for all else.

    Muon makes the mean gradient of a matrix orthogonal: all its directions move equally far.
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


def groups(params: Any) -> Any:
    """The tree of `params` with "matrix" at what is Muon's, and "other"."""
    return jax.tree.map(lambda yes: "matrix" if yes else "other", is_block_matrix(params))


def scaled_by_shape(updates: Any, params: Any = None) -> Any:
    """Updates of matrices with more outputs than inputs made larger, by the root of the ratio.

    Jordan's factor: an orthogonal matrix of any shape then moves its outputs as far.
    """

    def scaled(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
        inputs, outputs = (math.prod(update.shape[axis] for axis in group) for group in axes)
        return update * max(1.0, outputs / inputs) ** 0.5

    return jax.tree.map(scaled, updates, matrix_axes(updates))
