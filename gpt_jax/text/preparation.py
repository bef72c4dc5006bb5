"""Makes a prepared corpus: text files of any size -> token ids on disk, shard after shard.

This is for texts larger than memory (scripts/prepare.py); tokens.py chooses what a run trains on.
Memory does not grow with the text, which is read, encoded and written piece by piece. The text and
its ids are the same as if corpus.py had read the files: they are joined by line breaks. After a
kill, the preparation resumes after its last complete shard. No jax.
"""

import contextlib
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
from gpt_jax.files import open_file, read_file, special_kind
from gpt_jax.text import bpe, pieces, shards, tokenizer_file
from gpt_jax.text.corpus import NAMES, absolute_source, empty_corpus, find_files
from gpt_jax.text.corpus_index import Index, read_index, write_index
from gpt_jax.text.shards import Report, whole_index
from gpt_jax.text.tokenizer import ENCODED_AT_ONCE, Tokenizer, token_dtype
from gpt_jax.text.utf8_files import text_blocks

# BPE learns from at most this much of the training text, spread evenly over it: the library keeps
# every distinct word in memory, and takes a minute for 100 MB.
BPE_BYTES = 10**8


def prepare(data: DataConfig, folder: Path, shard_tokens: int, report: Report) -> Index:
    """Makes a prepared corpus in `folder`, or resumes making it. A finished one stays as it is.

    Args:
      data: the files and the tokenizer. BPE learns from the text without its last `val_fraction`.
      shard_tokens: a shard ends with the first piece of text that brings it to this many tokens.
      report: is called repeatedly with the progress.

    Raises:
      UserError: if a file cannot be read, is not UTF-8 or has changed since the start, or if
        `folder` was made with other settings, is damaged, or holds other files.
    """
    if data.corpus in NAMES:
        raise UserError(
            f"{data.corpus} is small and needs no preparation: train with --config.data.corpus="
            f"{data.corpus}, or give --corpus a file, folder or glob of UTF-8 text"
        )
    files = find_files(data.corpus)
    kind, source = tokenizer_file.absolute_kind(data.tokenizer), absolute_source(data.corpus)
    settings = dataclasses.asdict(data) | {"corpus": source, "tokenizer": kind}
    sources = _describe(files, report)
    if not any(text_blocks(files)):
        raise empty_corpus(data.corpus)
    index = read_index(folder / "index.json") or read_index(folder / "unfinished.json")
    if index is None:
        index = _start(data, folder, Index(settings, sources, "", ""), report)
    _check_same(folder, index, settings, sources)
    return whole_index(folder) if index.sha256 else _finish(folder, index, shard_tokens, report)


def _check_same(
    folder: Path, index: Index, settings: dict[str, Any], sources: tuple[dict[str, Any], ...]
) -> None:
    """Raises UserError if the settings or the files differ from those in the index."""
    old_settings = index.asked
    differ = [name for name, value in settings.items() if old_settings.get(name) != value]
    if differ:
        changes = (f"{n} was {old_settings.get(n)!r} and is now {settings[n]!r}" for n in differ)
        raise UserError(
            f"{folder} was prepared with other settings ({'; '.join(changes)}): give another --out"
        )
    if sources != index.sources:
        old = {source["path"]: source for source in index.sources}
        changed = [s["path"] for s in sources if old.pop(s["path"], None) != s] + list(old)
        raise UserError(
            f"text files have changed since {folder} was started ({', '.join(changed[:3])}): "
            "restore them, or give another --out"
        )


def _describe(files: Iterable[Path], report: Report) -> tuple[dict[str, Any], ...]:
    """Path, size in bytes and SHA-256 of every file."""
    sizes = {path: path.stat().st_size for path in files}
    found, done = [], 0
    for path, size in sizes.items():
        digest = hashlib.sha256()
        with open_file(path) as file:
            for block in shards.blocks(file, size):
                digest.update(block)
                report("hashing", done := done + len(block), sum(sizes.values()))
        found.append({"path": str(path), "bytes": size, "sha256": digest.hexdigest()})
    return tuple(found)


