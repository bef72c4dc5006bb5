"""One command in a process of its own, and what is wrong with its end, whatever it had to do.

The command is called in a fork of a server that has imported everything but has not started JAX.
This saves two seconds. With `fresh` the script is started as a user starts it, so it meets signals
and variables of the environment while Python and JAX are loaded, too.
"""

import atexit
import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import early_exit

SCRIPTS = Path(__file__).parent.parent
COMMANDS = ("train", "sample", "evaluate", "compare", "export", "prepare", "benchmark")
# Starting a process also polls all others. If two threads poll the same one, its status is lost,
# and Python says 255.
ONE_AT_A_TIME = threading.Lock()
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *(*COMMANDS, "hostile.kinds", "gpt_jax.training.loop", "gpt_jax.training.evaluation"),
        *("gpt_jax.training.benchmark", "gpt_jax.gpt2", "ml_collections.config_flags"),
        *("matplotlib.figure", "safetensors", "tokenizers"),
    ]
)
MOST_LINES, MOST_CHARACTERS = 10, 6000  # On stderr: the sentence, below a note or two.
END_S, STOP_S = 90.0, 20.0  # Most commands take one or two seconds.
MOST_BYTES = 4 * 2**30
Main = str | Callable[..., int]
Poll = Callable[[], int | None]  # The exit status of a process, None while it runs.


@dataclasses.dataclass(frozen=True)
class Command:
    """What to run and how.

    Attributes:
      main: a script's name, or a function that returns the exit status.
      words: the command line after the script's name, or the function's arguments.
      environment: variables to set; None removes one.
      limits: limits of resources, such as {"RLIMIT_FSIZE": 4096}.
      signals: each with the seconds to wait before it, from the start or from the signal before.
      patience_s: for a command that may be right to work for hours: the seconds after which it is
        asked to stop. 0 = it must end by itself.
      streams: files in place of the standard streams, such as {1: "/dev/full"}.
    """

    main: Main
    words: Sequence[str] = ()
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    signals: Sequence[tuple[float, int]] = ()
    patience_s: float = 0.0
    streams: Mapping[int, str] = dataclasses.field(default_factory=dict)
    fresh: bool = False

    def __str__(self) -> str:
        name = self.main if isinstance(self.main, str) else self.main.__name__
        parts = {"environment": self.environment, "limits": self.limits, "signals": self.signals}
        told = [f"{key}={value}" for key, value in parts.items() if value]
        return " ".join([name, *(repr(word)[:200] for word in self.words), *told])


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a command ended. `status` is negative if a signal ended the process.

    `stopped`: why it was asked to stop, "time" or "size"; empty if it ended by itself.
    """

    status: int
    out: str
    err: str
    stopped: str = ""


def run(command: Command, folder: Path) -> Ending:
    """Runs a command in a folder, which also gets its output."""
    files = {0: os.devnull, 1: str(folder / ".out"), 2: str(folder / ".err")} | dict(
        command.streams
    )
    for name in (".out", ".err", ".started"):
        (folder / name).unlink(missing_ok=True)
    pid, poll = (_fresh if command.fresh else _fork)(command, folder, files)
    while not (folder / ".started").exists() and poll() is None:
        time.sleep(0.002)
    for seconds, signum in command.signals:
        _wait(pid, poll, seconds)
        _send(pid, poll, signum)
    stopped = _wait(pid, poll, command.patience_s or END_S)
    if stopped:
        _stop(pid, poll, signal.SIGTERM if command.main == "train" else signal.SIGINT)
    encoding = (command.environment.get("PYTHONIOENCODING") or "utf-8").split(":")[0]
    out, err = (_text(folder / name, encoding) for name in (".out", ".err"))
    return Ending(poll() or 0, out, err, stopped)


def _fork(command: Command, folder: Path, files: Mapping[int, str]) -> tuple[int, Poll]:
    process = FORKS.Process(target=_in_the_fork, args=(command, folder, files))
    with ONE_AT_A_TIME:
        process.start()
    assert process.pid is not None

    def poll() -> int | None:
        with ONE_AT_A_TIME:
            return process.exitcode

    return process.pid, poll


def _in_the_fork(command: Command, folder: Path, files: Mapping[int, str]) -> None:
    """Calls the command, and ends the process as its script would."""
    _prepare(command, folder, files)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, early_exit.leave)  # As if the script were loaded here.
    _begin(command, folder)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the fork's own.
    try:
        if not isinstance(command.main, str):
            sys.exit(command.main(*command.words))
        script = importlib.import_module(command.main)
        status = script.main([f"scripts/{command.main}.py", *command.words])
        script.leave(status) if hasattr(script, "leave") else sys.exit(status)
    finally:
        atexit._run_exitfuncs()  # A fork of `multiprocessing` would skip what JAX does at exit.


def _fresh(command: Command, folder: Path, files: Mapping[int, str]) -> tuple[int, Poll]:
    variables = os.environ | command.environment

    def before() -> None:
        _prepare(command, folder, files)
        _begin(command, folder)

    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / f"{command.main}.py"), *command.words],
        preexec_fn=before,
        env={name: value for name, value in variables.items() if value is not None},
    )
    return process.pid, process.poll


def _prepare(command: Command, folder: Path, files: Mapping[int, str]) -> None:
    """Gives this process the command's folder, variables and streams."""
    os.chdir(folder)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)  # A shell lets background processes ignore some.
    for name, value in command.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    for number, file in files.items():
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)


def _begin(command: Command, folder: Path) -> None:
    """Marks the start, and sets the limits."""
    (folder / ".started").touch()
    for limit, most in command.limits.items():
        resource.setrlimit(getattr(resource, limit), (most, most))


def _wait(pid: int, poll: Poll, seconds: float) -> str:
    """Waits for the end of a process. Returns what it used too much of: "time" or "size"."""
    end = time.monotonic() + seconds
    while poll() is None:
        if time.monotonic() > end:
            return "time"
        if _resident_bytes(pid) > MOST_BYTES:
            return "size"
        time.sleep(0.01)
    return ""


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):  # The process has just ended.
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def _send(pid: int, poll: Poll, signum: int) -> None:
    if poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _stop(pid: int, poll: Poll, signum: int) -> None:
    """Asks a process to stop, asks again, and kills it. C++ that compiles hears nothing else."""
    for each in (signum, signum, signal.SIGKILL):
        _send(pid, poll, each)
        _wait(pid, poll, STOP_S)


def _text(path: Path, encoding: str) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes()[:1_000_000].decode(encoding, errors="replace")
    return ""


def fault(command: Command, ending: Ending) -> str:
    """What is wrong with the end of a command, whatever it had to do; empty = nothing."""
    asked = [signum for _, signum in command.signals]
    if ending.stopped and not command.patience_s:
        return f"it had not ended when it had used too much {ending.stopped}"
    if ending.stopped:
        asked += [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
    if "Traceback (most recent call last)" in ending.err + ending.out:
        return "a traceback"
    if ending.status not in {0, 2, *(128 + n for n in asked), *(-n for n in asked)}:
        return f"exit status {ending.status}"
    lines = ending.err.strip().splitlines()
    if len(lines) > MOST_LINES or len(ending.err) > MOST_CHARACTERS:
        return f"{len(lines)} lines with {len(ending.err)} characters on stderr"
    if ending.status == 2 and not any(line.startswith("error: ") for line in lines):
        return "exit status 2 without a sentence that begins with error:"
    return ""
