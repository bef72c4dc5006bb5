"""Compares runs: a table, and a picture of their losses against steps and time.

    python scripts/compare.py runs/tiny runs/small
    python scripts/compare.py runs/* --out=compare.png

Losses are validation losses in nats per token. Below each run, the table lists
the settings that differ from those of the first run.
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
from gpt_jax.runs import existing_record
from gpt_jax.training import curves, pictures
from gpt_jax.training.clock import duration
from gpt_jax.training.display import facts
from gpt_jax.training.log import elapsed_s, read_metrics

COLUMNS = ("steps", "last loss", "best loss", "at step", "time", "tokens/s")
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
    runs = {os.path.normpath(word): read_run(Path(word).expanduser()) for word in words}
    print(table(runs, width()), flush=True)
    logs = {name: entries for name, (_, entries) in runs.items()}
    units = {curves.unit(config.data.tokenizer) for config, _ in runs.values()}
    unit = units.pop() if len(units) == 1 else "token"
    try:
        pictures.draw_comparison(logs, Path(values.out).expanduser(), unit)
    except OSError as error:
        raise UserError(
            f"--out={values.out} cannot be written ({error.strerror}): name a file in a folder "
            "that exists and may be written to"
        ) from error
    print(f"\ncurves: {values.out}")


def width() -> int:
    """Columns of the table. A file or a pipe gets one line per run."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000


def read_run(workdir: Path) -> Logged:
    """The configuration and the log of a run.

    Raises:
      UserError: if there is no run, or it has no log yet.
    """
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
