"""Compares runs: a table, and a picture of their losses against steps and time.

    python scripts/compare.py runs/tiny runs/small
    python scripts/compare.py runs/* --out=compare.png

What is not a run with a log is left out, with a note. Losses are validation
losses in nats per token, or in bits per byte of the text if the tokenizers of
the runs differ. Below each run, the table lists the settings that differ from
those of the first run.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
from absl import flags

from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.runs import existing_record
from gpt_jax.training import curves, pictures
from gpt_jax.training.clock import duration
from gpt_jax.training.display import facts
from gpt_jax.training.log import elapsed_s, read_metrics

COLUMNS = ("steps", "last loss", "best loss", "at step", "time", "tokens/s")
BITS = "bits per byte"
WIDTHS = (7, 9, 9, 7, 8, 9)
FLAGS = (("out", str, "compare.png", "File for the picture (PNG)."),)
Logged = tuple[Config, list[dict[str, Any]]]


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(compare, FLAGS, argv, __doc__ or "", takes_words=True)


def compare(values: flags.FlagValues, words: list[str]) -> None:
    """Prints the table and draws the picture."""
    if not words:
        raise UserError("no run is named: give one or more folders, such as runs/tiny runs/small")
    runs, unit = in_one_unit(read_runs(words))
    command_line.say(table(runs, width()))
    if unit == BITS:
        command_line.say("\nlosses: bits per byte of the text, because the tokenizers differ")
    logs = {name: entries for name, (_, entries) in runs.items()}
    try:
        pictures.draw_comparison(logs, absolute(values.out), unit)
    except OSError as error:
        raise UserError(
            f"--out={values.out} cannot be written ({error.strerror}): name a file in a folder "
            "that exists and may be written to"
        ) from error
    command_line.say(f"\ncurves: {values.out}")


def width() -> int:
    """Columns of the table. A file or a pipe gets one line per run."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000


def read_runs(words: Sequence[str]) -> dict[str, Logged]:
    """The runs in the folders named, with a note for each that cannot be read.

    Raises:
      UserError: if none is left.
    """
    runs, notes = {}, []
    for word in words:
        try:
            runs[os.path.normpath(word)] = read_run(absolute(word))
        except (UserError, OSError) as error:
            notes.append(str(error))
    if not runs:
        many = f"none of {', '.join(words)} is a run with a log: name folders such as runs/tiny"
        raise UserError(many if len(words) > 1 else notes[0])
    for note in notes:
        command_line.tell(f"note: left out: {note}")
    return runs


def in_one_unit(runs: dict[str, Logged]) -> tuple[dict[str, Logged], str]:
    """The runs with their losses in one unit, and the unit.

    Nats per token of different tokenizers cannot be compared, so they become bits per byte.
    """
    if len({token_kind(config) for config, _ in runs.values()}) == 1:
        return runs, f"nats per {curves.unit(next(iter(runs.values()))[0].data.tokenizer)}"
    bits = {name: curves.in_bits_per_byte(entries) for name, (_, entries) in runs.items()}
    if without := [name for name, entries in bits.items() if entries is None]:
        command_line.tell(
            "note: the tokenizers differ, so losses in nats per token cannot be compared; they are "
            f"not in bits per byte because {', '.join(without)} did not log them (no evaluation "
            "yet, or an older version)"
        )
        return runs, "nats per token"
    return {name: (config, bits[name] or []) for name, (config, _) in runs.items()}, BITS


def token_kind(config: Config) -> tuple[Any, ...]:
    """What decides which tokens a run has; characters count as one kind."""
    c = config.data
    return (c.tokenizer, c.corpus, c.bpe_vocab_size) if c.tokenizer == "bpe" else (c.tokenizer,)


def read_run(workdir: Path) -> Logged:
    """The configuration and the log of a run.

    Raises:
      UserError: if there is no run, or it has no log yet.
    """
    if workdir.is_file():
        raise UserError(f"{workdir} is a file: name the folder of a run, such as runs/tiny")
    config = existing_record(workdir).config
    entries = read_metrics(workdir / "metrics.jsonl", notes=True)
    if not entries:
        raise UserError(f"{workdir} has no log yet (metrics.jsonl): train it for some steps first")
    return config, entries


def table(runs: Mapping[str, Logged], width: int) -> str:
    """A line for each run, and below it the settings in which it differs from the first.

    A name that does not fit beside the figures has a line of its own.
    """
    [first, *_] = [config for config, _ in runs.values()]
    room = max(3, min(max(map(len, runs)), width - len(row(COLUMNS)) - 1))
    lines = [f"{'run':<{room}}{row(COLUMNS)}"]
    for name, (config, entries) in runs.items():
        if len(name) > room:
            lines.append(name)
        lines.append(f"{name if len(name) <= room else '':<{room}}{row(figures(entries))}")
        if differing := first.differences(config):
            settings = [f"{c['field'].partition('.')[2]}={c['is']}" for c in differing]
            lines.append(facts([("", ", ".join(settings))], width, 4))
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """The figures of a line, aligned to the right."""
    return "".join(f"  {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def figures(entries: list[dict[str, Any]]) -> list[str]:
    """Steps, last and best validation loss, the step of the best, time, median speed."""
    validation = curves.points(entries, "step", "val/loss")
    best = curves.best(entries)
    speeds = sorted(speed for _, speed in curves.points(entries, "step", "tokens_per_s"))
    return [
        f"{entries[-1]['step']:,}",
        f"{validation[-1][1]:.4f}" if validation else "-",
        f"{best[1]:.4f}" if best else "-",
        f"{best[0]:,}" if best else "-",
        duration(elapsed_s(entries)),
        f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
