"""Writes a model and its tokenizer as a folder that Hugging Face transformers loads as a GPT-2.

    out/  config.json  model.safetensors  tokenizer.json  tokenizer_config.json

Neither transformers nor torch is needed.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from gpt_jax.config import GPTConfig
from gpt_jax.errors import UserError
from gpt_jax.gpt2.names import FIXED, HEAD, PREFIX, TO_GPT2, stored_name, stored_shapes
from gpt_jax.gpt2.tensors import save_tensors
from gpt_jax.model import INIT_STDDEV
from gpt_jax.text import BPETokenizer, CharTokenizer, Tokenizer, bpe

# Settings that may have any value or have a check of their own. All others must have their default,
# with which our model is a GPT-2. So a new setting is rejected until it is added here.
EXPORTED = {
    *("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_inner", "n_kv_head"),
    *("bias", "qkv_bias", "tie_embeddings", "activation", "dropout", "zero_init", "matmul_dtype"),
    *("attention", "remat", "scan_layers"),
}
BYTES_AND_END = 257


def export_folder(config: GPTConfig, params: Any, tokenizer: Tokenizer, out: Path) -> None:
    """Writes a model and its tokenizer into the new folder `out`: everything or nothing.

    Args:
      config, params: of the unrolled model (see `model.unrolled`).

    Raises:
      UserError: if the model is not a GPT-2, with all reasons; if `out` exists or cannot be
        written; if a library is missing.
    """
    _check_shape(config)
    end = _end_of_text(tokenizer)
    content = model_config(config, end)
    tensors = stored_tensors(config, params)
    with _new_folder(out) as folder:
        save_tensors(folder / "model.safetensors", tensors)
        _write_json(folder / "config.json", content)
        _write_json(folder / "tokenizer.json", library_tokenizer(tokenizer))
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(config, end))


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` on success and is removed on failure."""
    check_new(out)
    try:
        if not out.parent.exists():
            out.parent.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as private:
            folder = Path(private, out.name)
            folder.mkdir()  # With the mode of any new folder; the temporary one is private.
            yield folder
            check_new(out)  # Again: renaming would replace an empty folder.
            folder.rename(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): choose a new folder on a disk with room"
        ) from error


def check_new(out: Path) -> None:
    """Raises UserError if `out` exists."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists: choose a new folder, or remove this one first")


def _check_shape(config: GPTConfig) -> None:
    different = [
        f"model.{field.name} = {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in EXPORTED and getattr(config, field.name) != field.default
    ]
    if config.kv_heads != config.n_head:
        different.append(f"model.n_kv_head = {config.n_kv_head}")
    if config.activation not in TO_GPT2:
        different.append(f"model.activation = {config.activation!r}")
    if different:
        raise UserError(
            f"this model is not a GPT-2 and cannot be exported as one ({', '.join(different)}): "
            "train a model with learned positions, LayerNorm, as many heads of keys and values as "
            "of queries, and gelu or gelu_tanh"
        )


def stored_tensors(config: GPTConfig, params: Any) -> dict[str, np.ndarray]:
    """The parameters under GPT-2's names (see names.py). Biases that the model lacks are zeros."""
    shapes = stored_shapes(config)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for path, param in traverse_util.flatten_dict(params, sep="/").items():
        name, part = stored_name(path)
        place = tensors[name]
        if part is not None:
            width = config.n_embd
            place = place[..., part * width : (part + 1) * width]
        place[...] = np.asarray(param).T if name == HEAD else np.reshape(param, place.shape)
    return {name if name == HEAD else PREFIX + name: array for name, array in tensors.items()}


def model_config(config: GPTConfig, end: int | None) -> dict[str, Any]:
    """The config.json of transformers' GPT2LMHeadModel. `end`: see `_end_of_text`."""
    return FIXED | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.n_inner or None,
        "activation_function": TO_GPT2[config.activation],
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": 0.0,  # Dropout after the embeddings, which our model does not have.
        "initializer_range": INIT_STDDEV,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def library_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as JSON for the library tokenizers, with the same ids for every text."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.to_dict()["tokenizer"]
    if isinstance(tokenizer, CharTokenizer):
        return tokenizer.to_library()
    return _bytes_alone()


def _bytes_alone() -> dict[str, Any]:
    """Byte-pair encoding without merges; the id of a byte is its value."""
    content = bpe.train([], BYTES_AND_END)
    of_ids = bpe.token_bytes(bpe.parse(content))
    letters = [(letter, of_ids[i]) for letter, i in content["model"]["vocab"].items()]
    content["model"]["vocab"] = {letter: one[0] for letter, one in letters if len(one) == 1}
    return content | {"added_tokens": []}


def _end_of_text(tokenizer: Tokenizer) -> int | None:
    """The id of the end-of-text token; None if the tokenizer has none."""
    if not isinstance(tokenizer, BPETokenizer):
        return None
    added = tokenizer.to_dict()["tokenizer"]["added_tokens"]
    return next((token["id"] for token in added if token["content"] == bpe.END_OF_TEXT), None)


def _tokenizer_config(config: GPTConfig, end: int | None) -> dict[str, Any]:
    special = {} if end is None else dict.fromkeys(("bos_token", "eos_token"), bpe.END_OF_TEXT)
    return special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
