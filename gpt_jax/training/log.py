"""metrics.jsonl: reading and writing a run's log."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl, up to the first line that a crash has torn."""
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
    """Whether it has what every line has; numbers, or null for what is not finite."""
    return (
        isinstance(entry, dict)
        and type(entry.get("step")) is int
        and isinstance(entry.get("elapsed_s"), int | float)
        and all(isinstance(value, int | float | None) for value in entry.values())
    )


def json_line(entry: dict[str, Any]) -> str:
    """A line of JSON, which has no NaN and no infinity: they become null."""
    for key, value in entry.items():
        if isinstance(value, float) and not math.isfinite(value):
            entry = entry | {key: None}
    return json.dumps(entry) + "\n"


def duration(seconds: float | None) -> str:
    """Minutes and seconds, with hours in front where there are any; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
