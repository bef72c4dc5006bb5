"""The rules that map logical axes to the mesh, and the sharding of every array.

The model names the axes of its arrays ("embed", "heads", ...). RULES says which axes of the mesh
(see mesh.py) share each of them. XLA's partitioner does the rest.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import GPTConfig
from gpt_jax.devices.mesh import BATCH_AXES

RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    "length": (),
    "head_dim": (),
    "layers": (),
}


def tree_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for every array of a tree whose parameters carry logical axis names.

    An axis that the mesh does not divide is not sharded; a line on stderr says so.
    """
    notes: set[str] = set()

    def one(box: Any) -> Any:  # Optax leaves some boxes empty: parameters of another group.
        names = nn.get_partition_spec(box)
        return jax.tree.map(lambda leaf: _sharding(leaf.shape, names, mesh, notes), nn.unbox(box))

    shardings = jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    for line in sorted(notes):
        print(line, file=sys.stderr)
    return shardings


def _sharding(
    shape: tuple[int, ...], names: PartitionSpec, mesh: Mesh | AbstractMesh, notes: set[str]
) -> NamedSharding:
    spec = []
    for name, size in zip(names, shape, strict=False):  # An array without names is not sharded.
        axes = tuple(axis for axis in RULES[name] if mesh.shape[axis] > 1)
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if size % ways:
            notes.add(
                f"note: {name} = {size} is not sharded, because mesh axis {'+'.join(axes)} = "
                f"{ways} does not divide it"
            )
        spec.append(None if size % ways else axes or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


@contextlib.contextmanager
def activations_over(mesh: Mesh, config: GPTConfig) -> Iterator[None]:
    """A context in which activations are sharded over `mesh` by the names of their axes.

    Left alone, the compiler may split a product along `embed` and sum activations over the devices
    where it could fetch the few parameters. A small model with scanned blocks then sent 5.3 MB a
    step instead of 0.2 MB.
    """
    sizes = {
        "vocab": config.vocab_size,
        "heads": config.n_head,
        "mlp": config.n_inner or 4 * config.n_embd,
    }
    rules: list[tuple[str, tuple[str, ...]]] = [("batch", BATCH_AXES)]
    rules += [(name, RULES[name]) for name, size in sizes.items() if _divides(mesh, name, size)]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield


def _divides(mesh: Mesh, name: str, size: int) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in RULES[name]) == 0
