"""How the processes of one run meet, lock its folder and end together.

devices/processes.py has what they agree on while they train.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from gpt_jax.config import Cluster, Config
from gpt_jax.devices import pinned_settings, start_devices
from gpt_jax.devices.processes import check_same, is_first, on_first, several
from gpt_jax.errors import UserError, first_cause, out_of_memory
from gpt_jax.files import read_file
from gpt_jax.runs import one_writer, read_record, with_recorded_choices

LEFT_ALONE = 1  # The exit status of a process that has lost the others.

# A killed process is noticed at once, because its connections close. The heartbeat is for a machine
# that falls silent. A thread of its own sends it, also while Python or XLA is busy.
HEARTBEAT_S = 30

# At the end the processes wait for each other: the first to leave would look as if it had died.
SHUTDOWN_S = 30


@contextlib.contextmanager
def joined(cluster: Cluster, config: Config, workdir: Path) -> Iterator[None]:
    """Meets the other processes, starts the devices of all, and locks the run's folder for them.

    Raises:
      UserError: if the other processes are not known or differ, or the folder is in use.
    """
    _answer_abort(
        f"the processes of the run did not meet at {cluster.coordinator or 'the coordinator'} "
        f"within {cluster.timeout_s} s: start all with the same --coordinator and "
        "--num_processes, each with its own --process_id, and check that they reach that address",
        2,
    )
    _initialize(cluster)
    _answer_abort(_alone("JAX has ended this process"), LEFT_ALONE)
    record = read_record(workdir)  # Only for the number of devices; `open_run` reads it again.
    chosen = config if record is None else with_recorded_choices(config, record)
    start_devices(chosen.mesh, config.train.batch_size)
    _check_devices()
    with pinned_settings(), ending_together(), _silent_unless_first(), _one_writer(workdir):
        yield


def _check_devices() -> None:
    """Checks the devices before the first message: JAX needs the same number in each process."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the processes have {', '.join(str(counts[i]) for i in sorted(counts))} devices: give "
            "all the same --config.mesh.cpu_devices"
        )


def _initialize(cluster: Cluster) -> None:
    # JAX's own service would take SIGTERM away from stopping.py. It handles no other signal, stops
    # some steps later, and does not stop an evaluation.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {}
    if cluster.coordinator:
        given = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
            "coordinator_bind_address": cluster.bind_address,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=cluster.timeout_s,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=SHUTDOWN_S,
        )
    except (ValueError, RuntimeError) as error:
        if cluster.coordinator:
            raise UserError(
                f"--coordinator={cluster.coordinator} cannot be used ({first_cause(error)}): give "
                "another address"
            ) from error
        raise UserError(
            f"the environment does not say which processes train together ({first_cause(error)}): "
            "give --coordinator, --num_processes and --process_id"
        ) from error


def _alone(cause: str) -> str:
    return (
        f"{cause}: another process of the run died or cannot be reached, see its output; start all "
        "of them again with the same commands, and the run resumes from its newest checkpoint"
    )


_abort_handlers: list[Any] = []  # Keeps functions that C may call from being collected.


def _answer_abort(sentence: str, status: int) -> None:
    """If JAX aborts this process because the others are gone, prints `sentence` and exits.

    JAX's client has no other hook, and a SIGABRT handler in Python would never get to run.
    """

    def answer(signum: int) -> None:
        try:
            os.write(2, f"error: {sentence}\n".encode())
        finally:  # Even if the message cannot be written, as on a full disk.
            os._exit(status)

    _abort_handlers[:] = [*_abort_handlers, ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)]
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handlers[-1])


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """With several processes: exits at once after an error in this one, or if the others are gone.

    UserError and Stopped pass, because all processes raise them together. After any other error
    this process must not wait for the others, which are elsewhere or gone. They notice its exit.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not several():
            raise
        try:
            if not isinstance(error, OSError | jax.errors.JaxRuntimeError):
                traceback.print_exc()
            message = str(error) if isinstance(error, OSError) else out_of_memory(error)
            message = message or _alone(first_cause(error))
            print(f"error: {message}", file=sys.stderr, flush=True)
        finally:  # Even if the message cannot be written, as on a full disk.
            os._exit(LEFT_ALONE)


@contextlib.contextmanager
def _silent_unless_first() -> Iterator[None]:
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _one_writer(workdir: Path) -> Iterator[None]:
    """Process 0 holds the lock for all. Raises UserError if they do not see the same folder."""
    with contextlib.ExitStack() as stack:
        on_first(stack.enter_context)(one_writer(workdir))
        check_same(f"{workdir} (it must be on a file system that they share)", _lock_text(workdir))
        yield


def _lock_text(workdir: Path) -> str:
    """What process 0 has just written. Another folder has an old lock, or none."""
    with contextlib.suppress(OSError):
        return read_file(workdir / ".lock").decode("utf-8", errors="replace")
    return ""
