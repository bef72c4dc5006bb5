"""Creates tokenizers from a setting, saves them as JSON, and loads them again."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.files import absolute, open_file, read_json, replacing
from gpt_jax.text import bpe
from gpt_jax.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

NAMES = ("char", "byte", "bpe")


def make_tokenizer(kind: str, texts: Iterable[str], bpe_vocab_size: int) -> Tokenizer:
    """The tokenizer for `data.tokenizer = kind`, made from `texts`, the parts of a text.

    Raises UserError if there is no tokenizer at a path, or the library is missing.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer("".join({c for text in texts for c in set(text)}))
    if kind == "bpe":
        return BPETokenizer(bpe.train(texts, bpe_vocab_size))
    return _local_tokenizer(kind)


def absolute_kind(kind: str) -> str:
    """`data.tokenizer` as it is recorded: a name unchanged, a path made absolute.

    Raises UserError as `absolute`.
    """
    return kind if kind in NAMES else str(absolute(kind))


def _local_tokenizer(kind: str) -> Tokenizer:
    """The tokenizer in a file or folder: ours, the library's, or an exported run's characters."""
    path = Path(absolute_kind(kind))
    if not path.exists():
        raise UserError(
            f"data.tokenizer = {kind!r} is not char, byte or bpe, and no such file or folder "
            f"exists ({path}): give one of the three, or {bpe.WANTED}"
        )
    file = path / "tokenizer.json" if path.is_dir() else path
    if is_saved(file):
        return load_tokenizer(file)
    return _exported_characters(file) or BPETokenizer(bpe.read(path))


def _exported_characters(file: Path) -> CharTokenizer | None:
    """The tokenizer of an exported run that used characters; None for any other file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = read_json(file)
        characters = "".join(content["model"]["vocab"])
        characters.encode("utf-8")  # Refuses half of a surrogate pair.
        tokenizer = CharTokenizer(characters)
        return tokenizer if characters and tokenizer.to_library() == content else None
    return None


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes the tokenizer to a JSON file, atomically."""
    with replacing(path) as file:
        file.write(file_content(tokenizer))


def is_saved(path: Path) -> bool:
    """Whether a file starts like one that `save_tokenizer` wrote."""
    with contextlib.suppress(OSError), open_file(path) as file:
        return b'"format"' in file.read(20)
    return False


def file_content(tokenizer: Tokenizer) -> bytes:
    """The bytes that `save_tokenizer` writes."""
    content = {"format": 1, **tokenizer.to_dict()}
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file. Raises UserError if it is missing, damaged or of unknown kind."""
    try:
        content = read_json(path)
        kind = content["format"], content["type"]
        if kind == (1, "byte"):
            return ByteTokenizer()
        if kind == (1, "char"):
            return _char_tokenizer(content["characters"])
        if kind == (1, "bpe"):
            return BPETokenizer(content["tokenizer"])
    except UserError:  # The library is missing.
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"no tokenizer can be read from {path} ({error!r}): restore the file"
        ) from error
    raise UserError(f"{path} holds an unknown kind of tokenizer {kind}: update gpt_jax to read it")


def _char_tokenizer(characters: str) -> CharTokenizer:
    """A tokenizer that was saved. Raises ValueError if its characters cannot have been."""
    characters.encode("utf-8")  # Refuses half of a surrogate pair.
    tokenizer = CharTokenizer(characters)
    if not characters or tokenizer.characters != characters:
        raise ValueError("its characters are not distinct and in order")
    return tokenizer
