"""Tokens that a folder in Hugging Face's format adds to its tokenizer in other files. No jax."""

from pathlib import Path
from typing import Any

from gpt_jax.files import read_json

OPTIONS = ("lstrip", "rstrip", "single_word", "special")


def of_folder(folder: Path) -> list[tuple[int, str, dict[str, bool]]]:
    """The id, text and options of each added token, by id.

    Newer folders list them in tokenizer_config.json, older ones in added_tokens.json.

    Raises:
      OSError: if a file cannot be read.
      ValueError: if a file does not have this form, or asks for spaces before a text.
    """
    config = _content(folder / "tokenizer_config.json")
    if config.get("add_prefix_space"):
        raise ValueError("tokenizer_config.json sets add_prefix_space, which changes the text")
    try:
        older = _content(folder / "added_tokens.json").items()
        newer = (config.get("added_tokens_decoder") or {}).items()
        found: dict[int, tuple[str, dict[str, bool]]] = {int(i): (token, {}) for token, i in older}
        found |= {int(i): (token["content"], _options(token)) for i, token in newer}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its list of added tokens has another form ({error!r})") from error
    return [(i, *token) for i, token in sorted(found.items())]


def _content(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _options(token: dict[str, Any]) -> dict[str, bool]:
    return {name: bool(token[name]) for name in OPTIONS if name in token}
