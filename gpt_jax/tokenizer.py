"""Text <-> token ids: characters or bytes. Saved and loaded as JSON.

An id array is one-dimensional, of `token_dtype(vocab_size)`. Encoding then decoding gives the text
back exactly. A tokenizer belongs to its run: it is stored there and never guessed from a corpus.
"""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt_jax.setting import UserError

Ids = np.ndarray | list[int]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds ids 0 .. vocab_size - 1."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids."""

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, shape (tokens,). Raises UserError for text that has none."""

    def decode(self, ids: Ids) -> str:
        """The text of `ids`."""

    def decoder(self) -> Callable[[Ids, bool], str]:
        """A function for ids that arrive in pieces: (ids, final) -> the characters now complete.

        What it returns, joined, is the text of all ids; with `final` nothing is held back.
        """

    def count_bytes(self, ids: np.ndarray) -> int:
        """The length of the text of `ids` in bytes of UTF-8."""

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to make this tokenizer again, as plain data."""


class CharTokenizer:
    """One id per character: its place among the sorted distinct characters of a corpus."""

    def __init__(self, characters: str) -> None:
        """`characters`: the vocabulary, in any order; repeats do not matter."""
        self.characters = "".join(sorted(set(characters)))
        self._codes = _code_points(self.characters)

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = self._codes.take(ids, mode="clip") == codes
        if not known.all():
            raise self._unknown(text, int(np.argmin(known)))
        return ids.astype(token_dtype(self.vocab_size))

    def _unknown(self, text: str, position: int) -> UserError:
        character = text[position]
        return UserError(
            f"character {character!r} (U+{ord(character):04X}) at position {position} is not among "
            f"the {self.vocab_size} characters this tokenizer was made from: leave it out, or "
            "train on a text that has it"
        )

    def decode(self, ids: Ids) -> str:
        return "".join(self.characters[i] for i in ids)

    def decoder(self) -> Callable[[Ids, bool], str]:
        return lambda ids, final: self.decode(ids)

    def count_bytes(self, ids: np.ndarray) -> int:
        return len(self.decode(ids).encode("utf-8"))

    def to_dict(self) -> dict[str, Any]:
        return {"type": "char", "characters": self.characters}


class ByteTokenizer:
    """One id per byte of UTF-8; knows every text."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.frombuffer(text.encode("utf-8"), np.uint8)
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {text[error.start]!r} at position {error.start} is half of a pair and "
                "no character by itself: leave it out"
            ) from None

    def decode(self, ids: Ids) -> str:
        """Bytes that are not UTF-8 (a sample may stop inside a character) become U+FFFD."""
        return bytes(np.asarray(ids, np.uint8)).decode("utf-8", errors="replace")

    def decoder(self) -> Callable[[Ids, bool], str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda ids, final: decoder.decode(bytes(np.asarray(ids, np.uint8)), final)

    def count_bytes(self, ids: np.ndarray) -> int:
        return len(ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "byte"}


def _code_points(text: str) -> np.ndarray:
    # "surrogatepass": a prompt from the command line can hold lone surrogates; they are refused
    # later, by name, like any other unknown character.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def make_tokenizer(kind: str, text: str) -> Tokenizer:
    """The tokenizer that `data.tokenizer = kind` asks for; `text` gives it its vocabulary."""
    return ByteTokenizer() if kind == "byte" else CharTokenizer(text)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes the tokenizer to a JSON file."""
    content = {"format": 1, **tokenizer.to_dict()}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"no tokenizer can be read from {path} ({error!r}): restore the file"
        ) from error
    raise UserError(f"{path} holds a tokenizer of kind {kind}: update gpt_jax to read it")
