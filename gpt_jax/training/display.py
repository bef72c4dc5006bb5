"""What a run shows on standard output: facts, a table of its losses, a bar on a terminal.

monitor.py calls this module; the time left comes from clock.py.
"""

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LABEL_WIDTH = 10
HEADINGS = ("step", "training loss", "validation loss", "tokens/s", "elapsed", "left")
WIDTHS = (9, 13, 15, 9, 8, 10)  # With two spaces between columns: under 80 characters.


class RunConsole(Console):
    """Standard output. If its reader closes it (`train.py | head`), the run continues silently.

    So it does if the terminal is closed: its SIGHUP, which stops the run, may arrive later.
    Only a terminal gets escape sequences, even if FORCE_COLOR is set.
    """

    def __init__(self) -> None:
        super().__init__(force_terminal=sys.stdout.isatty())

    def _check_buffer(self) -> None:  # Writes what was printed.
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

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
    lines, indent = [], " " * label_width
    wrapper = textwrap.TextWrapper(max(width, label_width + 20), subsequent_indent=indent)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    for label, text in rows:
        wrapper.initial_indent = label.ljust(label_width)
        if len(label) > label_width - 2:
            lines.append(label)
            wrapper.initial_indent = indent
        lines += wrapper.wrap(text)
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """The text, with its middle left out if it is longer than `width` (at least 19)."""
    width = max(19, width)
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]}...{text[-half:]}"


def short_path(path: str | Path, width: int) -> str:
    """A path in at most `width` characters: relative below the current folder."""
    if Path(path).is_absolute():
        with contextlib.suppress(ValueError, OSError):
            path = Path(path).relative_to(Path.cwd())
    return shortened(str(path), width)


def table_line(cells: Sequence[str]) -> str:
    """A line of the table of losses: the values under `HEADINGS`."""
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def make_bar(console: Console) -> Progress:
    """A bar and a text on one line of a terminal, drawn four times a second; nothing elsewhere.

    The bar takes the columns that the text leaves, and vanishes at the end.
    """
    return Progress(
        BarColumn(bar_width=None),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not console.is_terminal,
        expand=True,
        refresh_per_second=4,
        transient=True,
    )
