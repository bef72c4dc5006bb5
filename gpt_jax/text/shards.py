"""A prepared corpus: a text of any size as token ids on disk, memory-mapped.

    prepared/mine/  tokens.bin  tokenizer.json  index.json

tokens.bin holds the ids of the whole text as one little-endian array, so a window can lie anywhere.
It is written shard after shard (see preparation.py). A shard is hashed and recorded as a unit; a
kill loses at most one. Until all shards are written, the index is called unfinished.json. No jax.
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
MARKS = {"format", "tokenizer_sha256"}  # The keys by which we recognise our index.
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


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of a prepared corpus, and what it was made from.

    Attributes:
      asked: the requested settings: `DataConfig` as a dictionary, with absolute paths.
      sources: path, bytes and sha256 of every text file, in order.
      tokenizer_sha256: hash of tokenizer.json.
      dtype: type of an id: uint8, uint16 or uint32.
      shards: tokens, text_bytes (length of their text in UTF-8) and sha256 of every shard.
      sha256: hash of tokens.bin; empty until the corpus is finished.
    """

    asked: dict[str, Any]
    sources: tuple[dict[str, Any], ...]
    tokenizer_sha256: str
    dtype: str
    shards: tuple[dict[str, Any], ...] = ()
    sha256: str = ""

    @property
    def id_type(self) -> np.dtype:
        """The type of an id in tokens.bin."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def tokens(self) -> int:
        """Number of tokens in all shards."""
        return sum(shard["tokens"] for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return self.tokens * self.id_type.itemsize


def is_prepared(source: str) -> bool:
    """Whether `data.corpus = source` is a prepared corpus, even if unfinished or damaged."""
    folder = Path(absolute_source(source))
    return any(_is_ours(folder / name) for name in ("index.json", "unfinished.json"))


def _is_ours(path: Path) -> bool:
    """Whether an index is ours: other programs use the same file names.

    An index that cannot be read is ours if a tokenizer of ours is beside it.
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

    Only the sizes and the tokenizer are checked; `check` reads everything.

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
    ids = np.memmap(folder / "tokens.bin", index.id_type, "r")
    return Tokens(str(folder), index.sha256, load_tokenizer(folder / "tokenizer.json"), ids)


def check(folder: Path, report: Report) -> Index:
    """Reads a whole prepared corpus and compares every hash. Raises as the two functions below."""
    index = whole_index(folder)
    check_shards(folder, index, report)
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
        raise _damaged(folder / "tokens.bin", f"it has {size} bytes instead of {index.n_bytes}")
    return index


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_tokenizer(folder: Path, index: Index) -> None:
    """Compares tokenizer.json with its hash. Raises UserError if it has changed."""
    path = folder / "tokenizer.json"
    if not path.exists() or file_sha256(path) != index.tokenizer_sha256:
        raise _damaged(path, "it is not the one that made the tokens")


def check_shards(folder: Path, index: Index, report: Report) -> None:
    """Compares every shard with its hash. Raises UserError for the first that has changed."""
    done = 0
    if not _size(folder / "tokens.bin"):
        raise _damaged(folder / "tokens.bin", "it is empty or missing")
    with (folder / "tokens.bin").open("rb") as file:
        for number, shard in enumerate(index.shards):
            digest, size = hashlib.sha256(), shard["tokens"] * index.id_type.itemsize
            for block in blocks(file, size):
                digest.update(block)
                report("checking", done := done + len(block), index.n_bytes)
            if digest.hexdigest() != shard["sha256"]:
                raise _damaged(folder / "tokens.bin", f"shard {number} has changed")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}): restore the file, or prepare the corpus again in another "
        "folder"
    )


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file, or all the rest if it is shorter, in blocks."""
    while block := file.read(min(size, READ_AT_ONCE)):
        yield block
        size -= len(block)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_index(path: Path) -> Index | None:
    """The index in a file; None without a file. Raises UserError if it is damaged or not ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (found := content.pop("format")) != FORMAT:
            raise ValueError(f"its format is {found!r}, and this version reads format {FORMAT}")
        sources, shards = (tuple(content.pop(name)) for name in ("sources", "shards"))
        index = Index(**content, sources=sources, shards=shards)
        if index.sha256 and not index.n_bytes:
            raise ValueError("it has no tokens")
        return index
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if not _is_ours(path):
            raise UserError(f"{path} belongs to another program: give another folder") from error
        raise _damaged(path, str(error)) from error


def write_index(path: Path, index: Index) -> None:
    """Writes the index, atomically."""
    content = {"format": FORMAT, **dataclasses.asdict(index)}
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))
