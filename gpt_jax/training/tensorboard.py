"""A run's log as TensorBoard event files. Optional; needs the extra `tensorboard`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError

Listener = Callable[[Mapping[str, Any]], None]


def check_installed() -> None:
    """Raises UserError, with the command that installs it, if tensorboardX is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboardX, which is not installed: install it with "
            'pip install -e ".[tensorboard]", or leave out --tensorboard'
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
    from tensorboardX import SummaryWriter

    folder = str(workdir / "tensorboard")
    # A thread writes every 10 seconds; closing waits for it.
    with SummaryWriter(folder, purge_step=step + 1, flush_secs=10) as writer:

        def write(entry: Mapping[str, Any]) -> None:
            for name, value in entry.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, entry["step"])

        yield write
