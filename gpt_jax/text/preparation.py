"""Makes a prepared corpus: text files of any size -> token ids on disk, shard after shard.

Memory does not grow with the text: it is read, encoded and written a piece at a time. The text is
the one that corpus.py makes of the same files (joined by line breaks), and so are its ids. A
preparation that was killed goes on behind its last whole shard. No jax.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt_jax.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.text.bpe import pieces
from gpt_jax.text.corpus import NAMES, absolute_source, find_files, text_blocks
from gpt_jax.text.shards import (
    Index,
    Tell,
    blocks,
    check_shards,
    check_tokenizer,
    file_sha256,
    read_index,
    whole_index,
    write_index,
)
from gpt_jax.text.tokenizer import ENCODED_AT_ONCE, Tokenizer, token_dtype
from gpt_jax.text.tokenizer_file import (
    absolute_kind,
    file_content,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)

# Byte pairs are counted in so much of the training part at most, spread over it: the library keeps
# every distinct word in memory, and takes a minute for 100 MB.
COUNTED_BYTES = 10**8


def prepare(data: DataConfig, folder: Path, shard_tokens: int, tell: Tell) -> Index:
    """Makes a prepared corpus in `folder`, or goes on with it; one that is finished stays as it is.

    Args:
      data: its files and tokenizer. The merges of byte pairs are made of the text without the last
        `val_fraction`.
      shard_tokens: a shard ends with the first piece of text that gives it so many.
      tell: is told again and again how far it is.

    Raises:
      UserError: when a file cannot be read, is not UTF-8 or has changed since the beginning, or
        `folder` was made with other settings, is damaged, or holds other files.
    """
    if data.corpus in NAMES:
        raise UserError(
            f"{data.corpus} is not prepared, it is small: train with --config.data.corpus="
            f"{data.corpus}, or give --corpus a file, folder or glob of UTF-8 text"
        )
    files = find_files(data.corpus)
    kind, source = absolute_kind(data.tokenizer), absolute_source(data.corpus)
    asked = dataclasses.asdict(data) | {"corpus": source, "tokenizer": kind}
    sources = _described(files, tell)
    if not any(text_blocks(files)):
        raise UserError(f"data.corpus = {data.corpus!r} is empty: give a text with something in it")
    index = read_index(folder / "index.json") or read_index(folder / "unfinished.json")
    if index is None:
        index = _begin(data, folder, Index(asked, sources, "", ""), tell)
    _check_same(folder, index, asked, sources)
    return whole_index(folder) if index.sha256 else _go_on(folder, index, shard_tokens, tell)


def _check_same(
    folder: Path, index: Index, asked: dict[str, Any], sources: tuple[dict[str, Any], ...]
) -> None:
    if differ := [name for name, value in asked.items() if index.asked.get(name) != value]:
        told = "; ".join(f"{n} was {index.asked.get(n)!r} and is now {asked[n]!r}" for n in differ)
        raise UserError(f"{folder} holds another corpus ({told}): give another --out")
    if sources != index.sources:
        old = {source["path"]: source for source in index.sources}
        changed = [s["path"] for s in sources if old.pop(s["path"], None) != s] + list(old)
        raise UserError(
            f"the files of {folder} have changed since it was begun ({', '.join(changed[:3])}): "
            "restore them, or give another --out"
        )


def _described(files: Iterable[Path], tell: Tell) -> tuple[dict[str, Any], ...]:
    """Path, bytes and SHA-256 of every file."""
    sizes = {path: path.stat().st_size for path in files}
    found, done = [], 0
    for path, size in sizes.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for block in blocks(file, size):
                digest.update(block)
                tell("hashing", done := done + len(block), sum(sizes.values()))
        found.append({"path": str(path), "bytes": size, "sha256": digest.hexdigest()})
    return tuple(found)


def _begin(data: DataConfig, folder: Path, index: Index, tell: Tell) -> Index:
    """Makes the tokenizer, and notes with what everything begins."""
    for name in ("config.json", "tokens.bin"):  # Of a run, a GPT-2, another program.
        if (folder / name).exists():
            raise _not_ours(folder / name)
    total = sum(source["bytes"] for source in index.sources)
    texts = _told(pieces(text_blocks(_files(index))), "vocabulary", 0, total, tell)
    if data.tokenizer == "bpe":
        texts = _training_part(texts, total * (1 - data.val_fraction))
    tokenizer = make_tokenizer(data.tokenizer, texts, data.bpe_vocab_size)
    path = folder / "tokenizer.json"
    if path.exists() and path.read_bytes() != file_content(tokenizer):  # Else a kill left it.
        raise _not_ours(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, path)
    sha256, dtype = file_sha256(path), token_dtype(tokenizer.vocab_size).name
    index = dataclasses.replace(index, tokenizer_sha256=sha256, dtype=dtype)
    write_index(folder / "unfinished.json", index)
    return index


def _not_ours(path: Path) -> UserError:
    return UserError(
        f"{path} is there and of no preparation, and would be lost: give another --out"
    )


def _training_part(texts: Iterable[str], limit: float) -> Iterator[str]:
    """The first `limit` bytes of a text, or as many pieces spread over them as are counted."""
    stride, done = math.ceil(limit / COUNTED_BYTES), 0
    for number, text in enumerate(texts):
        content = text.encode("utf-8")[: int(limit) - done]
        done += len(content)
        if not content:
            return
        if number % stride == 0:
            yield content.decode("utf-8", errors="ignore")


def _go_on(folder: Path, index: Index, shard_tokens: int, tell: Tell) -> Index:
    """Writes the shards that are still to come, and the index when all are there."""
    check_tokenizer(folder, index)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if index.shards:
        check_shards(folder, index, tell)
    total = sum(source["bytes"] for source in index.sources)
    done = sum(shard["text_bytes"] for shard in index.shards)
    texts = pieces(text_blocks(_files(index), done), ENCODED_AT_ONCE)
    texts = _told(texts, "tokens", done, total, tell)
    with (folder / "tokens.bin").open("ab") as file:
        file.truncate(index.n_bytes)  # The shard that a kill cut short.
        while shard := _write_shard(file, texts, tokenizer, index.id_type, shard_tokens):
            index = dataclasses.replace(index, shards=(*index.shards, shard))
            write_index(folder / "unfinished.json", index)
    _check_same(folder, index, index.asked, _described(_files(index), tell))
    index = dataclasses.replace(index, sha256=file_sha256(folder / "tokens.bin"))
    write_index(folder / "index.json", index)
    (folder / "unfinished.json").unlink()
    return index


def _write_shard(
    file: BinaryIO, texts: Iterator[str], tokenizer: Tokenizer, dtype: np.dtype, shard_tokens: int
) -> dict[str, Any] | None:
    """Writes pieces of text until the shard is full; None where none is left."""
    digest, tokens, text_bytes = hashlib.sha256(), 0, 0
    for text in texts:
        ids = tokenizer.encode(text).astype(dtype)
        file.write(ids.tobytes())
        digest.update(ids.tobytes())
        tokens, text_bytes = tokens + len(ids), text_bytes + len(text.encode("utf-8"))
        if tokens >= shard_tokens:
            break
    file.flush()
    os.fsync(file.fileno())  # Before it is noted.
    if not tokens:
        return None
    return {"tokens": tokens, "text_bytes": text_bytes, "sha256": digest.hexdigest()}


def _files(index: Index) -> list[Path]:
    return [Path(source["path"]) for source in index.sources]


def _told(texts: Iterator[str], what: str, done: int, total: int, tell: Tell) -> Iterator[str]:
    """The same texts; each is told of when the next is asked for."""
    for text in texts:
        yield text
        tell(what, done := done + len(text.encode("utf-8")), total)
