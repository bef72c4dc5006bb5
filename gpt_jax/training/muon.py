"""Muon (Jordan, 2024): the optimizer of the blocks' matrices.

It makes a matrix's averaged gradient orthogonal: the update moves equally far in all directions.
All other parameters are left to AdamW (optimizer.py).
"""

import math
from typing import Any

import jax
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from gpt_jax.config import OptimizerConfig


def muon(c: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The updates of matrices, at a rate that follows `schedule`, scaled to their own peak."""
    ratio = c.matrix_learning_rate / c.learning_rate
    return optax.chain(
        scale_by_muon(beta=c.matrix_momentum, weight_dimension_numbers=matrix_axes),
        optax.stateless(scaled_by_shape),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(lambda count: ratio * schedule(count)),
    )


def groups(params: Any) -> Any:
    """A tree like `params`: "matrix" for the kernels of the blocks, which Muon updates; "other"."""

    def group(path: tuple[Any, ...], _: Any) -> str:
        in_block = any(name == "h" or name.startswith("h_") for name in names_of(path))
        return "matrix" if in_block and "kernel" in names_of(path) else "other"

    return jax.tree_util.tree_map_with_path(group, params)


def matrix_axes(params: Any) -> Any:
    """Which axes of each kernel of a block are its inputs, and which its outputs.

    Heads and their width belong together: (C, H, D) maps C to H D, and (H, D, C) maps H D to C. The
    first axis of scanned kernels is neither, because each layer has a matrix of its own.
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers:
        every = tuple(range("h" in names_of(path), leaf.ndim))
        split = len(every) - 1 if "c_proj" in names_of(path) else 1
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


def names_of(path: tuple[Any, ...]) -> set[str]:
    """The names on a parameter's path, such as {"h_0", "attn", "q", "kernel"}."""
    return {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
