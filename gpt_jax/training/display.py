"""What a run shows on standard output: facts, a table of its losses, a bar on a terminal.

monitor.py calls this module; the time left comes from clock.py.
"""

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gpt_jax.errors import note

LABEL_WIDTH = 10
HEADINGS = ("step", "training {0}", "validation {0}", "tokens/s", "elapsed", "left")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # All but tab and line feed.
WIDTHS = (7, 15, 17, 9, 8, 10)  # With two spaces between columns: under 80 characters.


class RunConsole(Console):
    """Standard output. If it cannot be written any more, the run continues silently.

    Its reader may close it (`train.py | head`) or its disk may be full. If its terminal is closed,
    the SIGHUP that stops the run may arrive later. Only a terminal gets escape sequences, even if
    FORCE_COLOR is set.
    """

    def __init__(self) -> None:
        super().__init__(force_terminal=sys.stdout.isatty())

    def _check_buffer(self) -> None:  # Writes what was printed.
        try:
            super()._check_buffer()
        except OSError as error:
            self._give_up(f"cannot be written ({error.strerror or error})")

    def on_broken_pipe(self) -> None:
        self._give_up("is closed")

    def _give_up(self, why: str) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        note(f"standard output {why}; the run continues and writes metrics.jsonl")


def harmless(text: str, is_terminal: bool) -> str:
    """Text for a stream. A terminal gets no control characters but line breaks and tabs.

    They could come from a stranger's text or the name of a folder, and would move the cursor,
    change the colours or rename the window. A file or a pipe gets the text as it is.
    """
    if not is_terminal:
        return text
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def show(console: Console, text: str) -> None:
    """Prints text as it is: the console neither interprets nor wraps it. See `harmless`."""
    text = harmless(text, console.is_terminal)
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
    """A line of the table of losses or rewards: the values under `HEADINGS`."""
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
