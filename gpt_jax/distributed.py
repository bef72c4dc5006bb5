"""Several processes that train one run: how they meet, agree, and end together.

All of them run the same program over one mesh, and process 0 alone writes files. What depends on a
disk, on a signal or on anything else that only one of them sees is agreed on here, so that no two
of them take different ways: one would wait for the other for ever. In a single process every
function does nothing but its action.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax import lock, sharding
from gpt_jax.cluster import Cluster
from gpt_jax.config import Config
from gpt_jax.damage import DamagedCheckpoint, first_cause
from gpt_jax.resume import with_recorded_choices
from gpt_jax.run_folder import read_record
from gpt_jax.setting import UserError

T = TypeVar("T")

LEFT_ALONE = 1  # The exit status of a process that has lost the others.
# A process that was killed is noticed at once, its connections close. This is for a machine that
# falls silent: heartbeats come from a thread of their own, also while Python or XLA are busy.
HEARTBEAT_S = 30
# At the end they wait for one another: the first to go would look as if it had died.
SHUTDOWN_S = 30
BLOCK = 4096  # Texts are sent in whole ones: fewer programs to compile.


def several() -> bool:
    """Whether this process is one of several. Starts no device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return not several() or jax.process_index() == 0


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
    sharding.start_devices(started.mesh, config.train.batch_size)
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
    # It answers SIGTERM alone, some steps later, and not while the run evaluates: interruption.py
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
      UserError: as `lock.one_writer`, and where the folder is not the same for all.
    """
    with contextlib.ExitStack() as held:
        first(lambda: held.enter_context(lock.one_writer(workdir)))
        check_same(f"{workdir} (it must be on a file system that they share)", _lock_text(workdir))
        yield


def _lock_text(workdir: Path) -> str:
    """What process 0 has just written; in another folder there is an old lock, or none."""
    with contextlib.suppress(OSError):
        return (workdir / ".lock").read_text(encoding="utf-8")
    return ""


def together(action: Callable[[], T]) -> T:
    """What `action` gives here; where it fails in one process, it fails in all.

    `action` must not itself wait for the others.

    Raises:
      UserError: of the first process that failed, of its kind, what a disk said, too. Another error
        stays as it is in the process that met it.
    """
    if not several():
        return action()
    error, result = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if failed.any():
        _fail(error, int(np.argmax(failed)))
    return cast(T, result)


def _fail(error: Exception | None, source: int) -> None:
    """Raises the error of the process `source`."""
    told = {"is": str(error), "damaged": isinstance(error, DamagedCheckpoint)}
    told = _sent(told, source)
    if error is not None and not isinstance(error, UserError | OSError):
        raise error
    raise (DamagedCheckpoint if told["damaged"] else UserError)(told["is"]) from error


def first(action: Callable[[], T]) -> T:
    """What `action` gives in process 0, which alone does it; JSON. Raises as `together`.

    In a single process that may be anything.
    """
    if not several():
        return action()
    result = together(lambda: action() if is_first() else None)
    return cast(T, _sent(result, 0))


def _sent(value: Any, source: int) -> Any:
    """The value of the process `source`, JSON, in all."""
    here = jax.process_index() == source
    text = json.dumps(value).encode() if here else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text)), here))
    block = np.zeros(-(-size // BLOCK) * BLOCK, np.uint8)
    block[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(block, here)[:size].tobytes())


def greatest(number: int) -> int:
    """The greatest of the numbers that the processes have."""
    if not several():
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def check_same(what: str, value: Any) -> None:
    """Refuses to go on where the processes have not the same value (JSON).

    Raises:
      UserError: in all of them, naming `what`.
    """
    if not several():
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if (digests != digests[0]).any():
        raise UserError(
            f"{what} is not the same in all processes of the run: start them with the same command "
            "but for --process_id, on the same files"
        )


def gathered(tree: Any) -> Any:
    """A tree of arrays, whole in this process: on the host, one array after another."""
    return multihost_utils.process_allgather(tree, tiled=True) if several() else tree
