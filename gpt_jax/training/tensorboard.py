"""A run's log as TensorBoard's event files, for those who ask for it: the extra `tensorboard`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError

Listener = Callable[[Mapping[str, Any]], None]


def check_installed() -> None:
    """Raises UserError, with the command that installs it, where tensorboardX is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "TensorBoard's files need the package tensorboardX, which is not installed: "
            'pip install -e ".[tensorboard]", or leave out --tensorboard'
        ) from None


@contextmanager
def event_files(workdir: Path, step: int) -> Iterator[Listener]:
    """Gives a function that writes each entry of the log into `workdir`/tensorboard.

    Args:
      step: the run goes on after it; TensorBoard forgets what an interrupted run wrote later.
    """
    from tensorboardX import SummaryWriter

    folder = str(workdir / "tensorboard")
    # Another thread writes, every so many seconds; closing waits for it.
    with SummaryWriter(folder, purge_step=step + 1, flush_secs=10) as writer:

        def write(entry: Mapping[str, Any]) -> None:
            for name, value in entry.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, entry["step"])

        yield write
