"""The table in docs/scaling.md equals what --plan computes, at the rates stated above it."""

import math
import re

import pytest
from support import ROOT

from configs import gpt2
from gpt_jax.config.config import from_config_dict
from gpt_jax.training.plan import plan

FLOPS = 0.4 * 989e12
IN_HOST, BETWEEN = 450e9, 50e9  # Bytes per second.
DEVICES_OF_HOST = 8
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \d+ \| (\d+) x (\d+) x (\d+) \|.*$", PAGE, re.MULTILINE)


def row(data, fsdp, tensor):
    """A row of the table."""
    config = from_config_dict(gpt2.get_config("small")).with_values("model", vocab_size=50304)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    found = plan(config.with_values("mesh", cpu_devices=1, **sizes))  # No such devices here.
    cells = [
        f"{found.devices}",
        f"{data} x {fsdp} x {tensor}",
        f"{found.state_bytes / 1e6:,.0f} MB",
        f"{1e3 * found.flops / found.devices / FLOPS:.1f} ms",
    ]
    for number, axis in enumerate(found.mesh):
        reach = math.prod(list(found.mesh.values())[number:])  # Tensor devices are neighbours.
        speed = IN_HOST if reach <= DEVICES_OF_HOST else BETWEEN
        cells.append(f"{1e3 * found.sent[axis] / speed:.1f} ms" if found.sent[axis] else "-")
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("mesh", ROWS)
def test_a_row_of_the_table_equals_the_plan(mesh):
    assert row(*map(int, mesh)) in PAGE


def test_the_table_has_rows_for_8_64_and_512_devices():
    assert {math.prod(map(int, mesh)) for mesh in ROWS} == {8, 64, 512}
