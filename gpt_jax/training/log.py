"""metrics.jsonl, the log of a run: one JSON object per line.

Nothing in the file is trusted. A line that cannot be read stays in the file and is skipped; a
number that no run can log counts as missing.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt_jax.errors import note
from gpt_jax.files import flush, read_file, replacing

Entry = dict[str, Any]

# A run counts steps that a float holds exactly, for less than 300 years; the rest are float32.
LARGEST = {"step": 2.0**53, "elapsed_s": 1e10}
LARGEST_FLOAT32 = 3.4028235e38
NOT_NEGATIVE = ("step", "elapsed_s")


class Line(NamedTuple):
    """A line of the file without its line break; `entry` is None if it cannot be read."""

    content: bytes
    entry: Entry | None


def read_metrics(path: Path, notes: bool = False) -> list[Entry]:
    """The entries of a metrics.jsonl, without the lines that cannot be read.

    Their values are finite numbers, or None for null; "step" is an int. Any other value is missing.

    Args:
      notes: whether to print a note if a line was skipped. A torn last line gets no note.
    """
    lines = _read_lines(path)
    if notes:
        _note_unreadable(path, lines)
    return _entries(lines)


def elapsed_s(entries: Iterable[Mapping[str, Any]]) -> float:
    """The last time that the entries hold, in seconds; 0 if they hold none."""
    times = [entry["elapsed_s"] for entry in entries if entry.get("elapsed_s") is not None]
    return times[-1] if times else 0.0


def val_losses(entries: Iterable[Entry]) -> dict[int, float | None]:
    """The validation loss of every evaluation, by step; None or NaN if it was not finite."""
    return {entry["step"]: entry["val/loss"] for entry in entries if "val/loss" in entry}


def _read_lines(path: Path) -> list[Line]:
    """The lines of a log. A last line that a crash cut off is left out."""
    if not path.exists():
        return []
    *whole, last = (Line(line, _parse(line)) for line in read_file(path).split(b"\n"))
    return whole if last.entry is None else [*whole, last]


def _parse(line: bytes) -> Entry | None:
    """The entry in a line; None if it has no step."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    entry = {key: value for key, value in entry.items() if _is_possible(key, value)}
    return entry if type(entry.get("step")) is int else None


def _is_possible(key: str, value: Any) -> bool:
    """Whether a run can have logged the value: a number, or null. It never logs a boolean."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    largest = LARGEST.get(key, LARGEST_FLOAT32)
    return (0 if key in NOT_NEGATIVE else -largest) <= value <= largest  # False for NaN.


def _entries(lines: Iterable[Line]) -> list[Entry]:
    return [line.entry for line in lines if line.entry is not None]


def _note_unreadable(path: Path, lines: Iterable[Line]) -> None:
    """Prints one note if lines cannot be read."""
    if numbers := [n for n, line in enumerate(lines, start=1) if line.entry is None]:
        note(
            f"{path}: {len(numbers)} line(s) cannot be read (first: line {numbers[0]}): they stay "
            "in the file and are skipped"
        )


def json_line(entry: Entry) -> str:
    """A line of JSON. JSON has no NaN and no infinity: they become null."""
    for key, value in entry.items():
        if isinstance(value, float) and not math.isfinite(value):
            entry = entry | {key: None}
    return json.dumps(entry) + "\n"


def _append(path: Path, content: bytes) -> None:
    """Adds bytes to a file: all of them or, if it raises OSError, none."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


class MetricsLog:
    """The log of a run that is training."""

    def __init__(self, path: Path, step: int, writes: bool) -> None:
        """Opens the log of a run that is at `step`, and drops the entries of later steps.

        A run that stopped after its last checkpoint repeats those steps, so it logs them again.
        `writes`: whether this process writes the file.
        """
        self._path, self._writes = path, writes
        self._unwritten: list[bytes] = []  # New lines that could not be written yet.
        self._is_failing = False
        if writes:
            _note_unreadable(path, _read_lines(path))
        self.drop_after(step)

    def drop_after(self, step: int) -> None:
        """Drops the entries after `step`, and a torn last line. Every other line stays."""
        lines = [ln for ln in _read_lines(self._path) if not ln.entry or ln.entry["step"] <= step]
        entries = _entries(lines)
        self.last: Entry = entries[-1] if entries else {"step": 0}  # The last entry.
        self.losses = val_losses(entries)
        self.elapsed_s = elapsed_s(entries)  # The time of the last entry that has one.
        self._write(line.content for line in lines)

    def _write(self, contents: Iterable[bytes]) -> None:
        """Replaces the file by these lines."""
        if self._writes:
            with replacing(self._path) as file:
                file.writelines(content + b"\n" for content in contents)

    def append(self, entry: Entry) -> None:
        """Adds a line. If it cannot be written, as on a full disk, it is kept and written later."""
        self.last = entry
        self.losses |= val_losses([entry])
        if self._writes:
            self._unwritten.append(json_line(entry).encode("utf-8"))
            with self._tolerating_failure():
                self._write_rest()

    def flush(self) -> None:
        """Waits until the log is on the disk, if it can be written."""
        if self._writes:
            with self._tolerating_failure():
                self._write_rest()
                flush(self._path)

    def _write_rest(self) -> None:
        """Writes the lines that are not in the file yet."""
        _append(self._path, b"".join(self._unwritten))
        self._unwritten.clear()

    @contextlib.contextmanager
    def _tolerating_failure(self) -> Iterator[None]:
        """Prints one note, however often the block fails, until it succeeds again."""
        try:
            yield
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                note(
                    f"{self._path} cannot be written ({error.strerror or error}): its new lines "
                    "are kept and written later; training continues"
                )
            self._is_failing = True

    def extend_last(self, **values: float) -> Entry:
        """Adds values to the last line that can be read. Returns the new entry."""
        lines = _read_lines(self._path)
        place = max(n for n, line in enumerate(lines) if line.entry is not None)
        self.last = {**(lines[place].entry or {}), **values}
        self.losses |= val_losses([self.last])
        lines[place] = Line(json_line(self.last).rstrip("\n").encode("utf-8"), self.last)
        self._write(line.content for line in lines)
        return self.last
