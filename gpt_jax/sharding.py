"""The mesh of devices, the rules that lay logical axes over it, and the shardings that follow.

A laptop's cores, a server's GPUs and a cluster's hosts are the same to the rest of the code: a mesh
(data, fsdp, tensor), (1, 1, 1) included. A mesh never changes a shape.

Shapes: A microbatches in a row, M windows of one microbatch over all devices, W tokens of a window.
"""

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gpt_jax import hardware
from gpt_jax.config import Config, GPTConfig, MeshConfig
from gpt_jax.setting import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
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

# A microbatch of about 256 tokens per core keeps its activations in cache: the step of
# configs/tiny.py on 2 cores takes 126 ms, with 128, 512 or 1024 tokens at once 172, 148 and 167 ms.
CPU_MICROBATCH_TOKENS = 256

MOST_PLANNED = 1024


def _largest_divisor(number: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if number % n == 0)


def start_devices(config: MeshConfig, batch_size: int) -> list[jax.Device]:
    """The devices a run uses, of all its processes; on a CPU, `cpu_devices` of each process.

    Left to choose, as many as this process has cores and as share the batch evenly. Where JAX is
    already running (a notebook, a test), the devices at hand are taken in place of the cores.

    Raises:
      UserError: when `cpu_devices` are more than JAX already runs with.
    """
    count = config.cpu_devices or _largest_divisor(batch_size, hardware.usable_cores())
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        count = config.cpu_devices or _largest_divisor(batch_size, len(jax.local_devices()))
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return devices
    if (running := len(jax.local_devices())) < count:
        raise UserError(
            f"mesh.cpu_devices = {count}, but JAX already runs with {running}: ask for fewer, "
            "or set it before JAX starts"
        )
    of_processes = itertools.groupby(devices, lambda device: device.process_index)
    return [device for _, own in of_processes for device in itertools.islice(own, count)]


def make_mesh(config: MeshConfig, devices: list[jax.Device]) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices`.

    Raises:
      UserError: when the sizes do not multiply to the number of devices.
    """
    shared = config.fsdp * config.tensor
    data = len(devices) // shared if config.data == -1 else config.data
    if data * shared != len(devices):
        raise UserError(
            f"mesh.data = {config.data}, mesh.fsdp = {config.fsdp} and mesh.tensor = "
            f"{config.tensor} do not multiply to the {len(devices)} devices at hand: change them, "
            "or mesh.cpu_devices; to plan for others, give all three"
        )
    shape = (data, config.fsdp, config.tensor)
    # Auto: make_mesh's own default, Explicit, refuses the embedding look-up of a linen model.
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * 3, devices=devices)


def make_abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh (data, fsdp, tensor) of devices that are not at hand, to plan with.

    Raises:
      UserError: for more than MOST_PLANNED devices.
    """
    shape = (config.data, config.fsdp, config.tensor)
    if math.prod(shape) > MOST_PLANNED:
        raise UserError(
            f"mesh.data = {config.data}, mesh.fsdp = {config.fsdp} and mesh.tensor = "
            f"{config.tensor} are {math.prod(shape)} devices: plan for {MOST_PLANNED} at most"
        )
    return AbstractMesh(shape, MESH_AXES, (AxisType.Auto,) * 3)


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """How the B windows of a batch are laid out: A microbatches of M, shared by the devices.

    Attributes:
      microbatches: A.
      rows: M, of which each device has `rows_per_device`.
      sharding: of an array (A, M, W).
    """

    microbatches: int
    rows: int
    rows_per_device: int
    sharding: NamedSharding

    def place(self, windows_NW: np.ndarray, rows_B: np.ndarray | None = None) -> jax.Array:
        """B = A M windows on the devices, shape (A, M, W), int32; row b goes to divmod(b, M).

        Each process reads only the windows of its own devices, so `windows_NW` may be a view into
        more text than fits into memory.

        Args:
          rows_B: which of the N windows are the batch's; None: all, in order (N = B).
        """
        shape = (self.microbatches, self.rows, windows_NW.shape[-1])
        rows_AM = (np.arange(len(windows_NW)) if rows_B is None else rows_B).reshape(shape[:2])

        def own(index: Any) -> np.ndarray:
            return windows_NW[rows_AM[index[:2]]].astype(np.int32)

        return jax.make_array_from_callback(shape, self.sharding, own)


def make_batch_layout(config: Config, mesh: Mesh | AbstractMesh) -> BatchLayout:
    """The layout of `train.batch_size` windows over the mesh.

    Raises:
      UserError: when the devices or the microbatches cannot share the batch evenly.
    """
    batch_size, ways = config.train.batch_size, math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % ways:
        raise UserError(
            f"train.batch_size = {batch_size} is not a multiple of the {ways} devices that share it"
            ": change it, or the mesh"
        )
    local = batch_size // ways
    size = config.train.microbatch_size or _choose_microbatch(config, mesh, local)
    if local % size:
        raise UserError(
            f"train.microbatch_size = {size} does not divide the {local} windows that each of "
            f"{ways} devices has of train.batch_size = {batch_size}: choose a divisor"
        )
    spec = PartitionSpec(None, BATCH_AXES)
    return BatchLayout(local // size, size * ways, size, NamedSharding(mesh, spec))


def _choose_microbatch(config: Config, mesh: Mesh | AbstractMesh, local: int) -> int:
    if isinstance(mesh, AbstractMesh) or mesh.devices.flat[0].platform != "cpu":
        return local
    # Not one window, however long: an axis of size 1 makes XLA:CPU's sums over rows (softmax,
    # LayerNorm) seven times slower; configs/small.py took 631 ms a step and with two windows 468.
    return _largest_divisor(local, max(2, CPU_MICROBATCH_TOKENS // config.model.block_size))


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
