"""A corpus of any size as token ids on disk, memory-mapped: a prepared corpus.

    prepared/mine/  tokens.bin  tokenizer.json  index.json

tokens.bin holds the ids of the whole text, little-endian, as one array, so that a window may lie
anywhere. It was written shard by shard, one behind the other: a shard is what is hashed and noted
at once, and what a kill costs (see preparation.py). Until all are there, the index is called
unfinished.json. No jax.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt_jax.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.files import replacing
from gpt_jax.text.corpus import absolute_source
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.text.tokenizer_file import absolute_kind, is_saved, load_tokenizer

FORMAT = 1
MARKS = {"format", "tokenizer_sha256"}  # By which an index is known for ours.
READ_AT_ONCE = 2**20  # Bytes.

Tell = Callable[[str, int, int], None]  # What is done, how many bytes of it, of how many.


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A corpus as token ids.

    Attributes:
      source: what `data.corpus` must say to get it again, paths made absolute.
      sha256: of what cannot change while a run uses it: its text, or its ids if it was prepared.
      ids: shape (tokens,), in memory or memory-mapped.
    """

    source: str
    sha256: str
    tokenizer: Tokenizer
    ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Index:
    """What is in a prepared corpus, and what it was made from.

    Attributes:
      asked: the settings it was made with, `DataConfig` as a dictionary, paths made absolute.
      sources: path, bytes and sha256 of every file, in order.
      tokenizer_sha256: of the file tokenizer.json.
      dtype: of an id: uint8, uint16 or uint32.
      shards: tokens, text_bytes (of the text they stand for, in UTF-8) and sha256 of each.
      sha256: of the file tokens.bin; empty while there is more to come.
    """

    asked: dict[str, Any]
    sources: tuple[dict[str, Any], ...]
    tokenizer_sha256: str
    dtype: str
    shards: tuple[dict[str, Any], ...] = ()
    sha256: str = ""

    @property
    def id_type(self) -> np.dtype:
        """Of an id in tokens.bin."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def tokens(self) -> int:
        """In all shards."""
        return sum(shard["tokens"] for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Of all shards."""
        return self.tokens * self.id_type.itemsize


def is_prepared(source: str) -> bool:
    """Whether `data.corpus = source` names a prepared corpus, finished or not, damaged or not."""
    folder = Path(absolute_source(source))
    return any(_is_ours(folder / name) for name in ("index.json", "unfinished.json"))


def _is_ours(path: Path) -> bool:
    """Whether an index was written here; other programs call their files so, too.

    One that cannot be read was, if a tokenizer of ours is beside it.
    """
    if not path.exists():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return is_saved(path.with_name("tokenizer.json"))
    return isinstance(content, dict) and content.keys() >= MARKS


def load(data: DataConfig) -> Tokens:
    """The prepared corpus that `data.corpus` names, memory-mapped.

    Only sizes are checked, and the tokenizer; `check` reads all.

    Raises:
      UserError: when it is not finished, not whole, or was made with another tokenizer than
        `data.tokenizer`, if that is not the default.
    """
    folder = Path(absolute_source(data.corpus))
    index = whole_index(folder)
    kind = index.asked["tokenizer"]
    if data.tokenizer != DataConfig().tokenizer and absolute_kind(data.tokenizer) != kind:
        raise UserError(
            f"data.tokenizer = {data.tokenizer!r}, but {folder} was prepared with {kind!r}: leave "
            "it out, or prepare the text again"
        )
    ids = np.memmap(folder / "tokens.bin", index.id_type, "r")
    return Tokens(str(folder), index.sha256, load_tokenizer(folder / "tokenizer.json"), ids)


def check(folder: Path, tell: Tell) -> Index:
    """Reads a prepared corpus again and compares the hash of every shard.

    Raises:
      UserError: when it is not finished or not whole; naming the first shard that is damaged.
    """
    index = whole_index(folder)
    check_shards(folder, index, tell)
    return index


def whole_index(folder: Path) -> Index:
    """The index of a corpus that is finished, has its tokenizer, and its ids in their size.

    Raises:
      UserError: for any other.
    """
    index = read_index(folder / "index.json")
    if index is None:
        raise UserError(
            f"{folder} is no finished corpus (it has no index.json): give the scripts/prepare.py "
            "command that began it again"
        )
    check_tokenizer(folder, index)
    size = _size(folder / "tokens.bin")
    if size != index.n_bytes:
        raise _damaged(folder / "tokens.bin", f"it has {size} bytes and not {index.n_bytes}")
    return index


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_tokenizer(folder: Path, index: Index) -> None:
    """Compares the tokenizer's file with its hash.

    Raises:
      UserError: when it is not what it was.
    """
    path = folder / "tokenizer.json"
    if not path.exists() or file_sha256(path) != index.tokenizer_sha256:
        raise _damaged(path, "it is not the one that made the tokens")


def check_shards(folder: Path, index: Index, tell: Tell) -> None:
    """Compares every shard in tokens.bin with its hash.

    Raises:
      UserError: naming the first that is not what it was.
    """
    done = 0
    if not _size(folder / "tokens.bin"):
        raise _damaged(folder / "tokens.bin", "it is empty or gone")
    with (folder / "tokens.bin").open("rb") as file:
        for number, shard in enumerate(index.shards):
            digest, size = hashlib.sha256(), shard["tokens"] * index.id_type.itemsize
            for block in blocks(file, size):
                digest.update(block)
                tell("checking", done := done + len(block), index.n_bytes)
            if digest.hexdigest() != shard["sha256"]:
                raise _damaged(folder / "tokens.bin", f"shard {number} is not what it was")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}): restore the file, or prepare the corpus again in another "
        "folder"
    )


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file, or all there are, some at a time."""
    while block := file.read(min(size, READ_AT_ONCE)):
        yield block
        size -= len(block)


def file_sha256(path: Path) -> str:
    """Of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_index(path: Path) -> Index | None:
    """The index in a file, or None where there is none.

    Raises:
      UserError: when it cannot be read, is of another format, or another program's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (found := content.pop("format")) != FORMAT:
            raise ValueError(f"it is of format {found!r}, this version reads {FORMAT}")
        sources, shards = (tuple(content.pop(name)) for name in ("sources", "shards"))
        index = Index(**content, sources=sources, shards=shards)
        if index.sha256 and not index.n_bytes:
            raise ValueError("it has no tokens")
        return index
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if not _is_ours(path):
            raise UserError(f"{path} is of no prepared corpus: name another folder") from error
        raise _damaged(path, str(error)) from error


def write_index(path: Path, index: Index) -> None:
    """Writes the index, as a whole."""
    content = {"format": FORMAT, **dataclasses.asdict(index)}
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))
