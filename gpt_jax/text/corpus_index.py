"""index.json, which says what a prepared corpus holds and what it was made from.

Until all shards are written, it is called unfinished.json. Nothing in it is trusted. No jax.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.files import read_json, replacing
from gpt_jax.text.tokenizer_file import is_saved

FORMAT = 1
MARKS = {"format", "tokenizer_sha256"}  # The keys by which we recognise our index.
# The fields of an index, of a source and of a shard, with their types.
FIELDS = {"format": int, "asked": dict, "sources": list, "tokenizer_sha256": str, "dtype": str}
FIELDS |= {"shards": list, "sha256": str}
SOURCE = {"path": str, "bytes": int, "sha256": str}
SHARD = {"tokens": int, "text_bytes": int, "sha256": str}
DTYPES = ("uint8", "uint16", "uint32")


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


def is_ours(path: Path) -> bool:
    """Whether an index is ours: other programs use the same file names.

    An index that cannot be read is ours if a tokenizer of ours is beside it.
    """
    if not path.exists():
        return False
    try:
        return read_json(path).keys() >= MARKS
    except (OSError, ValueError):
        return is_saved(path.with_name("tokenizer.json"))


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file of a prepared corpus that is not what was written."""
    return UserError(
        f"{path} is damaged ({reason}): restore the file, or prepare the corpus again in another "
        "folder"
    )


def read_index(path: Path) -> Index | None:
    """The index in a file; None without a file. Raises UserError if it is damaged or not ours."""
    try:
        return _parsed(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if not is_ours(path):
            raise UserError(f"{path} belongs to another program: give another folder") from error
        raise damaged(path, str(error)) from error


def _parsed(content: dict[str, Any]) -> Index:
    """The index in a JSON object. Raises ValueError if a field is missing or of another type."""
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise ValueError(f"its format is {found!r}, and this version reads format {FORMAT}")
    _check_fields("it", content, FIELDS)
    for name, fields in (("sources", SOURCE), ("shards", SHARD)):
        for number, row in enumerate(content[name]):
            _check_fields(f"{name}[{number}]", row, fields)
    if not isinstance(content["asked"].get("tokenizer"), str):
        raise ValueError("it does not say which tokenizer was asked for")
    sources, shards = (tuple(content[name]) for name in ("sources", "shards"))
    values = {name: content[name] for name in FIELDS if name != "format"}
    index = Index(**values | {"sources": sources, "shards": shards})
    if index.dtype not in DTYPES:
        raise ValueError(f"its dtype is {index.dtype!r}, and not one of {', '.join(DTYPES)}")
    if index.sha256 and not index.n_bytes:
        raise ValueError("it has no tokens")
    return index


def _check_fields(place: str, row: Any, fields: dict[str, type]) -> None:
    """Raises ValueError unless `row` has just these fields, of these types, and none negative."""
    if not isinstance(row, dict) or row.keys() != fields.keys():
        raise ValueError(f"{place} does not have the fields {', '.join(fields)}")
    for name, kind in fields.items():
        if type(row[name]) is not kind or (kind is int and row[name] < 0):
            raise ValueError(f"{name} of {place} is {row[name]!r:.80}")


def write_index(path: Path, index: Index) -> None:
    """Writes the index, atomically."""
    content = {"format": FORMAT, **dataclasses.asdict(index)}
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))
