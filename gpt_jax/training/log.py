"""metrics.jsonl, the log of a run: one JSON object per line."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from gpt_jax.files import replacing

Entry = dict[str, Any]


def read_metrics(path: Path) -> list[Entry]:
    """The entries of a metrics.jsonl, up to the first line that a crash cut off."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if _is_entry(entry):
                entries.append(entry)
                continue
        break
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether it has the keys of every line. Its values are numbers, or null if not finite."""
    return (
        isinstance(entry, dict)
        and type(entry.get("step")) is int
        and isinstance(entry.get("elapsed_s"), int | float)
        and all(isinstance(value, int | float | None) for value in entry.values())
    )


def json_line(entry: Entry) -> str:
    """A line of JSON. JSON has no NaN and no infinity: they become null."""
    for key, value in entry.items():
        if isinstance(value, float) and not math.isfinite(value):
            entry = entry | {key: None}
    return json.dumps(entry) + "\n"


class MetricsLog:
    """The log of a run that is training."""

    def __init__(self, path: Path, step: int, writes: bool) -> None:
        """Opens the log of a run that is at `step`, and drops the entries of later steps.

        A run that stopped after its last checkpoint repeats those steps, so it logs them again.
        `writes`: whether this process writes the file.
        """
        self._path, self._writes = path, writes
        self.last: Entry = {"step": 0}  # The last entry; this one for an empty log.
        self.replace([entry for entry in read_metrics(path) if entry["step"] <= step])

    def replace(self, entries: list[Entry]) -> None:
        """Makes `entries` the whole log."""
        if entries:
            self.last = entries[-1]
        if self._writes:
            with replacing(self._path) as file:
                file.write("".join(map(json_line, entries)).encode("utf-8"))

    def append(self, entry: Entry) -> None:
        """Adds a line."""
        self.last = entry
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_line(entry))

    def extend_last(self, **values: float) -> Entry:
        """Adds values to the last line. Returns the new entry."""
        entries = read_metrics(self._path)
        entry = entries[-1] | values
        self.replace([*entries[:-1], entry])
        return entry
