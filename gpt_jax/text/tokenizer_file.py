"""Tokenizers made from a setting, saved as JSON and loaded again."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.files import replacing
from gpt_jax.text import bpe
from gpt_jax.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

NAMES = ("char", "byte", "bpe")


def make_tokenizer(kind: str, texts: Iterable[str], bpe_vocab_size: int) -> Tokenizer:
    """The tokenizer that `data.tokenizer = kind` asks for.

    Args:
      texts: parts of the text that gives the vocabulary of "char" and the merges of "bpe".
      bpe_vocab_size: most tokens of "bpe".

    Raises:
      UserError: for a path where there is no tokenizer, or a library that is missing.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer("".join({c for text in texts for c in set(text)}))
    if kind == "bpe":
        return BPETokenizer(bpe.train(texts, bpe_vocab_size))
    return _local_tokenizer(kind)


def absolute_kind(kind: str) -> str:
    """`data.tokenizer` as it is recorded: a path made absolute, a name as it is."""
    return kind if kind in NAMES else os.path.abspath(os.path.expanduser(kind))


def _local_tokenizer(kind: str) -> Tokenizer:
    """Of a file or folder: a run's (or a prepared corpus's), or in the library's format: byte
    pairs, or the characters of a run that was exported."""
    path = Path(absolute_kind(kind))
    if not path.exists():
        raise UserError(
            f"data.tokenizer = {kind!r} is not char, byte or bpe, and there is no such file or "
            f"folder ({path}): give one of these, or {bpe.WANTED}"
        )
    file = path / "tokenizer.json" if path.is_dir() else path
    if is_saved(file):
        return load_tokenizer(file)
    return _exported_characters(file) or BPETokenizer(bpe.read(path))


def _exported_characters(file: Path) -> CharTokenizer | None:
    """Of a run of characters that was exported; None for every other file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(file.read_text(encoding="utf-8"))
        characters = "".join(content["model"]["vocab"])
        characters.encode("utf-8")  # Halves of a pair are no characters.
        tokenizer = CharTokenizer(characters)
        return tokenizer if tokenizer.to_library() == content else None
    return None


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes the tokenizer to a JSON file, as a whole."""
    with replacing(path) as file:
        file.write(file_content(tokenizer))


def is_saved(path: Path) -> bool:
    """Whether a file begins as `save_tokenizer` begins it."""
    return path.exists() and b'"format"' in path.read_bytes()[:20]


def file_content(tokenizer: Tokenizer) -> bytes:
    """What `save_tokenizer` writes."""
    content = {"format": 1, **tokenizer.to_dict()}
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer stored by `save_tokenizer`.

    Raises:
      UserError: when the file is missing, is no JSON, or is of a kind this version does not know.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["format"], content["type"]
        if kind == (1, "byte"):
            return ByteTokenizer()
        if kind == (1, "char"):
            content["characters"].encode("utf-8")  # Halves of a pair are no characters.
            return CharTokenizer(content["characters"])
        if kind == (1, "bpe"):
            return BPETokenizer(content["tokenizer"])
    except UserError:  # Of a missing library.
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"no tokenizer can be read from {path} ({error!r}): restore the file"
        ) from error
    raise UserError(f"{path} holds a tokenizer of kind {kind}: update gpt_jax to read it")
