"""What the hardware supports, by its own description. Nothing is measured."""

import re
import sys
from pathlib import Path

import jax

from gpt_jax.config import GPTConfig
from gpt_jax.errors import UserError

MEMORY = Path("/proc/meminfo")
# A container's limits (cgroup v2): of memory, and of swap beside it.
MEMORY_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.swap.max")
UNKNOWN_MEMORY = 2**47  # No process can address more.


def best_matmul_dtype(device: jax.Device) -> str:
    """What `model.matmul_dtype = auto` means on a device: bfloat16 if the hardware has it.

    A CPU has it with the feature flags AVX512-BF16 or AMX (read on Linux only), an NVIDIA GPU from
    compute capability 8 on, a TPU always. Nothing is timed, so the choice is always the same.
    """
    if device.platform == "cpu":
        has_it = sys.platform == "linux" and cpu_has_bfloat16(Path("/proc/cpuinfo").read_text())
    else:
        has_it = not re.match(r"[1-7]\.", str(getattr(device, "compute_capability", "")))
    return "bfloat16" if has_it else "float32"


def cpu_has_bfloat16(flags: str) -> bool:
    """Whether a CPU's feature flags include products of bfloat16."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def check_attention(config: GPTConfig, device: jax.Device | None) -> None:
    """Rejects `model.attention = cudnn` where `jax.nn.dot_product_attention` cannot do it.

    Args:
      config: with `matmul_dtype` resolved.
      device: None = a device of another machine; it is taken to support cuDNN's attention.

    Raises:
      UserError: with all reasons.
    """
    if config.attention != "cudnn":
        return
    reasons = {
        f"the device is {getattr(device, 'device_kind', '')}": device is not None
        and not has_cudnn_attention(device),
        f"model.dropout = {config.dropout}": config.dropout > 0,
        f"model.matmul_dtype = {config.matmul_dtype}": config.matmul_dtype != "bfloat16",
        f"a head has {config.head_dim} numbers": config.head_dim % 8 or config.head_dim > 128,
    }
    if found := ", ".join(reason for reason, holds in reasons.items() if holds):
        raise UserError(
            "model.attention = 'cudnn' needs an NVIDIA GPU of compute capability 8.0 or more, no "
            "dropout, bfloat16 products, and heads of at most 128 numbers, a multiple of 8, but "
            f"{found}: change that, or set model.attention=xla"
        )


def has_cudnn_attention(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA GPU with cuDNN's attention: compute capability 8.0 or more.

    AMD's GPUs report another kind of name, such as "gfx90a".
    """
    number = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return number is not None and int(number[1]) >= 8


def memory_bytes(device: jax.Device) -> int:
    """The bytes of arrays that a device can hold at most. The devices of a CPU share theirs.

    An accelerator says it by itself. For a CPU it is memory and swap, or less in a container (read
    on Linux only). UNKNOWN_MEMORY if nothing is known.
    """
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", UNKNOWN_MEMORY))
    try:
        found = re.findall(r"(?:MemTotal|SwapTotal): +(\d+) kB", MEMORY.read_text())
    except OSError:
        return UNKNOWN_MEMORY
    total = 1024 * sum(map(int, found)) or UNKNOWN_MEMORY
    try:
        return min(total, sum(int(path.read_text()) for path in MEMORY_LIMITS))
    except (OSError, ValueError):  # There is no such file, or the limit is "max".
        return total
