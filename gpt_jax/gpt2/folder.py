"""A GPT-2 folder of Hugging Face: opened, checked, and read as our parameters.

gpt2/  config.json  model.safetensors  tokenizer.json (or vocab.json and merges.txt)
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.config import GPTConfig
from gpt_jax.errors import UserError
from gpt_jax.gpt2.names import (
    FIXED,
    FROM_GPT2,
    HEAD,
    MASKS,
    PREFIX,
    Shape,
    stored_name,
    stored_shapes,
)
from gpt_jax.gpt2.tensors import read_tensor, tensor_names, tensor_shape

MAX_LISTED = 8  # Names of tensors per list in an error message.


@dataclasses.dataclass(frozen=True)
class Folder:
    """A GPT-2 in a folder, from `open_folder`. Tensors are read when `read` asks for them.

    Attributes:
      config: the model's shape; settings that are not about its shape have their defaults.
      files: name of a tensor without the prefix -> its file, and its name in that file.
    """

    path: Path
    config: GPTConfig
    files: Mapping[str, tuple[Path, str]]

    def read(self, path: str, shape: Shape) -> np.ndarray:
        """One of our parameters by its path, such as "h_0/attn/q/kernel", as float32."""
        name, part = stored_name(path)
        tensor = read_tensor(*self.files[name], part)
        tensor = tensor.T if name == HEAD else tensor
        return np.ascontiguousarray(tensor.reshape(shape), np.float32)


def open_folder(path: Path) -> Folder:
    """Opens a folder and checks that our model can use all of its tensors.

    Raises:
      UserError: if files are missing, if the model is not a GPT-2 or uses an option that our model
        lacks, or if tensors are missing, unknown or of another shape; the message names them.
    """
    content = _read_json(path / "config.json")
    files = _find_tensors(path)
    found = {name: tensor_shape(*place) for name, place in files.items()}
    config = _model_config(path, content)
    if content.get("tie_word_embeddings", True) and not _has_own_head(files, found):
        config = dataclasses.replace(config, tie_embeddings=True)
        files.pop(HEAD, None)
        found.pop(HEAD, None)
    if differences := _differences(stored_shapes(config), found):
        raise UserError(
            f"{path} does not hold the GPT-2 that its config.json describes ({differences}): get "
            "the folder again, or correct its config.json"
        )
    return Folder(path, config, files)


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


def _model_config(path: Path, content: dict[str, Any]) -> GPTConfig:
    """The shape that a config.json describes, with a head of its own."""
    if content.get("model_type") != "gpt2":
        raise UserError(
            f"{path} holds a model of type {content.get('model_type')!r}: only 'gpt2' can be read, "
            "choose another model"
        )
    activation = content.get("activation_function", "gelu_new")
    unsupported = [
        f"{name} = {content[name]!r}"
        for name, value in FIXED.items()
        if content.get(name, value) != value
    ]
    unsupported += [] if activation in FROM_GPT2 else [f"activation_function = {activation!r}"]
    if unsupported:
        raise UserError(
            f"{path} holds a GPT-2 with options that this model does not have "
            f"({', '.join(unsupported)}): choose another model"
        )
    try:
        width, inner = content["n_embd"], content.get("n_inner") or 0
        return GPTConfig(
            vocab_size=content["vocab_size"],
            block_size=content["n_positions"],
            n_layer=content["n_layer"],
            n_head=content["n_head"],
            n_embd=width,
            n_inner=0 if inner == 4 * width else inner,
            qkv_bias=True,
            activation=FROM_GPT2[activation],
        )
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} lacks {error}: get the file again") from error


def _has_own_head(files: Mapping[str, tuple[Path, str]], found: Mapping[str, Shape]) -> bool:
    """Whether the folder has a head that differs from the token embedding."""
    if HEAD not in files or "wte.weight" not in files:
        return False
    return not np.array_equal(read_tensor(*files[HEAD]), read_tensor(*files["wte.weight"]))


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """What is wrong with the tensors found; empty if they are as expected."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "of another shape": [
            f"{name} {found[name]}, not {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
        "unknown": sorted(found.keys() - expected.keys()),
    }
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _find_tensors(folder: Path) -> dict[str, tuple[Path, str]]:
    """All tensors but the masks: name without the prefix -> file, and name in that file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = _read_json(index).get("weight_map", {})
        found = {name: folder / file for name, file in places.items()}
    else:
        file = folder / "model.safetensors"
        if not file.exists():
            raise UserError(
                f"{folder} has no model.safetensors: choose a folder with GPT-2's weights in this "
                "format, as Hugging Face offers them (pickled weights can hold code and are never "
                "read)"
            )
        found = dict.fromkeys(tensor_names(file), file)
    bare = {name.removeprefix(PREFIX): (file, name) for name, file in found.items()}
    return {name: place for name, place in bare.items() if not MASKS.fullmatch(name)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): choose a folder with GPT-2's config.json and "
            "model.safetensors, as Hugging Face offers them"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: get the file again")
    return content
