"""Muon (Jordan, 2024): the optimizer of the blocks' matrices.

It makes a matrix's averaged gradient orthogonal: the update moves equally far in all directions.
All other parameters are left to AdamW (optimizer.py).

Shapes: K matrices of M rows and N columns, M <= N.
"""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from gpt_jax.config import OptimizerConfig

# Jordan's polynomial: it moves all singular values close to 1 in few iterations.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def muon(
    c: OptimizerConfig, schedule: optax.Schedule, mesh: Mesh | None
) -> optax.GradientTransformation:
    """The updates of matrices, at a rate that follows `schedule`, scaled to their own peak.

    `mesh`: its devices share the iterations if each has all parameters. optax would make every
    device iterate for every matrix: configs/speedrun.py on 2 cores took 177 ms a step, not 138.
    """
    ratio = c.matrix_learning_rate / c.learning_rate
    is_shared = mesh is not None and 1 < mesh.size == mesh.shape["data"]
    momentum = scale_by_muon(
        ns_steps=0 if is_shared else ITERATIONS,
        beta=c.matrix_momentum,
        weight_dimension_numbers=matrix_axes,
    )

    def finished(updates: Any, params: Any) -> Any:
        return scaled_by_shape(orthogonalized(updates, cast(Mesh, mesh)) if is_shared else updates)

    return optax.chain(
        momentum,
        optax.stateless(finished),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(lambda count: ratio * schedule(count)),
    )


def orthogonalized(updates: Any, mesh: Mesh) -> Any:
    """Every matrix U S V^T of norm 1 becomes about U V^T.

    Matrices of one shape are a batch, of which each device of `mesh` takes a part.
    """
    leaves, tree = jax.tree.flatten(updates)
    axes = jax.tree.leaves(matrix_axes(updates), is_leaf=_is_axes)
    wide = [_wide(leaf, numbers) for leaf, numbers in zip(leaves, axes, strict=True)]
    for shape in sorted({x_KMN.shape[1:] for x_KMN in wide}):
        chosen = [i for i, x_KMN in enumerate(wide) if x_KMN.shape[1:] == shape]
        together = newton_schulz(jnp.concatenate([wide[i] for i in chosen]), mesh)
        ends = np.cumsum([len(wide[i]) for i in chosen])[:-1]
        for i, x_KMN in zip(chosen, jnp.split(together, ends), strict=True):
            wide[i] = x_KMN
    return jax.tree.unflatten(tree, map(_as_before, wide, leaves, axes))


def newton_schulz(x_KMN: Array, mesh: Mesh) -> Array:
    """Five times x <- a x + (b A + c A A) x with A = x x^T; devices share the K matrices."""
    (a, b, c), lay = COEFFICIENTS, lax.with_sharding_constraint
    x_KMN = lay(x_KMN, NamedSharding(mesh, PartitionSpec("data")))
    for _ in range(ITERATIONS):
        square_KMM = x_KMN @ x_KMN.mT
        x_KMN = a * x_KMN + (b * square_KMM + c * square_KMM @ square_KMM) @ x_KMN
    return lay(x_KMN, NamedSharding(mesh, PartitionSpec()))


def _is_axes(node: Any) -> bool:
    return isinstance(node, MuonDimensionNumbers)


def _sizes(x: Array, axes: MuonDimensionNumbers) -> tuple[int, int]:
    """The inputs and the outputs of a kernel."""
    inputs, outputs = (math.prod(x.shape[axis] for axis in group) for group in axes)
    return inputs, outputs


def _wide(x: Array, axes: MuonDimensionNumbers) -> Array:
    """The matrices of a kernel, (K, M, N)."""
    inputs, outputs = _sizes(x, axes)
    matrices = x.reshape(-1, inputs, outputs)
    return matrices.mT if inputs > outputs else matrices


def _as_before(x_KMN: Array, like: Array, axes: MuonDimensionNumbers) -> Array:
    inputs, outputs = _sizes(like, axes)
    return (x_KMN.mT if inputs > outputs else x_KMN).reshape(like.shape)


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


def scaled_by_shape(updates: Any) -> Any:
    """Scales up the update of a matrix with more outputs than inputs, by the root of their ratio.

    Jordan's factor: an orthogonal update of any shape then moves the outputs equally far.
    """

    def scaled(update: Array, axes: MuonDimensionNumbers) -> Array:
        inputs, outputs = _sizes(update, axes)
        return update * max(1.0, outputs / inputs) ** 0.5

    return jax.tree.map(scaled, updates, matrix_axes(updates))


def names_of(path: tuple[Any, ...]) -> set[str]:
    """The names on a parameter's path, such as {"h_0", "attn", "q", "kernel"}."""
    return {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
