"""GPT-2's weights as a tree of our parameters."""

from typing import Any

import jax
import numpy as np

from gpt_jax.gpt2.folder import Folder


def read_params(folder: Folder, abstract: Any) -> Any:
    """The parameters in a GPT-2 folder, read one by one, each placed in its shards.

    Args:
      folder: from `open_folder`.
      abstract: the tree of our parameters as jax.ShapeDtypeStruct with shardings, unrolled or
        scanned (see model/stacking.py).

    Returns: a tree like `abstract`, float32.

    Raises:
      UserError: if a file cannot be read.
    """

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        whole = _read(folder, jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: whole[index])

    return jax.tree_util.tree_map_with_path(read, abstract)


def _read(folder: Folder, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter. A stacked one is read layer by layer."""
    if not path.startswith("h/"):
        return folder.read(path, shape)
    stacked = np.empty(shape, np.float32)
    for layer, place in enumerate(stacked):
        place[...] = folder.read(f"h_{layer}{path.removeprefix('h')}", place.shape)
    return stacked
