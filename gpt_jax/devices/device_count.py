"""How many devices a run uses: the usable cores of a CPU, or all accelerators."""

import itertools
import os
import sys
from pathlib import Path

import jax

from gpt_jax.config import MeshConfig
from gpt_jax.errors import UserError

MAX_CPU_DEVICES = 16  # More in one process compile slowly and wait long for one another.
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """The cores this process may use by affinity and container quota, at most MAX_CPU_DEVICES."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, container_cores(CPU_QUOTA) or cores, MAX_CPU_DEVICES))


def container_cores(path: Path) -> int | None:
    """The whole cores that a container's quota allows (cgroup v2: "quota period"), or None."""
    try:
        quota, period = path.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # There is no such file, or the quota is "max".
        return None


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def own_devices() -> list[jax.Device]:
    """The devices of this process. Starts JAX.

    Raises:
      UserError: if JAX_PLATFORMS, a variable of the environment, names a platform that is not here.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # For `cuda` without a GPU, JAX asserts.
        if not (platforms := os.environ.get("JAX_PLATFORMS")):
            raise
        raise UserError(
            f"JAX_PLATFORMS={platforms} names a platform that JAX does not find here: unset the "
            "variable, or set it to cpu"
        ) from error


def start_devices(config: MeshConfig, batch_size: int) -> list[jax.Device]:
    """The devices of a run, over all its processes. On a CPU: `cpu_devices` of each process.

    If `cpu_devices` is 0, a run uses as many of this process's cores as can share the batch evenly.
    If JAX already runs (in a notebook or a test), its devices count instead of the cores.

    Raises:
      UserError: as `own_devices`, or if `cpu_devices` is more than JAX already runs with.
    """
    count = config.cpu_devices or largest_divisor(batch_size, usable_cores())
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        count = config.cpu_devices or largest_divisor(batch_size, len(jax.local_devices()))
    own_devices()
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return devices
    if (running := len(jax.local_devices())) < count:
        raise UserError(
            f"mesh.cpu_devices = {count}, but JAX already runs with {running}: choose at most "
            f"{running}, or set the number before JAX starts"
        )
    by_process = itertools.groupby(devices, lambda device: device.process_index)
    return [device for _, own in by_process for device in itertools.islice(own, count)]