def _start(data: DataConfig, folder: Path, index: Index, report: Report) -> Index:
    """Makes the tokenizer, and records the start in unfinished.json."""
    for name in ("config.json", "tokens.bin"):  # A run, a GPT-2 folder, or another program.
        if (folder / name).exists():
            raise _not_ours(folder / name)
    total = sum(source["bytes"] for source in index.sources)
    texts = _reporting(text_blocks(_files(index)), "vocabulary", 0, total, report)
    if data.tokenizer == "bpe":
        words = pieces.of_words(texts, bpe.PIECE, [bpe.END_OF_TEXT])
        texts = _training_part(words, total * (1 - data.val_fraction))
    tokenizer = tokenizer_file.make_tokenizer(data.tokenizer, texts, data.bpe_vocab_size)
    path = folder / "tokenizer.json"  # If it is the same, a killed preparation left it.
    if path.exists() and read_file(path) != tokenizer_file.file_content(tokenizer):
        raise _not_ours(path)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_file.save_tokenizer(tokenizer, path)
    sha256, dtype = shards.file_sha256(path), token_dtype(tokenizer.vocab_size).name
    index = dataclasses.replace(index, tokenizer_sha256=sha256, dtype=dtype)
    write_index(folder / "unfinished.json", index)
    return index


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path} exists but does not belong to this preparation: give another --out")


def _training_part(texts: Iterable[str], limit: float) -> Iterator[str]:
    """The first `limit` bytes of a text; if more than BPE_BYTES, pieces spread evenly over them."""
    stride, done = math.ceil(limit / BPE_BYTES), 0
    for number, text in enumerate(texts):
        content = text.encode("utf-8")[: int(limit) - done]
        done += len(content)
        if not content:
            return
        if number % stride == 0:
            yield content.decode("utf-8", errors="ignore")


def _finish(folder: Path, index: Index, shard_tokens: int, report: Report) -> Index:
    """Writes the missing shards and then the final index."""
    shards.check_tokenizer(folder, index)
    tokenizer = tokenizer_file.load_tokenizer(folder / "tokenizer.json")
    if index.shards:
        shards.check_shards(folder, index, report)
    total = sum(source["bytes"] for source in index.sources)
    done = sum(shard["text_bytes"] for shard in index.shards)
    texts = tokenizer.pieces(text_blocks(_files(index), done), ENCODED_AT_ONCE)
    texts = _reporting(texts, "tokens", done, total, report)
    if special_kind(folder / "tokens.bin"):
        raise _not_ours(folder / "tokens.bin")
    with _removing_if_refused(folder), (folder / "tokens.bin").open("ab") as file:
        file.truncate(index.n_bytes)  # Removes a shard that a kill cut short.
        while shard := _write_shard(file, texts, tokenizer, index, shard_tokens):
            index = dataclasses.replace(index, shards=(*index.shards, shard))
            write_index(folder / "unfinished.json", index)
    _check_same(folder, index, index.asked, _describe(_files(index), report))
    index = dataclasses.replace(index, sha256=shards.file_sha256(folder / "tokens.bin"))
    write_index(folder / "index.json", index)
    (folder / "unfinished.json").unlink(missing_ok=True)
    return index


@contextlib.contextmanager
def _removing_if_refused(folder: Path) -> Iterator[None]:
    """Removes the preparation if its text is refused: none of it fits the corrected text."""
    try:
        yield
    except UserError:
        for name in ("tokens.bin", "unfinished.json", "tokenizer.json"):
            (folder / name).unlink()
        raise


def _write_shard(
    file: BinaryIO, texts: Iterator[str], tokenizer: Tokenizer, index: Index, shard_tokens: int
) -> dict[str, Any] | None:
    """Writes pieces of text until the shard is full. Returns its facts; None if no text is left."""
    digest, tokens, text_bytes = hashlib.sha256(), 0, 0
    start = sum(shard["text_bytes"] for shard in index.shards)
    for text in texts:
        ids = _encoded(tokenizer, text, start + text_bytes).astype(index.id_type)
        file.write(ids.tobytes())
        digest.update(ids.tobytes())
        tokens, text_bytes = tokens + len(ids), text_bytes + len(text.encode("utf-8"))
        if tokens >= shard_tokens:
            break
    file.flush()
    os.fsync(file.fileno())  # It must be on disk before the index records it.
    if not tokens:
        return None
    return {"tokens": tokens, "text_bytes": text_bytes, "sha256": digest.hexdigest()}


def _encoded(tokenizer: Tokenizer, text: str, start: int) -> np.ndarray:
    """The ids of a piece of text. An error says where the piece starts, in bytes of the text."""
    try:
        return tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"the text after its first {start:,} bytes is refused: {error}") from error


def _files(index: Index) -> list[Path]:
    return [Path(source["path"]) for source in index.sources]


def _reporting(
    texts: Iterator[str], activity: str, done: int, total: int, report: Report
) -> Iterator[str]:
    """The same texts. Each is reported as done when the next one is taken."""
    for text in texts:
        yield text
        report(activity, done := done + len(text.encode("utf-8")), total)
