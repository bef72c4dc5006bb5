"""Times training, sampling, or starting.

    python scripts/benchmark.py --mode=train --config=configs/tiny.py
    python scripts/benchmark.py --mode=sample --num_samples=64 --json
    python scripts/benchmark.py --mode=start

To compare two versions, alternate between them: times on a busy machine vary,
their ratios vary less.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import command_line
from absl import flags

from gpt_jax.config import POSITIVE, Config, checked
from gpt_jax.errors import UserError

SCRIPTS = Path(__file__).parent
FLAGS = (
    ("mode", ("train", "sample", "start"), "train", "What to time."),
    ("batch_size", int, 0, "Windows per step; default: the config's (train)."),
    ("steps", int, 50, "Steps to time (train)."),
    ("num_samples", int, 1, "Texts drawn together (sample)."),
    ("tokens", int, 1000, "Tokens per text (sample)."),
    ("prompt_tokens", int, 1, "Tokens of the prompt (sample)."),
    ("json", bool, False, "Print one JSON object per line."),
)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(benchmark, FLAGS, argv, __doc__ or "", takes_config=True)


def benchmark(values: flags.FlagValues, words: list[str]) -> None:
    """Measures, and prints the figures."""
    config = command_line.read_config(values)
    for name in ("steps", "num_samples", "tokens", "prompt_tokens"):
        checked(name, values[name].value, int, POSITIVE)
    if values.batch_size:
        config = config.with_values("train", batch_size=values.batch_size)
    for figures in measure(values, config):
        show(figures | {"config": command_line.config_file(values)}, values.json)


def measure(values: flags.FlagValues, config: Config) -> list[dict[str, Any]]:
    """The figures of the chosen mode."""
    if values.mode == "start":
        return start(command_line.config_file(values))
    from gpt_jax.devices import compiler
    from gpt_jax.training import benchmark

    compiler.give_memory_back()
    if values.mode == "train":
        return [benchmark.train(config, values.steps)]
    # A single text is drawn on one device.
    if values.num_samples == 1:
        config = config.with_values("mesh", cpu_devices=1)
    return [benchmark.sample(config, values.num_samples, values.tokens, values.prompt_tokens)]


def show(figures: dict[str, Any], as_json: bool) -> None:
    """Prints one JSON object, or a line for each figure."""
    if as_json:
        print(json.dumps(figures), flush=True)
    else:
        print("\n".join(f"  {name:<20} {value}" for name, value in figures.items()), flush=True)


def start(config_file: str) -> list[dict[str, Any]]:
    """Seconds from the command to the first step and to the first character, for two starts each.

    The cache is new: the first start compiles, the second finds the compiled programs.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = [first_step(config_file, folder / f"run{number}") for number in (1, 2)]
        characters = [first_character(folder / "run1") for _ in (1, 2)]
    return [
        {"mode": "start", "until": until, "start": number, "seconds": round(seconds, 2)}
        for until, both in (("first step", steps), ("first character", characters))
        for number, seconds in enumerate(both, start=1)
    ]


def first_step(config_file: str, run: Path) -> float:
    """Seconds until train.py has logged its first step. Stops it after its first checkpoint."""
    flags = ["data.corpus=builtin", "train.log_every=1", "train.checkpoint_every=1"]
    overrides = [f"--config.{flag}" for flag in flags]
    command = ["train.py", f"--config={config_file}", *overrides, f"--workdir={run}"]
    log = run / "metrics.jsonl"
    with started(command, run.parent) as (process, begin):
        wait_until(lambda: log.exists() and log.stat().st_size > 0, process)
        seconds = time.perf_counter() - begin
        wait_until((run / "checkpoints" / "1").exists, process)
    return seconds


def first_character(run: Path) -> float:
    """Seconds until sample.py has written a character."""
    with started(["sample.py", f"--workdir={run}", "--prompt="], run.parent) as (process, begin):
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - begin


@contextlib.contextmanager
def started(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Starts a script with its caches in `folder`, and kills it at the end. Also gives the time."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"GPT_JAX_CACHE": str(folder / "cache")},
    )
    try:
        yield process, begin
    finally:
        process.kill()
        process.communicate()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits for an event, and looks for it every 5 ms.

    Raises:
      UserError: if the process ends first.
    """
    while not happened():
        if process.poll() is not None:
            raise UserError("the script ended before its first step: run it by itself to see why")
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
