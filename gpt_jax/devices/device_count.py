"""How many devices a run uses."""

import itertools
import os
import sys
from pathlib import Path

import jax

from gpt_jax.config import MeshConfig
from gpt_jax.errors import UserError

# More devices than this in one process take long to compile for and wait for one another.
MAX_CPU_DEVICES = 16


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """The cores this process may use, MAX_CPU_DEVICES at most: by affinity and container quota."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, container_cores(CPU_QUOTA) or cores, MAX_CPU_DEVICES))


def container_cores(path: Path) -> int | None:
    """The whole cores a container's quota allows (cgroup v2: "quota period"); None without one."""
    try:
        quota, period = path.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # There is no such file, or it says "max".
        return None


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def start_devices(config: MeshConfig, batch_size: int) -> list[jax.Device]:
    """The devices a run uses, of all its processes; on a CPU, `cpu_devices` of each process.

    Left to choose, as many as this process has cores and as share the batch evenly. Where JAX is
    already running (a notebook, a test), the devices at hand are taken in place of the cores.

    Raises:
      UserError: when `cpu_devices` are more than JAX already runs with.
    """
    count = config.cpu_devices or largest_divisor(batch_size, usable_cores())
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        count = config.cpu_devices or largest_divisor(batch_size, len(jax.local_devices()))
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return devices
    if (running := len(jax.local_devices())) < count:
        raise UserError(
            f"mesh.cpu_devices = {count}, but JAX already runs with {running}: ask for fewer, "
            "or set it before JAX starts"
        )
    of_processes = itertools.groupby(devices, lambda device: device.process_index)
    return [device for _, own in of_processes for device in itertools.islice(own, count)]
