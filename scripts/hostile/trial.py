"""A trial: a fresh copy of something good, something hostile, a command, and a verdict."""

import dataclasses
import json
import random
import re
import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

from gpt_jax.training.log import read_metrics
from hostile import harm, process
from hostile.process import Command, Ending, Main

SETTINGS = {
    **{"model.block_size": 16, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16},
    **{"model.matmul_dtype": "float32", "optimizer.learning_rate": 0.01, "mesh.cpu_devices": 1},
    **{"optimizer.warmup_steps": 2, "train.batch_size": 8, "train.eval_every": 20},
    **{"train.checkpoint_every": 20, "train.steps": 40, "sample.max_new_tokens": 20},
    "train.sample_tokens": 20,
}
STEPS = {"best": 20, "latest": 40}  # Of the finished run's two checkpoints.
CLOCK = ("tokens_per_s", "elapsed_s")
# Commands that read a run. They must leave its folder as it is.
USES: dict[str, tuple[Main, tuple[str, ...]]] = {
    "sample": ("sample", ("--workdir={run}", "--step={step}", "--seed=3")),
    "evaluate": ("evaluate", ("--workdir={run}", "--step={step}")),
    "export": ("export", ("--workdir={run}", "--step={step}", "--out=out")),
    "compare": ("compare", ("{run}", "--out=compare.png")),
}


class Bad(Exception):
    """A trial ended badly. The message says how."""


@dataclasses.dataclass
class Base:
    """What the trials copy, in a folder that base.py makes.

    Attributes:
      answers: what a use of the finished run gives, where it was asked for.
      training_s: how long the small run takes.
    """

    folder: Path
    training_s: float
    answers: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    lock: Any = dataclasses.field(default_factory=threading.Lock)

    def answer(self, use: str, step: str) -> str:
        """What a use of the untouched run gives. Raises Bad if it is refused."""
        with self.lock:
            if (use, step) not in self.answers:
                place = self.folder / "answers"
                place.mkdir()
                trial = Trial(self, place, random.Random(0))
                if not (found := trial.use(trial.copy("finished"), use, step)):
                    raise Bad(f"{use} refuses the untouched run")
                self.answers[use, step] = found
                shutil.rmtree(place)
            return self.answers[use, step]


@dataclasses.dataclass
class Trial:
    """One trial. Its methods raise Bad. `first` is the end of the first command."""

    base: Base
    folder: Path
    dice: random.Random
    told: list[str] = dataclasses.field(default_factory=list)
    first: Ending | None = None

    def copy(self, name: str, to: str = "") -> Path:
        """A fresh copy of something in the base."""
        return Path(shutil.copytree(self.base.folder / name, self.folder / (to or name)))

    def run(self, main: Main, *words: str, **how: Any) -> Ending:
        """Runs a command in the trial's folder. Raises Bad for what is a fault in any case."""
        told = str(Command(main, words, **how))
        own = {"GPT_JAX_CACHE": str(self.base.folder / "cache"), "HOME": str(self.folder)}
        how["environment"] = own | how.get("environment", {})
        self.told.append(told.replace(" ".join(map(repr, settings(self.base.folder))), "SMALL"))
        ending = process.run(command := Command(main, words, **how), self.folder)
        self.first = self.first or ending
        if found := process.fault(command, ending):
            raise Bad(f"{found}: {(ending.err or ending.out)[-600:]}")
        return ending

    def train(self, workdir: Path | str, *words: str, **how: Any) -> Ending:
        """Trains the small run in a folder. `words` replace some of its settings."""
        return self.run("train", *settings(self.base.folder), f"--workdir={workdir}", *words, **how)

    def finish(self, workdir: Path, but: str = "") -> None:
        """Trains without anything hostile. The run must end as the untouched one, `but` a part."""
        if (ending := self.train(workdir)).status:
            raise Bad(f"the corrected command ends with {ending.status}: {ending.err[-600:]}")
        self.same_end(workdir, "finished", STEPS["latest"], but)

    def same_end(self, workdir: Path, untouched: str, step: int, but: str = "") -> None:
        """Raises Bad if a run differs from one in the base in any part, `but` one."""
        found, right = end(workdir, step), end(self.base.folder / untouched, step)
        if unlike := [part for part in right if part != but and found[part] != right[part]]:
            raise Bad(f"exit status 0, but these differ: {', '.join(unlike)}")

    def new_run(self, workdir: Path, *words: str) -> None:
        """Trains two steps in a folder. They must be the untouched run's."""
        if self.train(workdir, "--config.train.steps=2", *words).status:
            raise Bad("the corrected command is refused")
        self.same_end(workdir, "new", 2)

    def use(self, run: Path, use: str, step: str, **how: Any) -> str:
        """Uses a run. Returns the answer; empty if it was refused."""
        main, words = USES[use]
        ending = self.run(main, *(word.format(run=run, step=step) for word in words), **how)
        if ending.status:
            return ""
        last = (ending.err.splitlines() or [""])[-1] if use == "sample" else ""
        files = harm.snapshot(self.folder / "out") if use == "export" else {}
        sums = [f"{name} {zlib.crc32(content)}" for name, content in sorted(files.items())]
        answer = "\n".join([ending.out, last, *sums])
        answer = answer.replace(str(run), "RUN").replace(str(self.folder), "HERE")
        return re.sub(" +", " ", answer)  # The width of a column depends on the names in it.


def settings(base: Path) -> list[str]:
    """The words that give train.py the settings of the small run."""
    chosen = {"data.corpus": base / "corpus.txt"} | SETTINGS
    return [f"--config.{name}={value}" for name, value in chosen.items()]


def end(workdir: Path, step: int) -> dict[str, Any]:
    """What a run ended with: the digests of its arrays, its text, its log without the times.

    Raises:
      Bad: if something is missing.
    """
    try:
        saved = (workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").read_bytes()
        log = read_metrics(workdir / "metrics.jsonl")
        return {
            "arrays": json.loads(saved)["custom_metadata"]["digests"],
            "text": (workdir / "samples" / f"{step}.txt").read_bytes(),
            "log": [{k: v for k, v in entry.items() if k not in CLOCK} for entry in log],
        }
    except (OSError, ValueError, KeyError) as error:
        raise Bad(f"exit status 0, but the run is not whole: {error!r}") from error
