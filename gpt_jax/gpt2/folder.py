"""A GPT-2 folder of Hugging Face: opened, checked, and read as our parameters.

gpt2/  config.json  model.safetensors  tokenizer.json (or vocab.json and merges.txt)
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.config import GPTConfig
from gpt_jax.errors import UserError
from gpt_jax.gpt2.config_json import model_config, read_object
from gpt_jax.gpt2.names import HEAD, Shape, listed, stored_name, stored_shapes
from gpt_jax.gpt2.tensors import Stored, find_tensors, read_tensor


@dataclasses.dataclass(frozen=True)
class Folder:
    """A GPT-2 in a folder, from `open_folder`. Tensors are read when `read` asks for them.

    Attributes:
      config: the model's shape; settings that are not about its shape have their defaults.
      tensors: name of a tensor without the prefix -> where it is.
    """

    path: Path
    config: GPTConfig
    tensors: Mapping[str, Stored]

    def read(self, path: str, shape: Shape) -> np.ndarray:
        """One of our parameters by its path, such as "h_0/attn/q/kernel", as float32.

        Raises UserError if a number in it is not finite.
        """
        name, part = stored_name(path)
        tensor = read_tensor(self.tensors[name], part)
        tensor = tensor.T if name == HEAD else tensor
        return np.ascontiguousarray(tensor.reshape(shape))

    def digest(self) -> str:
        """The SHA-256 of all tensors by name. Raises UserError if a number is not finite."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode("utf-8"))
            digest.update(np.ascontiguousarray(read_tensor(tensor)).data)
        return digest.hexdigest()


def open_folder(path: Path) -> Folder:
    """Opens a folder and checks that our model can use all of its tensors.

    Raises:
      UserError: if files are missing, if the model is not a GPT-2 or uses an option that our model
        lacks, or if tensors are missing, unknown or of another shape or type; the message names
        them.
    """
    if not path.is_dir():
        raise UserError(
            f"there is no folder {path}: name a folder with GPT-2's config.json, model.safetensors "
            "and tokenizer.json; docs/gpt2.md says how to get one"
        )
    content = read_object(path / "config.json")
    tensors = find_tensors(path)
    config = model_config(path, content, len(tensors))
    if content.get("tie_word_embeddings", True) and not _has_own_head(tensors):
        config = dataclasses.replace(config, tie_embeddings=True)
        tensors.pop(HEAD, None)
    if differences := _differences(stored_shapes(config), tensors):
        raise UserError(
            f"{path} does not hold the GPT-2 that its config.json describes ({differences}): get "
            "the folder again, or correct its config.json"
        )
    return Folder(path, config, tensors)


def read_params(folder: Folder, abstract: Any) -> Any:
    """The parameters in a GPT-2 folder as float32, read one by one, each placed in its shards.

    `abstract` is the tree of our parameters as jax.ShapeDtypeStruct with shardings, unrolled or
    scanned (see model/stacking.py). Raises UserError if a file cannot be read.
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


def _has_own_head(tensors: Mapping[str, Stored]) -> bool:
    """Whether the folder has a head that differs from the token embedding."""
    head, table = tensors.get(HEAD), tensors.get("wte.weight")
    if head is None or table is None:
        return False
    return head.shape != table.shape or not np.array_equal(read_tensor(head), read_tensor(table))


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Stored]) -> str:
    """What is wrong with the tensors found; empty if they are as expected."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "of another shape": [
            f"{name} {found[name].shape}, not {shape}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ],
        "unknown": sorted(found.keys() - expected.keys()),
    }
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)
