"""GPT-2 in the folders of Hugging Face: its parameters' names there beside ours, and reading them.

    gpt2/  config.json  model.safetensors  tokenizer.json (or vocab.json and merges.txt)

A kernel there is (inputs, outputs), as here. Queries, keys and values are one there, `c_attn`: C
wide each, side by side, heads in a row. Names, shapes and options are those of transformers 5.24
(models/gpt2).

The only module that knows the library safetensors, which is loaded when needed: the extra `gpt2`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from gpt_jax.gpt2.tensors import _names, _read, _shape

MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Folder:
    """A GPT-2 in a folder. Made by `open_folder`; reads its tensors when asked for them.

    Attributes:
      config: the shape of the model; what is no matter of shape stands at its default.
      files: by the name of a tensor without the prefix: its file, and its name there.
    """

    path: Path
    config: GPTConfig
    files: Mapping[str, tuple[Path, str]]

    def read(self, path: str, shape: Shape) -> np.ndarray:
        """One of our parameters by its path, such as "h_0/attn/q/kernel", as float32."""
        name, part = stored_name(path)
        tensor = _read(*self.files[name], part)
        tensor = tensor.T if name == HEAD else tensor
        return np.ascontiguousarray(tensor.reshape(shape), np.float32)


def open_folder(path: Path) -> Folder:
    """A folder whose model is ours to the last tensor.

    Raises:
      UserError: for a folder without the files, a model that is no GPT-2 or does what ours does
        not, and for tensors that are missing, of another shape, or not known, all of them named.
    """
    content = _read_json(path / "config.json")
    files = _find_tensors(path)
    found = {name: _shape(*place) for name, place in files.items()}
    config = _model_config(path, content)
    if content.get("tie_word_embeddings", True) and not _has_own_head(files, found):
        config = dataclasses.replace(config, tie_embeddings=True)
        files.pop(HEAD, None)
        found.pop(HEAD, None)
    if told := _differences(stored_shapes(config), found):
        raise UserError(
            f"{path} does not hold the GPT-2 that its config.json describes ({told}): get the "
            "folder anew, or mend its config.json"
        )
    return Folder(path, config, files)


def _model_config(path: Path, content: dict[str, Any]) -> GPTConfig:
    """The shape that a config.json describes, with a head of its own."""
    if content.get("model_type") != "gpt2":
        raise UserError(
            f"{path} holds a model of type {content.get('model_type')!r}: only 'gpt2' can be read"
        )
    activation = content.get("activation_function", "gelu_new")
    unlike = [
        f"{name} = {content[name]!r}"
        for name, value in FIXED.items()
        if content.get(name, value) != value
    ]
    unlike += [] if activation in FROM_GPT2 else [f"activation_function = {activation!r}"]
    if unlike:
        raise UserError(
            f"{path} holds a GPT-2 that computes something else ({', '.join(unlike)}): there is no "
            "such option here, choose another model"
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
        raise UserError(f"{path / 'config.json'} lacks {error}: get the file anew") from error


def _has_own_head(files: Mapping[str, tuple[Path, str]], found: Mapping[str, Shape]) -> bool:
    """Whether there is a head that is not the token embedding once more."""
    if HEAD not in files or "wte.weight" not in files:
        return False
    return not np.array_equal(_read(*files[HEAD]), _read(*files["wte.weight"]))


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """What is wrong with the tensors found; nothing where they are as expected."""
    told = {
        "missing": sorted(expected.keys() - found.keys()),
        "of another shape": [
            f"{name} {found[name]}, not {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
        "not known": sorted(found.keys() - expected.keys()),
    }
    return "; ".join(f"{what}: {_listed(names)}" for what, names in told.items() if names)


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _find_tensors(folder: Path) -> dict[str, tuple[Path, str]]:
    """Every tensor but the masks: by its name without the prefix, its file and its name there."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = _read_json(index).get("weight_map", {})
        found = {name: folder / file for name, file in places.items()}
    else:
        file = folder / "model.safetensors"
        if not file.exists():
            raise UserError(
                f"{folder} has no model.safetensors: name a folder of GPT-2's weights in this "
                "format, as Hugging Face has them (pickled ones can hold code and are not read)"
            )
        found = dict.fromkeys(_names(file), file)
    bare = {name.removeprefix(PREFIX): (file, name) for name, file in found.items()}
    return {name: place for name, place in bare.items() if not MASKS.fullmatch(name)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a folder with GPT-2's config.json and "
            "model.safetensors, as Hugging Face has them"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: get the file anew")
    return content
