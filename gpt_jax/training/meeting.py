"""How the processes of one run meet, hold its folder, and end together."""

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
from gpt_jax.devices import start_devices
from gpt_jax.devices.processes import check_same, is_first, on_first, several
from gpt_jax.errors import UserError, first_cause
from gpt_jax.runs import one_writer, read_record, with_recorded_choices

LEFT_ALONE = 1  # The exit status of a process that has lost the others.


# A process that was killed is noticed at once, its connections close. This is for a machine that
# falls silent: heartbeats come from a thread of their own, also while Python or XLA are busy.
HEARTBEAT_S = 30


# At the end they wait for one another: the first to go would look as if it had died.
SHUTDOWN_S = 30


@contextlib.contextmanager
def joined(cluster: Cluster, config: Config, workdir: Path) -> Iterator[None]:
    """Meets the other processes, starts the devices of all, and holds the run's folder for them.

    Args:
      config: of the run; of one that goes on, the number of devices is the recorded one.

    Raises:
      UserError: where nothing says who the others are, they differ, or the folder is in use.
    """
    _answer_abort(
        f"the processes of the run did not meet at {cluster.coordinator or 'the coordinator'} "
        f"within {cluster.timeout_s} s: see that all were started with the same --coordinator and "
        "--num_processes, each with its own --process_id, and that they reach that address",
        2,
    )
    _initialize(cluster)
    _answer_abort(_alone("JAX has ended this process"), LEFT_ALONE)
    record = read_record(workdir)  # Only to start as many devices: it is read again, in its turn.
    started = config if record is None else with_recorded_choices(config, record)
    start_devices(started.mesh, config.train.batch_size)
    _check_devices()
    with ending_together(), _silent_unless_first(), _one_writer(workdir):
        yield


def _check_devices() -> None:
    """Before any of them speaks: JAX cannot lay a message over processes of different sizes."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the processes have {', '.join(str(counts[i]) for i in sorted(counts))} devices: give "
            "all the same --config.mesh.cpu_devices"
        )


def _initialize(cluster: Cluster) -> None:
    # It answers SIGTERM alone, some steps later, and not while the run evaluates: stopping.py
    # and `greatest` do better. What it takes over of the signals would be lost to them.
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
                f"{cluster.coordinator} does not serve ({first_cause(error)}): give another address"
            ) from error
        raise UserError(
            f"nothing here says who the other processes are ({first_cause(error)}): give "
            "--coordinator, --num_processes and --process_id"
        ) from error


def _alone(cause: str) -> str:
    return (
        f"{cause}: another process of the run died or cannot be reached, see its output; start all "
        "of them again with the same commands, and the run goes on from its newest checkpoint"
    )


_abort_handlers: list[Any] = []  # What C may call must not be collected.


def _answer_abort(sentence: str, status: int) -> None:
    """Where JAX aborts this process (it has lost the others), says so below what JAX prints.

    JAX's client has no other hook: Python's own handler of SIGABRT would run too late, never.
    """

    def answer(signum: int) -> None:
        try:
            os.write(2, f"error: {sentence}\n".encode())
        finally:  # Also where its output cannot be written, as on a full disk.
            os._exit(status)

    _abort_handlers[:] = [*_abort_handlers, ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)]
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handlers[-1])


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process at once when something fails in it alone, or the others are gone.

    A UserError and an interruption are what all have agreed on, and pass. After anything else
    nothing may wait for the others: they are elsewhere, or nowhere. They notice that it is gone.
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
            told = str(error) if isinstance(error, OSError) else _alone(first_cause(error))
            print(f"error: {told}", file=sys.stderr, flush=True)
        finally:  # Also where its output cannot be written, as on a full disk.
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
    """Process 0 holds the lock for all.

    Raises:
      UserError: as `one_writer`, and where the folder is not the same for all.
    """
    with contextlib.ExitStack() as held:
        on_first(held.enter_context)(one_writer(workdir))
        check_same(f"{workdir} (it must be on a file system that they share)", _lock_text(workdir))
        yield


def _lock_text(workdir: Path) -> str:
    """What process 0 has just written; in another folder there is an old lock, or none."""
    with contextlib.suppress(OSError):
        return (workdir / ".lock").read_text(encoding="utf-8")
    return ""
