"""The mesh of devices, the rules that lay logical axes over it, and the shardings that follow.

A laptop's cores, a server's GPUs and a cluster's hosts are the same to the rest of the code: a mesh
(data, fsdp, tensor), (1, 1, 1) included. A mesh never changes a shape.

Shapes: A microbatches in a row, M windows of one microbatch over all devices, W tokens of a window.
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

    An axis that the mesh does not divide is left whole, with a line on stderr that says so.
    """
    whole: set[str] = set()

    def one(box: Any) -> Any:  # Optax leaves some boxes empty: parameters of another group.
        names = nn.get_partition_spec(box)
        return jax.tree.map(lambda leaf: _sharding(leaf.shape, names, mesh, whole), nn.unbox(box))

    shardings = jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    for line in sorted(whole):
        print(line, file=sys.stderr)
    return shardings


def _sharding(
    shape: tuple[int, ...], names: PartitionSpec, mesh: Mesh | AbstractMesh, whole: set[str]
) -> NamedSharding:
    spec = []
    for name, size in zip(names, shape, strict=False):  # What has no names is whole on each device.
        axes = tuple(axis for axis in RULES[name] if mesh.shape[axis] > 1)
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if size % ways:
            whole.add(
                f"note: {name} = {size} is left whole, mesh axis {'+'.join(axes)} = {ways} "
                "does not divide it"
            )
        spec.append(None if size % ways else axes or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


@contextlib.contextmanager
def activations_over(mesh: Mesh, config: GPTConfig) -> Iterator[None]:
    """Within it, activations are laid over `mesh` as the model names their axes.

    Left to itself, the compiler may share a product along `embed` instead, and sums activations
    over the devices where it could fetch the few parameters: 5.3 MB a step where 0.2 do, of a
    small model whose blocks are scanned.
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
