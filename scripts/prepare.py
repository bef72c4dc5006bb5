"""Writes text of any size as token ids that training reads in constant memory.

    python scripts/prepare.py --corpus="texts/*.txt" --out=prepared/mine
    python scripts/train.py --config.data.corpus=prepared/mine
    python scripts/prepare.py --check --out=prepared/mine

If it is stopped or killed, the same command resumes after the last whole shard.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import command_line
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gpt_jax.config import POSITIVE, DataConfig, checked
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.runs import one_writer
from gpt_jax.text import preparation, shards
from gpt_jax.text.corpus_index import Index

DATA = DataConfig()
FLAGS = (
    ("corpus", str, "", "UTF-8 text: a file, a folder (its .txt files) or a glob."),
    ("out", str, "", "Folder for the ids."),
    ("tokenizer", str, DATA.tokenizer, "char, byte, bpe, or a path as for config.data.tokenizer."),
    ("bpe_vocab_size", int, DATA.bpe_vocab_size, "Maximum vocabulary size of bpe."),
    ("shard_tokens", int, 2**24, "Ids per shard, the unit that is written and hashed."),
    ("val_fraction", float, DATA.val_fraction, "Share of the text, at its end, hidden from bpe."),
    ("check", bool, False, "Read the ids in --out and compare their hashes."),
)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(prepare, FLAGS, argv, __doc__ or "")


def prepare(values: flags.FlagValues, words: list[str]) -> None:
    """Prepares or checks a folder, and prints what it holds."""
    if not values.out:
        raise UserError("--out is missing: name the folder for the ids, such as prepared/mine")
    folder = absolute(values.out)
    if values.check:
        with progress() as tell:
            index = shards.check(folder, tell)
    else:
        index = made(values, folder)
    print(
        f"{folder}: {index.tokens:,} tokens of {index.dtype} in {len(index.shards)} shard(s), from "
        f"{sum(source['bytes'] for source in index.sources):,} bytes of text in "
        f"{len(index.sources)} file(s){', all unchanged' if values.check else ''}"
    )


def made(values: flags.FlagValues, folder: Path) -> Index:
    """The index of the corpus, after writing the missing shards."""
    if not values.corpus:
        raise UserError("--corpus is missing: name a file, folder or glob of UTF-8 text")
    data = DataConfig(
        corpus=values.corpus,
        tokenizer=values.tokenizer,
        bpe_vocab_size=values.bpe_vocab_size,
        val_fraction=values.val_fraction,
    )
    shard_tokens = checked("shard_tokens", values.shard_tokens, int, POSITIVE)
    with one_writer(folder), progress() as tell:
        return preparation.prepare(data, folder, shard_tokens, tell)


@contextmanager
def progress() -> Iterator[shards.Report]:
    """A bar on stderr, if that is a terminal, and the function that moves it."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(bar_width=16),
        TextColumn("{task.description}: {task.completed:,} of {task.total:,} bytes"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total, completed=done)
        bar.update(tasks[what], completed=done, total=total)

    with bar:
        yield tell


if __name__ == "__main__":
    sys.exit(main(sys.argv))
