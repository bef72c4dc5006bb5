"""The memory of the machine, by its own description. The rest is in test_sharding.py."""

import types

import pytest

from gpt_jax.devices import hardware

CPU = types.SimpleNamespace(platform="cpu")
MEMINFO = "MemTotal:       1000 kB\nMemFree:  7 kB\nSwapTotal:       24 kB\n"


@pytest.mark.parametrize(
    ("meminfo", "limits", "expected"),
    [
        (MEMINFO, (None, None), 1024 * 1024),
        (MEMINFO, ("max", "max"), 1024 * 1024),
        (MEMINFO, ("3000", "max"), 1024 * 1024),
        (MEMINFO, ("3000", "0"), 3000),
        (MEMINFO, ("3000", "500"), 3500),
        (MEMINFO, ("9" * 18, "0"), 1024 * 1024),
        (None, ("3000", "0"), hardware.UNKNOWN_MEMORY),
        ("", (None, None), hardware.UNKNOWN_MEMORY),
    ],
)
def test_memory_is_that_of_the_machine_or_its_container(
    tmp_path, monkeypatch, meminfo, limits, expected
):
    files = [tmp_path / name for name in ("meminfo", "memory.max", "memory.swap.max")]
    for file, content in zip(files, (meminfo, *limits), strict=True):
        if content is not None:
            file.write_text(content)
    monkeypatch.setattr(hardware, "MEMORY", files[0])
    monkeypatch.setattr(hardware, "MEMORY_LIMITS", files[1:])
    assert hardware.memory_bytes(CPU) == expected


@pytest.mark.parametrize(
    ("stats", "expected"), [({"bytes_limit": 80}, 80), ({}, 2**47), (None, 2**47)]
)
def test_an_accelerator_reports_its_own_memory(stats, expected):
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert hardware.memory_bytes(device) == expected
