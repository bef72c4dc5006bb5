"""A number for every array of a tree that changes when one of its bits does.

Orbax does not notice a flipped bit in an array's file (0.12.8). Sums of integers do not depend on
their order, so a digest is the same on every mesh; it is made on the devices, in one pass. It
guards against decay, not against forgery.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Description = tuple[tuple[int, ...], str]


def described(tree: Any) -> dict[str, Description]:
    """Shape and dtype of every array under its path; a typed key is the numbers it is made of.

    No more is asked of the leaves: where those of a checkpoint lay may be devices that are gone.
    """
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return {
        path: (leaf.shape, leaf.dtype.name)
        for path, leaf in _paths(jax.eval_shape(_numbers, bare)).items()
    }


def differences(saved: Mapping[str, Description], wanted: Mapping[str, Description]) -> list[str]:
    """What differs between two trees described, in those parts of them that are wanted."""
    parts = {name.partition("/")[0] for name in wanted}
    saved = {name: what for name, what in saved.items() if name.partition("/")[0] in parts}
    return [
        f"{name} is {_told(saved.get(name))} there and {_told(wanted.get(name))} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]


def _told(array: Description | None) -> str:
    return f"{array[0]} {array[1]}" if array else "missing"


def digests(tree: Any) -> dict[str, int]:
    """The digest of every array under its path, below 2**32."""
    return {path: int(value) for path, value in _paths(_digests(tree)).items()}


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(_digest, _numbers(tree))


def _digest(x: jax.Array) -> jax.Array:
    """Sum of its words, each times an odd number of its place: no flip of one bit leaves it."""
    words = lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place = place + lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(words * (place * np.uint32(2654435761) | np.uint32(1)), dtype=jnp.uint32)


def _numbers(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def _paths(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
