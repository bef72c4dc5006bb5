"""The JSON files of a GPT-2 folder, and the shape that its config.json describes.

The files can hold anything: every value is checked, and shortened where a message quotes it.
"""

import dataclasses
import reprlib
from pathlib import Path
from typing import Any

from gpt_jax.config import ANY, GPTConfig, checked
from gpt_jax.errors import UserError
from gpt_jax.files import read_json
from gpt_jax.gpt2.names import FIXED, FROM_GPT2

MAX_REASON = 500  # Characters. A message can quote the whole file.


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if there is none."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read ({reason}): choose a folder with GPT-2's config.json and "
            "model.safetensors, as Hugging Face offers them"
        ) from error


def model_config(path: Path, content: dict[str, Any], n_tensors: int) -> GPTConfig:
    """The shape that a config.json describes, with a head of its own.

    Args:
      path: the folder.
      n_tensors: how many tensors it holds.

    Raises:
      UserError: if the model is not a GPT-2 that ours can compute, or a value cannot be.
    """
    if content.get("model_type") != "gpt2":
        raise UserError(
            f"{path} holds a model of type {shown(content.get('model_type'))}: only 'gpt2' can be "
            "read, choose another model"
        )
    activation = content.get("activation_function", "gelu_new")
    unsupported = [
        f"{name} = {shown(content[name])}"
        for name, value in FIXED.items()
        if content.get(name, value) != value
    ]
    if activation not in [*FROM_GPT2]:  # A list, because JSON's lists and objects have no hash.
        unsupported.append(f"activation_function = {shown(activation)}")
    if unsupported:
        raise UserError(
            f"{path} holds a GPT-2 with options that this model does not have "
            f"({', '.join(unsupported)}): choose another model"
        )
    try:
        return _shape(content, FROM_GPT2[activation], n_tensors)
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} lacks {error}: get the file again") from error
    except UserError as error:
        reason = str(error)[:MAX_REASON]
        raise UserError(f"{path / 'config.json'}: {reason}") from error


def _shape(content: dict[str, Any], activation: str, n_tensors: int) -> GPTConfig:
    """The shape in a config.json. Raises KeyError for a missing key and UserError for a bad one."""
    checked("tie_word_embeddings", content.get("tie_word_embeddings", True), bool, ANY)
    inner = content.get("n_inner")
    config = GPTConfig(
        vocab_size=content["vocab_size"],
        block_size=content["n_positions"],
        n_layer=content["n_layer"],
        n_head=content["n_head"],
        n_embd=content["n_embd"],
        n_inner=0 if inner is None else inner,
        qkv_bias=True,
        activation=activation,
    )
    if config.n_layer > n_tensors:  # Else a list of them could fill the memory.
        raise UserError(
            f"n_layer = {config.n_layer}, but the folder holds only {n_tensors} tensors: get the "
            "folder again"
        )
    own = config.n_inner != 4 * config.n_embd
    return config if own else dataclasses.replace(config, n_inner=0)


def shown(value: Any) -> str:
    """A value of a config.json, shortened: it can be anything."""
    return reprlib.repr(value)
