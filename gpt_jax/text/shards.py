"""A prepared corpus: a text of any size as token ids on disk, memory-mapped.

    prepared/mine/  tokens.bin  tokenizer.json  index.json

tokens.bin holds the ids of the whole text as one little-endian array, so a window can lie anywhere.
It is written shard after shard (see preparation.py). A shard is hashed and recorded as a unit; a
kill loses at most one. corpus_index.py reads and writes the index. No jax.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt_jax.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.files import open_file
from gpt_jax.text.corpus import absolute_source
from gpt_jax.text.corpus_index import Index, damaged, is_ours, read_index
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.text.tokenizer_file import absolute_kind, load_tokenizer

READ_AT_ONCE = 2**20  # Bytes.

Report = Callable[[str, int, int], None]  # Takes the activity, the bytes done, and the total.


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A corpus as token ids.

    Attributes:
      source: the value of `data.corpus` that gives it again, with an absolute path.
      sha256: hash of what must not change while a run uses it: the text, or the prepared ids.
      ids: shape (tokens,), in memory or memory-mapped.
    """

    source: str
    sha256: str
    tokenizer: Tokenizer
    ids: np.ndarray


def is_prepared(source: str) -> bool:
    """Whether `data.corpus = source` is a prepared corpus, even if unfinished or damaged."""
    folder = Path(absolute_source(source))
    return any(is_ours(folder / name) for name in ("index.json", "unfinished.json"))


def load(data: DataConfig) -> Tokens:
    """The prepared corpus that `data.corpus` names, memory-mapped.

    The sizes, the tokenizer and the range of the ids are checked; `check` compares all hashes.

    Raises:
      UserError: if it is unfinished or damaged, or if `data.tokenizer` is not the default and not
        the tokenizer that it was prepared with.
    """
    folder = Path(absolute_source(data.corpus))
    index = whole_index(folder)
    kind = index.asked["tokenizer"]
    if data.tokenizer != DataConfig().tokenizer and absolute_kind(data.tokenizer) != kind:
        raise UserError(
            f"data.tokenizer = {data.tokenizer!r}, but {folder} was prepared with {kind!r}: "
            "remove this setting, or prepare the text again"
        )
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    check_ids(folder, index, tokenizer.vocab_size)
    ids = np.memmap(folder / "tokens.bin", index.id_type, "r")
    return Tokens(str(folder), index.sha256, tokenizer, ids)


def check(folder: Path, report: Report) -> Index:
    """Reads a whole prepared corpus and compares every hash. Raises as the functions below."""
    index = whole_index(folder)
    check_shards(folder, index, report)
    check_ids(folder, index, load_tokenizer(folder / "tokenizer.json").vocab_size)
    return index


def whole_index(folder: Path) -> Index:
    """The index of a finished corpus, after checking its tokenizer and the size of tokens.bin.

    Raises UserError if it is unfinished or damaged.
    """
    index = read_index(folder / "index.json")
    if index is None:
        raise UserError(
            f"{folder} is not a finished corpus (it has no index.json): repeat the "
            "scripts/prepare.py command that started it"
        )
    check_tokenizer(folder, index)
    size = _size(folder / "tokens.bin")
    if size != index.n_bytes:
        raise damaged(folder / "tokens.bin", f"it has {size} bytes instead of {index.n_bytes}")
    return index


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def check_tokenizer(folder: Path, index: Index) -> None:
    """Compares tokenizer.json with its hash. Raises UserError if it has changed."""
    path = folder / "tokenizer.json"
    try:
        if file_sha256(path) == index.tokenizer_sha256:
            return
    except OSError as error:
        raise damaged(path, str(error.strerror)) from error
    raise damaged(path, "it is not the one that made the tokens")


def check_shards(folder: Path, index: Index, report: Report) -> None:
    """Compares every shard with its hash. Raises UserError for the first that has changed."""
    path, done = folder / "tokens.bin", 0
    if not _size(path):
        raise damaged(path, "it is empty or missing")
    with open_file(path) as file:
        for number, shard in enumerate(index.shards):
            digest, size = hashlib.sha256(), shard["tokens"] * index.id_type.itemsize
            for block in blocks(file, size):
                digest.update(block)
                report("checking", done := done + len(block), index.n_bytes)
            if digest.hexdigest() != shard["sha256"]:
                raise damaged(path, f"shard {number} has changed")


def check_ids(folder: Path, index: Index, vocab_size: int) -> None:
    """Raises UserError, with the shard, if an id is not in the vocabulary: it would give NaN.

    It reads all of tokens.bin, at about the speed of the disk, unless every id is possible.
    """
    if np.iinfo(index.id_type).max < vocab_size:
        return
    with open_file(folder / "tokens.bin") as file:
        for number, shard in enumerate(index.shards):
            ids = (
                np.frombuffer(block, index.id_type).max()
                for block in blocks(file, shard["tokens"] * index.id_type.itemsize)
            )
            if (largest := max(ids, default=0)) >= vocab_size:
                reason = f"shard {number} has the id {largest}, and its tokenizer {vocab_size} ids"
                raise damaged(folder / "tokens.bin", reason)


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file, or all the rest if it is shorter, in blocks."""
    while block := file.read(min(size, READ_AT_ONCE)):
        yield block
        size -= len(block)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
