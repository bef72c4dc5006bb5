"""Compares runs: a table, and a picture of their losses against steps and against seconds.

    python scripts/compare.py runs/tiny runs/small
    python scripts/compare.py runs/* --out=compare.png

A run's name is its folder. Held-out losses are marked with dots, training losses are thin lines.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
from absl import flags
from rich.table import Column, Table

from gpt_jax.config import FREE, Config, on_resume
from gpt_jax.errors import UserError
from gpt_jax.runs import existing_record
from gpt_jax.training import pictures
from gpt_jax.training.log import duration, read_metrics

COLUMNS = ("run", "steps", "last val", "best val", "at step", "time", "tokens/s", "differs in")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Where the picture goes."""
    flags.DEFINE_string("out", "compare.png", "File for the picture (PNG).", flag_values=values)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(compare, define_flags, argv, __doc__ or "", takes_words=True)


def compare(values: flags.FlagValues, words: list[str]) -> None:
    """Prints the table, draws the picture."""
    if not words:
        raise UserError("no run is named: give one or more folders, such as runs/tiny runs/small")
    runs = {os.path.normpath(word): read_run(Path(word).expanduser()) for word in words}
    command_line.ResultConsole().print(table(runs))
    curves = {name: entries for name, (_, entries) in runs.items()}
    try:
        pictures.draw_comparison(curves, Path(values.out).expanduser())
    except OSError as error:
        raise UserError(
            f"--out={values.out} cannot be written ({error.strerror}): name a file in a folder "
            "that exists and may be written to"
        ) from error
    print(f"curves: {values.out}")


def read_run(workdir: Path) -> tuple[Config, list[dict[str, Any]]]:
    """The configuration and the log of a run.

    Raises:
      UserError: when there is none.
    """
    config = existing_record(workdir).config
    entries = read_metrics(workdir / "metrics.jsonl")
    if not entries:
        raise UserError(f"{workdir} has no log yet (metrics.jsonl): train it for some steps first")
    return config, entries


def table(runs: Mapping[str, tuple[Config, list[dict[str, Any]]]]) -> Table:
    """A row for each run: losses in nats per token, time, settings unlike the first's."""
    [first, *_] = [config for config, _ in runs.values()]
    run, *middle, last = COLUMNS
    folded = Column(run, overflow="fold"), Column(last, overflow="fold")
    rows = Table(folded[0], *middle, folded[1], box=None)
    for name, (config, entries) in runs.items():
        rows.add_row(name, *figures(entries), "\n".join(differences(config, first)))
    return rows


def figures(entries: list[dict[str, Any]]) -> list[str]:
    """Steps made, last and best held-out loss, when, time, and the median speed."""
    held_out = pictures.points(entries, "step", "val/loss")
    best = pictures.best(entries)
    speeds = sorted(speed for _, speed in pictures.points(entries, "step", "tokens_per_s"))
    return [
        f"{entries[-1]['step']:,}",
        f"{held_out[-1][1]:.4f}" if held_out else "-",
        f"{best[1]:.4f}" if best else "-",
        f"{best[0]:,}" if best else "-",
        duration(entries[-1]["elapsed_s"]),
        f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-",
    ]


def differences(config: Config, first: Config) -> list[str]:
    """The settings that shape a model, by their short names, in which it is unlike the first's."""
    mine, other = config.to_dict(), first.to_dict()
    return [
        f"{name}={value}"
        for section, values in mine.items()
        for name, value in values.items()
        if value != other[section][name] and on_resume(f"{section}.{name}") != FREE
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
