"""A run's log at Weights & Biases. Optional; needs the extra `wandb`.

wandb keeps its own files in `wandb/` of the current folder, or in WANDB_DIR. The run's folder is no
place for them: some are links out of it, which a run must not have (runs/record.py).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_jax.config import Config
from gpt_jax.devices import processes
from gpt_jax.errors import UserError, first_cause, note
from gpt_jax.runs import RECORD_FILES, Record, read_record

Listener = Callable[[Mapping[str, Any]], None]

PROJECT = "gpt_jax"  # Unless WANDB_PROJECT names another.
LONGEST_UPLOAD_S = 120.0  # At the end. `wandb sync` can send the rest later.


def check_wandb() -> None:
    """Raises UserError, with the command that installs it, if wandb is missing."""
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError(
            "--wandb needs the package wandb, which is not installed: install it with "
            '.venv/bin/pip install -e ".[wandb]", or leave out --wandb'
        ) from None


@contextmanager
def wandb_run(workdir: Path, config: Config, writes: bool = True) -> Iterator[Listener]:
    """Yields a function that sends an entry of the log to Weights & Biases if `writes`.

    A run that resumes continues its run there. If wandb fails after the start, a note is printed,
    and training continues without it. With several processes, only process 0 sends.

    Raises:
      UserError: if wandb cannot start a run.
    """
    started: list[Any] = []

    def write(entry: Mapping[str, Any]) -> None:
        numbers = {n: value for n, value in entry.items() if n != "step" and value is not None}
        _tolerating(started, lambda run: run.log(numbers, step=entry["step"]))

    if writes:
        processes.on_first(lambda: started.append(_start(workdir, config)))()
    try:
        yield write
    except BaseException:
        _tolerating(started, lambda run: run.finish(exit_code=1))
        raise
    _tolerating(started, lambda run: run.finish())


def _start(workdir: Path, config: Config) -> Any:
    import wandb

    record = read_record(workdir)
    assert record is not None
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            id=run_id(workdir, record),
            resume="allow",
            config=config.to_dict(),
            # Without console="off", wandb takes over standard output, on which the bar is drawn.
            settings=wandb.Settings(console="off", finish_timeout=LONGEST_UPLOAD_S),
        )
    except Exception as error:
        raise UserError(
            f"Weights & Biases cannot start a run ({first_cause(error)}): log in with "
            ".venv/bin/wandb login, set WANDB_MODE=offline to upload the run later, or leave out "
            "--wandb"
        ) from error


def _tolerating(started: list[Any], action: Callable[[Any], None]) -> None:
    """Calls `action` with the run, if there is one. If that fails, forgets the run with a note."""
    try:
        for run in started:
            action(run)
    except Exception as error:  # Of the network, of wandb's own process, or of its disk.
        started.clear()
        note(f"Weights & Biases failed ({first_cause(error)}): it gets no more of this run")


def run_id(workdir: Path, record: Record) -> str:
    """The id of a run at Weights & Biases: a function of its folder and of what it began with.

    It stays the same however often the run resumes. Another run in the same folder, after the first
    was deleted, has another id unless its settings and its text are the same, and with these its
    numbers.
    """
    settings = record.config.to_dict()
    for change in reversed(record.changes):  # Back to what the run began with.
        section, _, name = change["field"].partition(".")
        if change["field"] not in RECORD_FILES:
            settings[section][name] = change["was"]
    default = Config().to_dict()  # Left out, so that a later version may have more settings.
    chosen = [
        (section, name, value)
        for section, values in settings.items()
        for name, value in values.items()
        if value != default[section][name]
    ]
    began = [str(workdir), record.corpus_sha256, record.init_sha256, record.data_sha256, chosen]
    return hashlib.sha256(json.dumps(began).encode("utf-8")).hexdigest()[:16]
