"""Trials of runs: signals, harm to their files, harm to the cache, no room."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from hostile import harm
from hostile.trial import STEPS, USES, Bad, Trial

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
HARMS: dict[str, Callable[..., str]] = {
    "flip": harm.flip,
    "damage": harm.damage,
    "replace": harm.replace,
    "add": harm.add,
    "json": harm.change_json,
}
# Most files of a run are in its checkpoints, which are less than half of what can be harmed.
PARTS = ("checkpoints",) * 6 + ("config.json", "tokenizer.json", "metrics.jsonl") * 2 + ("",)
# A run that has two checkpoints must survive these if they hit one.
SURVIVED = ("flip", "damage", "json")


def signals(t: Trial) -> None:
    """Signals at random moments to a run that trains. The same command then ends it."""
    run = t.copy("stopped") if t.dice.random() < 0.7 else t.folder / "run"
    for _ in range(t.dice.randint(1, 3)):
        sent = [(t.dice.uniform(0, t.base.training_s), t.dice.choice(SIGNALS))]
        if t.dice.random() < 0.2:
            sent.append((t.dice.uniform(0, 0.3), t.dice.choice(SIGNALS)))
        t.train(run, signals=sent)
    t.finish(run)


def do_harm(t: Trial, kind: str, folder: Path) -> list[str]:
    """Harms something in a folder. Returns the names of what it changed."""
    before = harm.snapshot(folder)
    path = target(t, kind, folder)
    done = HARMS[kind](path, t.dice)
    t.told.append(f"{kind} {path.relative_to(folder)}: {done}")
    return harm.changed(before, harm.snapshot(folder))


def target(t: Trial, kind: str, folder: Path) -> Path:
    """What is harmed: a folder to add to, a file with JSON, any file, or now and then a folder."""
    everything, part = sorted(folder.rglob("*")), t.dice.choice(PARTS)
    inside = [p for p in everything if str(p.relative_to(folder)).startswith(part)]
    wanted: Callable[[Path], bool] = is_json if kind == "json" else Path.is_file
    if kind == "add" or (kind in ("damage", "replace") and t.dice.random() < 0.3):
        wanted = Path.is_dir
    found = [p for p in inside if wanted(p)] or [p for p in everything if wanted(p)]
    return t.dice.choice(found or [folder] if kind == "add" else found or everything)


def is_json(path: Path) -> bool:
    """Whether a file, or its first line, holds a JSON object."""
    try:
        text = path.read_text(encoding="utf-8")
        first = text.splitlines()[0] if path.suffix == ".jsonl" else text
        return isinstance(json.loads(first), dict)
    except (OSError, ValueError, IndexError):
        return False


def harmed(kind: str, t: Trial) -> None:
    """Harm to a part of a run, and a command that reads or resumes it."""
    use = t.dice.choice([*USES, "resume", "resume"])
    if use == "resume":
        return resume(t, kind)
    run = t.copy("finished")
    names = do_harm(t, kind, run)
    before = harm.snapshot(run)
    read(t, run, use, t.dice.choice([*STEPS]), names)
    if names := harm.changed(before, harm.snapshot(run)):
        raise Bad(f"{use} changed the run: {names}")


def read(t: Trial, run: Path, use: str, step: str, names: list[str]) -> None:
    """Uses a run that was harmed: it is refused, or the answer is the untouched run's.

    The answer may be that of the other checkpoint, or without a loss, only if this one was harmed.
    """
    answer, right = t.use(run, use, step), [t.base.answer(use, step)]
    if any(name.startswith(f"checkpoints/{STEPS[step]}") for name in names):
        right += [t.base.answer(use, other) for other in STEPS]
        loss = r"validation loss [\d.]+ nats per token"
        right += [re.sub(loss, "validation loss unknown", known) for known in right]
    if answer and answer not in right and not (use == "compare" and "metrics.jsonl" in names):
        raise Bad(f"exit status 0, but another answer: {answer[-300:]!r}, not {right[0][-300:]!r}")


def resume(t: Trial, kind: str) -> None:
    """Resumes a run that was harmed: it ends with the same bits, or it is refused and not lost."""
    run, untouched = t.copy("stopped"), t.base.folder / "stopped"
    names = do_harm(t, kind, run)
    log = "log" if "metrics.jsonl" in names else ""
    if not t.train(run).status:
        return t.same_end(run, "finished", STEPS["latest"], log)
    checkpoints = {re.match(r"checkpoints/(\d+)/|", name)[1] for name in names}  # type: ignore[index]
    if kind in SURVIVED and len(checkpoints) == 1 and checkpoints != {None}:
        raise Bad("one checkpoint was harmed, but the run does not resume from the other")
    harm.undo(run, untouched, names)
    t.finish(run, log)


def cached(t: Trial) -> None:
    """Harm to the cache of compiled programs. It may cost time, never an answer."""
    use, step = t.dice.choice([*USES]), t.dice.choice([*STEPS])
    right, cache, run = t.base.answer(use, step), t.copy("cache"), t.copy("finished")
    kinds = t.dice.choice((["flip"] * 50, [t.dice.choice(("damage", "replace"))]))
    for kind in kinds:
        do_harm(t, kind, cache)
    t.told[:] = t.told[-1:]
    answer = t.use(run, use, step, environment={"GPT_JAX_CACHE": str(cache)})
    if answer != right:
        raise Bad(f"another answer, or none: {answer[-300:]!r}")


def together(t: Trial) -> None:
    """Commands that read a run, and a second start, while it trains."""
    right, run, place = t.base.answer("sample", "best"), t.copy("stopped"), t.folder / "beside"
    place.mkdir()
    beside = Trial(t.base, place, t.dice, t.told)
    failed: list[Bad] = []

    def train() -> None:
        try:
            t.train(run)
        except Bad as bad:
            failed.append(bad)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        while thread.is_alive():
            if t.dice.random() < 0.3:
                beside.train(run)
            elif (answer := beside.use(run, "sample", "best")) != right:
                raise Bad(f"while the run trains, its best checkpoint gives {answer[-300:]!r}")
    finally:
        thread.join()
    if failed:
        raise failed[0]
    t.finish(run)


def full(t: Trial) -> None:
    """No room for files, for open files, or for output while a run trains. Later there is."""
    run = t.copy("stopped") if t.dice.random() < 0.5 else t.folder / "stopped"
    way = t.dice.choice(("size", "files", "output", "disk"))
    if way == "disk" and os.geteuid() == 0:
        on_a_small_disk(t, run)
    elif way == "files":
        t.train(run, limits={"RLIMIT_NOFILE": t.dice.randint(6, 64)})
    elif way == "output":
        t.train(run, streams={1: "/dev/full"})
    else:
        # The sentence goes to a file, too, so there is room for it.
        t.train(run, limits={"RLIMIT_FSIZE": t.dice.choice((2000, 4000, 20_000, 60_000))})
    t.finish(run)


def on_a_small_disk(t: Trial, run: Path) -> None:
    """Trains on a file system of some kilobytes or some files, and moves the run from there."""
    disk = t.folder / "disk"
    disk.mkdir()
    room = t.dice.choice(
        (f"size={t.dice.randint(300, 900)}k", f"nr_inodes={t.dice.randint(9, 90)}")
    )
    t.told.append(f"tmpfs {room}")
    subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(disk)], check=True)
    try:
        t.train(disk / "run")
        shutil.rmtree(run, ignore_errors=True)
        if (disk / "run").exists():
            shutil.copytree(disk / "run", run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
