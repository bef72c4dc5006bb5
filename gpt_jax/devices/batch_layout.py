"""How a batch lies on the devices: microbatches, and the rows of each device.

Shapes (the suffix of a name): N windows to choose from, B = A M windows of a batch, A microbatches
one after another, M windows of one microbatch over all devices, W tokens of a window.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import Config, nearest_divisors
from gpt_jax.devices.device_count import largest_divisor
from gpt_jax.devices.mesh import BATCH_AXES
from gpt_jax.errors import UserError

# A microbatch of about 256 tokens per core keeps its activations in cache. The step of
# configs/tiny.py on 2 cores takes 126 ms with it, and 172, 148 and 167 ms with 128, 512 and 1024.
CPU_MICROBATCH_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """How the B windows of a batch are divided into A microbatches of M, shared by the devices.

    Attributes:
      microbatches: A.
      rows: M, the rows of a microbatch on all devices.
      rows_per_device: the rows of a microbatch on each device.
      sharding: of an array (A, M, W).
    """

    microbatches: int
    rows: int
    rows_per_device: int
    sharding: NamedSharding

    def place(self, rows: Any, rows_B: np.ndarray | None = None) -> Any:
        """The rows of a batch on the devices, shape (A, M, ...); integers become int32.

        Row b of the batch goes to position divmod(b, M). Each process reads only the rows of its
        own devices, so an array may be a view into more text than fits into memory.

        Args:
          rows: an array (N, ...), or a dictionary of such arrays.
          rows_B: which of the N rows make the batch. None = all of them in order; then N = B.
        """
        count = len(jax.tree.leaves(rows)[0])
        chosen_B = np.arange(count) if rows_B is None else rows_B
        chosen_AM = chosen_B.reshape(self.microbatches, self.rows)
        return jax.tree.map(lambda array: self._place_array(array, chosen_AM), rows)

    def _place_array(self, array: np.ndarray, chosen_AM: np.ndarray) -> jax.Array:
        dtype = np.float32 if array.dtype.kind == "f" else np.int32

        def local(index: Any) -> np.ndarray:
            return array[chosen_AM[index[:2]]].astype(dtype)

        shape = (*chosen_AM.shape, *array.shape[1:])
        return jax.make_array_from_callback(shape, self.sharding, local)


def make_batch_layout(config: Config, mesh: Mesh | AbstractMesh) -> BatchLayout:
    """The layout of a batch over the mesh. Raises UserError if it cannot be shared evenly."""
    batch_size, ways = config.train.batch_size, math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % ways:
        raise UserError(
            f"train.batch_size = {batch_size} is not a multiple of the {ways} devices that share "
            "the batch: choose a multiple, or change the mesh"
        )
    local = batch_size // ways
    size = config.train.microbatch_size or _choose_microbatch(config, mesh, local)
    if local % size:
        raise UserError(
            f"train.microbatch_size = {size} does not divide the {local} windows that each of the "
            f"{ways} devices gets of train.batch_size = {batch_size}: set train.microbatch_size to "
            f"{nearest_divisors(local, size)}"
        )
    spec = PartitionSpec(None, BATCH_AXES)
    return BatchLayout(local // size, size * ways, size, NamedSharding(mesh, spec))


def _choose_microbatch(config: Config, mesh: Mesh | AbstractMesh, local: int) -> int:
    if isinstance(mesh, AbstractMesh) or mesh.devices.flat[0].platform != "cpu":
        return local
    # At least two windows, however long they are. An axis of size 1 makes XLA:CPU's sums over rows
    # (softmax, LayerNorm) seven times slower: configs/small.py took 631 ms a step with one window
    # and 468 ms with two.
    return largest_divisor(local, max(2, CPU_MICROBATCH_TOKENS // config.model.block_size))
