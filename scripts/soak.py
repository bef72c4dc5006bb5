"""Kills a run again and again, and shows that nothing is lost.

    python scripts/soak.py --kills=300 --seed=0

train.py trains a small model. Its process is killed (SIGKILL) at a random
moment, and the same command resumes the run, until the run is finished. Its
arrays, log and sample then equal those of a run that was never killed, bit for
bit.
"""

import collections
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
from absl import flags
from rich.console import Console
from rich.progress import track

from gpt_jax.config import INT32, POSITIVE, checked
from gpt_jax.errors import UserError

FLAGS = (
    ("kills", int, 100, "Maximum number of kills; then the run may finish."),
    ("steps", int, 10_000, "Steps in the run."),
    ("seed", int, 0, "Seed of the moments of the kills."),
)
SMALL = {
    **{"model.block_size": 16, "model.n_layer": 1, "model.n_embd": 16, "optimizer.warmup_steps": 2},
    **{"train.batch_size": 8, "train.log_every": 5, "train.eval_every": 50, "mesh.cpu_devices": 1},
    **{"train.checkpoint_every": 10, "sample.max_new_tokens": 20},
    "train.sample_tokens": 20,
}


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(soak, FLAGS, argv, __doc__ or "")


def soak(values: flags.FlagValues, words: list[str]) -> None:
    """Checks the flags, and compares the two runs in a temporary folder."""
    for name, rule in (("kills", POSITIVE), ("steps", POSITIVE), ("seed", INT32)):
        checked(name, values[name].value, int, rule)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), values.kills, values.steps, random.Random(values.seed))


def compare(folder: Path, kills: int, steps: int, moments: random.Random) -> None:
    """Runs both and compares them.

    Raises:
      UserError: if they differ.
    """
    from gpt_jax.text import play

    (folder / "corpus.txt").write_text(play.write()[:20_000], encoding="utf-8")
    straight, killed = folder / "straight", folder / "killed"
    process, begin = start(straight, steps), time.perf_counter()
    while process.poll() is None and not log(straight):
        time.sleep(0.01)
    first_line_s = time.perf_counter() - begin
    end(process)
    hits = kill_often(killed, kills, steps, moments, 2 * first_line_s)
    end(start(killed, steps))
    counts = ", ".join(f"{count} {where}" for where, count in sorted(hits.items()))
    print(f"{hits.total()} kills ({counts}); no checkpoint was lost")
    if unlike := differences(straight, killed):
        raise UserError(f"these differ from the run that was never killed: {', '.join(unlike)}")
    counts = f"{len(arrays(killed))} arrays, {len(log(killed))} lines"
    print(f"{counts} and {len(samples(killed))} samples: same bit for bit")


def differences(one: Path, other: Path) -> list[str]:
    """The parts in which two runs differ, bit for bit."""
    parts = {"arrays": arrays, "log": log, "text": samples}
    return [name for name, of in parts.items() if of(one) != of(other)]


def kill_often(
    workdir: Path, kills: int, steps: int, moments: random.Random, longest_s: float
) -> collections.Counter[str]:
    """Kills the run up to `longest_s` after each start. Returns what it was doing.

    Raises:
      UserError: if a checkpoint was lost.
    """
    hits: collections.Counter[str] = collections.Counter()
    console = Console(stderr=True)
    for _ in track(range(kills), "kills", console=console, disable=not console.is_terminal):
        lines, newest = len(log(workdir)), max(saved(workdir), default=0)
        process = start(workdir, steps)
        try:
            process.communicate(timeout=moments.uniform(0, longest_s))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        hits[moment(workdir, lines)] += 1
        if max(saved(workdir), default=0) < newest:
            raise UserError(f"the checkpoint of step {newest} was lost by kill {hits.total()}")
    return hits


def start(workdir: Path, steps: int) -> subprocess.Popen[str]:
    """Starts train.py in another process."""
    settings = SMALL | {"data.corpus": workdir.parent / "corpus.txt", "train.steps": steps}
    command = [sys.executable, str(Path(__file__).parent / "train.py"), f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    """Waits for a run to finish. Raises UserError if it fails."""
    _, message = process.communicate()
    if process.returncode:
        raise UserError(f"train.py ended with {process.returncode}: {message.strip()}")


def saved(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    found = (workdir / "checkpoints").glob("[0-9]*/commit_success.txt")
    return [int(path.parent.name) for path in found if path.parent.name.isdecimal()]


def moment(workdir: Path, lines: int) -> str:
    """What the killed run was doing; its log had `lines` lines when it started."""
    if len(log(workdir)) <= lines:
        return "before its first line"
    unfinished = any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))
    return "during a save" if unfinished else "between saves"


def log(workdir: Path) -> list[dict[str, Any]]:
    """The lines of the log without the measured times."""
    from gpt_jax.training.log import read_metrics

    clock = ("tokens_per_s", "elapsed_s")
    entries = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in entry.items() if k not in clock} for entry in entries]


def samples(workdir: Path) -> dict[str, str]:
    """The samples of a run, by the names of their files."""
    paths = (workdir / "samples").glob("*.txt")
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def arrays(workdir: Path) -> dict[str, bytes]:
    """The newest checkpoint's arrays as bytes, under their paths."""
    import jax
    import numpy as np

    from gpt_jax.config import MeshConfig
    from gpt_jax.devices import make_mesh, start_devices
    from gpt_jax.runs import record
    from gpt_jax.runs.checkpoints import Checkpoints
    from gpt_jax.training.state import abstract_state

    config, one = record.existing_record(workdir).config, MeshConfig(cpu_devices=1)
    mesh = make_mesh(one, start_devices(one, 1))  # The arrays are the same on any devices.
    abstract = abstract_state(config, mesh)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(checkpoints.latest_step, abstract)
    leaves = jax.tree_util.tree_leaves_with_path(state.replace(key=jax.random.key_data(state.key)))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
