"""Text <-> token ids: characters, bytes or byte pairs.

An array of ids is one-dimensional, of `token_dtype(vocab_size)`. Decoding what was encoded gives
the text back exactly. A tokenizer belongs to its run: it is stored there (see tokenizer_file.py)
and never guessed from a corpus.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.text import bpe, pieces

Ids = np.ndarray | list[int]
ENCODED_AT_ONCE = 2**20  # Characters. The library takes about 100 bytes per token.
COUNTED_AT_ONCE = 2**20  # Ids.


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds ids 0 .. vocab_size - 1."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids."""

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, shape (tokens,). Raises UserError for text that it cannot encode."""

    def pieces(self, blocks: Iterable[str], size: int) -> Iterator[str]:
        """The text of `blocks`, in pieces of about `size` characters to encode one by one.

        Their ids, joined, are those of the whole text.
        """

    def decode(self, ids: Ids) -> str:
        """The text of `ids`."""

    def decoder(self) -> Callable[[Ids, bool], str]:
        """A function for ids that arrive in pieces: (ids, final) -> the characters now complete.

        The returned strings, joined, are the text of all ids. If `final`, nothing is held back.
        """

    def count_bytes(self, ids: np.ndarray) -> int:
        """The length of the text of `ids`, in bytes of UTF-8."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `load_tokenizer` makes this tokenizer again."""


class CharTokenizer:
    """One id per character: its index among the sorted distinct characters of a corpus."""

    def __init__(self, characters: str) -> None:
        """`characters`: the vocabulary, in any order, repeats allowed."""
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        self._codes = _code_points(self.characters)

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
            f"character {character!r} (U+{ord(character):04X}) {_place(text, position)} is not one "
            f"of the {self.vocab_size} characters that this tokenizer knows: remove it, or train "
            "on a text that has it"
        )

    def pieces(self, blocks: Iterable[str], size: int) -> Iterator[str]:
        return pieces.of_characters(blocks, size)

    def decode(self, ids: Ids) -> str:
        return "".join(self.characters[i] for i in ids)

    def decoder(self) -> Callable[[Ids, bool], str]:
        return lambda ids, final: self.decode(ids)

    def count_bytes(self, ids: np.ndarray) -> int:
        return _total_of([len(character.encode("utf-8")) for character in self.characters], ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "char", "characters": self.characters}

    def to_library(self) -> dict[str, Any]:
        """The JSON that gives the same ids in the library tokenizers: words of one character."""
        words = {
            "type": "WordLevel",
            "vocab": {character: i for i, character in enumerate(self.characters)},
            "unk_token": "",  # Not in the vocabulary, so unknown characters are refused, as here.
        }
        every_character = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": every_character | {"behavior": "Isolated", "invert": False},
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": words,
        }


class _IdsOfBytes:
    """How ids that stand for bytes are decoded.

    Bytes that are not UTF-8 (a sample may stop inside a character) become U+FFFD.
    """

    def _to_bytes(self, ids: Ids) -> bytes:
        raise NotImplementedError

    def decode(self, ids: Ids) -> str:
        return self.decoder()(ids, True)

    def decoder(self) -> Callable[[Ids, bool], str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda ids, final: decoder.decode(self._to_bytes(ids), final)


class ByteTokenizer(_IdsOfBytes):
    """One id per byte of UTF-8. It can encode every text."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8)

    def pieces(self, blocks: Iterable[str], size: int) -> Iterator[str]:
        return pieces.of_characters(blocks, size)

    def _to_bytes(self, ids: Ids) -> bytes:
        return bytes(np.asarray(ids, np.uint8))

    def count_bytes(self, ids: np.ndarray) -> int:
        return len(ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "byte"}


class BPETokenizer(_IdsOfBytes):
    """One id per sequence of bytes that is frequent, see bpe.py. It can encode every text."""

    def __init__(self, content: dict[str, Any]) -> None:
        """`content`: the JSON of the library tokenizers. Raises ValueError as `bpe.parse`."""
        self._library = bpe.parse(content)
        self._content = content
        self._bytes = bpe.token_bytes(self._library)
        self._added = bpe.added_tokens(self._library)
        self.vocab_size = len(self._bytes)

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        parts = [np.zeros(0, token_dtype(self.vocab_size))]
        for piece in self.pieces([text], ENCODED_AT_ONCE):
            shares = list(self.pieces([piece], bpe.PIECE))  # One for each core at a time.
            encoded = self._library.encode_batch_fast(shares, add_special_tokens=False)
            parts += [np.array(share.ids, parts[0].dtype) for share in encoded]
        return np.concatenate(parts)

    def pieces(self, blocks: Iterable[str], size: int) -> Iterator[str]:
        return pieces.of_words(blocks, size, self._added)

    def _to_bytes(self, ids: Ids) -> bytes:
        return b"".join(self._bytes[i] for i in ids)

    def count_bytes(self, ids: np.ndarray) -> int:
        return _total_of([len(token) for token in self._bytes], ids)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "bpe", "tokenizer": self._content}


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {text[error.start]!r} {_place(text, error.start)} is half of a surrogate "
            "pair and not a character: remove it"
        ) from None


def _place(text: str, position: int) -> str:
    """Where a character is, as editors count: from 1."""
    column = position - text.rfind("\n", 0, position)
    return f"in line {text.count(chr(10), 0, position) + 1:,}, column {column:,}"


def _total_of(lengths: list[int], ids: np.ndarray) -> int:
    """The sum of `lengths[i]` over all ids, in parts: the ids may be memory-mapped."""
    table, starts = np.array(lengths), range(0, len(ids), COUNTED_AT_ONCE)
    return sum(int(table[ids[start : start + COUNTED_AT_ONCE]].sum()) for start in starts)


def _code_points(text: str) -> np.ndarray:
    # A prompt from the command line can hold lone surrogates. They pass here and are refused by
    # name later, like any other unknown character.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
