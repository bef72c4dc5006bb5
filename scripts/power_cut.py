"""Cuts a run's power again and again: after each cut its disk must hold a checkpoint that loads.

    sudo .venv/bin/python scripts/power_cut.py --cuts=50

For Linux, as root. A run trains on a small ext4 disk in a file. At random moments the file system
is shut down without writing anything more, as by a power cut, and the run is killed. Then the disk
is mounted again, its checkpoints are loaded, and the run resumes. soak.py kills processes alone.
"""

import contextlib
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import command_line
from absl import flags

from gpt_jax.config import INT32, POSITIVE, checked
from gpt_jax.errors import UserError

FLAGS: Sequence[command_line.Flag] = (
    ("cuts", int, 50, "How many times the power is cut."),
    ("seed", int, 0, "Seed of the moments."),
)
DISK_BYTES = 256 * 2**20
SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, struct.pack("I", 2)  # FS_IOC_SHUTDOWN, Linux.
SETTINGS = {
    **{"model.block_size": 32, "model.n_layer": 1, "model.n_embd": 64, "data.corpus": "builtin"},
    **{"train.steps": 10**6, "train.eval_every": 10, "train.checkpoint_every": 5},
    **{"train.batch_size": 8, "mesh.cpu_devices": 1, "data.val_fraction": 0.01},
    "train.sample_tokens": 5,
}


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(cut_power, FLAGS, argv, __doc__ or "")


def cut_power(values: flags.FlagValues, words: list[str]) -> int:
    """Cuts the power and prints what was left. Returns 1 if there was once no checkpoint."""
    cuts = checked("cuts", values.cuts, int, POSITIVE)
    moments = random.Random(checked("seed", values.seed, int, INT32))
    if sys.platform != "linux" or os.geteuid():
        raise UserError("only root can mount disks, and only on Linux: use sudo there")
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name, "disk")
        disk.touch()
        os.truncate(disk, DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
        found = [after_a_cut(disk, moments.uniform(0, 2)) for _ in range(cuts)]
    lost = sum(not steps for steps in found)
    single = sum(len(steps) == 1 for steps in found)
    print(f"{cuts} power cuts: {lost} without a loadable checkpoint, {single} with only one")
    return int(lost > 0)


def after_a_cut(disk: Path, seconds: float) -> list[int]:
    """Trains until some time after a new checkpoint, cuts the power, and loads the checkpoints.

    Returns: the steps of those that load and whose digests are right.
    """
    with mounted(disk) as place, training(place / "run", disk.with_name("printed")) as process:
        before = newest(place / "run")
        while newest(place / "run") <= before:
            if process.poll() is not None:
                raise UserError("train.py ended before it saved: run it by itself to see why")
            time.sleep(0.01)
        time.sleep(seconds)
        shut_down(place)
    with mounted(disk) as place:
        return loadable(place / "run")


def newest(workdir: Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    names = [path.name for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
    return max(map(int, names), default=0)


def shut_down(place: Path) -> None:
    """Stops a mounted file system at once. What was not on the disk yet is lost."""
    import fcntl  # Not on Windows.

    folder = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, SHUTDOWN, WITHOUT_FLUSH)
    finally:
        os.close(folder)


@contextlib.contextmanager
def training(workdir: Path, printed: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of train.py, killed at the end."""
    train = [sys.executable, str(Path(__file__).with_name("train.py")), f"--workdir={workdir}"]
    overrides = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    with printed.open("wb") as file:
        process = subprocess.Popen([*train, *overrides], stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """Mounts the file system in a file; its journal is replayed as after a power cut."""
    place = disk.with_name("mounted")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def loadable(workdir: Path) -> list[int]:
    """The steps of the checkpoints that load and whose digests are right, oldest first."""
    import gpt_jax  # Not before the flags are checked: loading a model loads JAX.

    steps = []
    for path in workdir.glob("checkpoints/*"):
        with contextlib.suppress(UserError):
            if path.name.isdecimal():
                steps.append(gpt_jax.load(workdir, path.name).step)
    return sorted(steps)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
