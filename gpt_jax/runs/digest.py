"""A number for each array of a tree that changes if any bit of the array changes.

Orbax does not notice a flipped bit in an array's file (0.12.8). Digests are computed on the
devices, in one pass. They are sums of integers, which do not depend on the order, so they are the
same on every mesh. They guard against decay, not against forgery.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Description = tuple[tuple[int, ...], str]


def describe(tree: Any) -> dict[str, Description]:
    """Shape and dtype of every array by its path. A typed key counts as the integers in it.

    Reads nothing else of the leaves: the devices that a checkpoint's arrays lay on may be gone.
    """
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return {
        path: (leaf.shape, leaf.dtype.name)
        for path, leaf in _paths(jax.eval_shape(_without_keys, bare)).items()
    }


def differences(saved: Mapping[str, Description], expected: Mapping[str, Description]) -> list[str]:
    """The differences between two descriptions, in those parts of the tree that are expected.

    A part is a top-level entry, such as "params".
    """
    parts = {name.partition("/")[0] for name in expected}
    saved = {name: array for name, array in saved.items() if name.partition("/")[0] in parts}
    return [
        f"{name} is {_text(saved.get(name))} there and {_text(expected.get(name))} here"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]


def _text(array: Description | None) -> str:
    return f"{array[0]} {array[1]}" if array else "missing"


def digests(tree: Any) -> dict[str, int]:
    """The digest of every array by its path, in [0, 2**32)."""
    return {path: int(value) for path, value in _paths(_digests(tree)).items()}


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(_digest, _without_keys(tree))


@jax.jit  # Traced once per shape: arrays of all blocks and of Adam's averages share theirs.
def _digest(x: jax.Array) -> jax.Array:
    """Sum over elements of their bits as an integer, times an odd number that depends on the place.

    The odd factor makes every flip of one bit change the sum.
    """
    words = lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place = place + lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(words * (place * np.uint32(2654435761) | np.uint32(1)), dtype=jnp.uint32)


def _without_keys(tree: Any) -> Any:
    """The tree with each typed key replaced by the integers in it."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def _paths(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
