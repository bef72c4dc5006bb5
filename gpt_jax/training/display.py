"""What a run shows on standard output: facts, a table of its losses, a bar on a terminal."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

LABEL_WIDTH = 10
MIN_TEXT_WIDTH = 20  # Even in a terminal of a few columns.
HEADINGS = ("training loss", "validation loss", "tokens/s", "elapsed", "left")
WIDTHS = (13, 15, 9, 8, 10)  # With the steps, two spaces between columns: under 80 characters.


class RunConsole(Console):
    """Standard output. If its reader closes it (`train.py | head`), the run continues silently."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):  # stderr may be the same closed pipe.
            print(
                "note: standard output is closed; the run continues and writes metrics.jsonl",
                file=sys.stderr,
                flush=True,
            )


def show(console: Console, text: str) -> None:
    """Prints text as it is: the console neither interprets nor wraps it."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def facts(rows: Iterable[tuple[str, str]], width: int, label_width: int = LABEL_WIDTH) -> str:
    """Labels and their texts in two columns.

    Long texts wrap between words. A label that does not fit has a line of its own.
    """
    lines, room = [], max(MIN_TEXT_WIDTH, width - label_width)
    for label, text in rows:
        wrapped = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        if len(label) > label_width - 2:
            lines.append(label)
            label = ""
        for first, line in zip([label] + [""] * len(wrapped), wrapped, strict=False):
            lines.append(f"{first:<{label_width}}{line}")
    return "\n".join(lines)


def short_path(path: str | Path, width: int) -> str:
    """A path in at most `width` characters: relative below the current folder, else cut left."""
    text, width = str(path), max(MIN_TEXT_WIDTH, width)
    with contextlib.suppress(ValueError, OSError):
        text = str(Path(path).relative_to(Path.cwd())) if Path(path).is_absolute() else text
    return text if len(text) <= width else "..." + text[-(width - 3) :]


class LossTable:
    """A table that is printed line by line; its headings come with the first line."""

    def __init__(self, last_step: int) -> None:
        self._widths = (max(4, len(f"{last_step:,}")), *WIDTHS)
        self._begun = False

    def line(self, cells: Sequence[str]) -> str:
        """The next line: step, then the values under `HEADINGS`."""
        rows = [cells] if self._begun else [("step", *HEADINGS), cells]
        self._begun = True
        return "\n".join(
            "  ".join(f"{cell:>{width}}" for cell, width in zip(row, self._widths, strict=True))
            for row in rows
        )


class _Status(ProgressColumn):
    """The text beside the bar, made anew whenever the bar is drawn."""

    def __init__(self, status: Callable[[], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._status = status

    def render(self, task: Task) -> Text:
        return Text(self._status())


def make_bar(console: Console, status: Callable[[], str]) -> Progress:
    """A bar and a status on one line of a terminal, drawn four times a second; nothing elsewhere.

    The bar takes the columns that the status leaves, and vanishes at the end.
    """
    return Progress(
        BarColumn(bar_width=None),
        _Status(status),
        console=console,
        disable=not console.is_terminal,
        expand=True,
        refresh_per_second=4,
        transient=True,
    )


def fitted(parts: Sequence[str], width: int) -> str:
    """The parts side by side; where they are too wide, as many of the first as fit."""
    kept = [part for part in parts if part]
    while len(kept) > 1 and len("  ".join(kept)) > width:
        kept.pop()
    return "  ".join(kept)
