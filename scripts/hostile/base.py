"""Makes what the trials copy: a small run, finished and stopped, a text, weights."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.text import play
from hostile import process
from hostile.process import SCRIPTS, Command, Main
from hostile.trial import Base, settings

LAST_STEP = 32  # Of the stopped run: between the two checkpoints of the finished one.


def make(folder: Path) -> Base:
    """Makes the base in an empty folder, with the commands that the trials use.

        corpus.txt  new/ (2 steps)  finished/  stopped/  prepared/  gpt2/  cache/

    Raises:
      UserError: if one of them fails.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # The server of forks gets it.
    write_corpus(folder / "corpus.txt")
    words = settings(folder)
    _run(folder, "train", *words, "--workdir=new", "--config.train.steps=2")
    _run(folder, "train", *words, "--workdir=finished")
    begin = time.monotonic()
    _run(folder, stop_early, str(folder))
    seconds = time.monotonic() - begin
    text = f"--corpus={folder / 'corpus.txt'}"
    _run(folder, "prepare", text, "--out=prepared", "--shard_tokens=7000")
    weights = SCRIPTS.parent / "tests" / "gpt2" / "gpt2_tiny"
    shutil.copytree(weights, folder / "gpt2", ignore=shutil.ignore_patterns("*.npz"))
    return Base(folder, seconds)


def write_corpus(path: Path) -> None:
    """Text of the play with a shuffled end, which validates: an early checkpoint is the best."""
    text, last = play.write()[:18_000], list(play.write()[18_000:20_000])
    random.Random(0).shuffle(last)
    path.write_text(text + "".join(last), encoding="utf-8")


def _run(folder: Path, main: Main, *words: str) -> None:
    cache = {"GPT_JAX_CACHE": str(folder / "cache")}
    ending = process.run(Command(main, words, cache), folder)
    if ending.status:
        raise UserError(f"{main} ends with {ending.status}: {ending.err.strip()}")


def stop_early(folder: str) -> int:
    """Trains the run until it is asked to stop, always after the same step."""
    import train

    from gpt_jax.training import stopping

    class StopsEarly(stopping.Stopper):
        steps = 0

        def poll(self) -> stopping.Stop | None:
            self.steps += 1
            self.signum = signal.SIGTERM if self.steps >= LAST_STEP else self.signum
            return super().poll()

    stopping.Stopper = StopsEarly  # type: ignore[misc]
    status = train.main(["scripts/train.py", *settings(Path(folder)), "--workdir=stopped"])
    return 0 if status == 128 + signal.SIGTERM else 1
