"""A run's log as TensorBoard event files. Optional; needs the extra `tensorboard`."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError, note

Listener = Callable[[Mapping[str, Any]], None]


def check_tensorboard() -> None:
    """Raises UserError, with the command that installs it, if tensorboardX is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboardX, which is not installed: install it with "
            '.venv/bin/pip install -e ".[tensorboard]", or leave out --tensorboard'
        ) from None


@contextmanager
def event_files(workdir: Path, step: int, writes: bool = True) -> Iterator[Listener]:
    """Yields a function that writes an entry of the log into `workdir`/tensorboard if `writes`.

    Args:
      step: the step from which the run starts or resumes. TensorBoard drops what the run wrote for
        later steps before it was interrupted.
    """
    if not writes:
        yield lambda entry: None
        return
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    folder, failed = workdir / "tensorboard", False
    folder.mkdir(exist_ok=True)
    # Not SummaryWriter: if the disk is full, its thread dies, and its full queue blocks the run.
    file = EventsWriter(str(folder / "events"))

    def put(**content: Any) -> None:
        nonlocal failed
        try:
            if not failed:
                file.write_event(Event(wall_time=time.time(), **content))
                file.flush()
        except OSError as error:
            failed = True  # A part of the event may be in the file: TensorBoard reads no further.
            note(f"{folder} cannot be written ({error.strerror}): TensorBoard gets no more steps")

    def write(entry: Mapping[str, Any]) -> None:
        numbers = {n: value for n, value in entry.items() if n != "step" and value is not None}
        values = [Summary.Value(tag=name, simple_value=v) for name, v in numbers.items()]
        put(step=entry["step"], summary=Summary(value=values))

    put(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    yield write
    with contextlib.suppress(OSError):
        file.close()
