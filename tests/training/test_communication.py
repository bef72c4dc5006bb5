"""What devices send one another: by formula, and in the compiled step."""

import math
import re

import jax
import pytest

from gpt_jax.config.config import Config
from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.training.communication import communication, gather_bytes
from gpt_jax.training.state import abstract_state
from gpt_jax.training.step import jit_train_step

BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
SHAPE = re.compile(r"(f32|s32|u32|pred)\[([\d,]*)\]")


@pytest.fixture
def config():
    """Up to 8 devices share every axis evenly."""
    model = {"vocab_size": 64, "block_size": 32, "n_layer": 2, "n_head": 8, "n_embd": 64}
    model["matmul_dtype"] = "float32"
    return Config.from_dict({"model": model, "train": {"batch_size": 32, "microbatch_size": 4}})


def laid_out(config, data, fsdp, tensor):
    config = config.with_values("mesh", cpu_devices=8, data=data, fsdp=fsdp, tensor=tensor)
    mesh = make_mesh(config.mesh, jax.devices()[: data * fsdp * tensor])
    return config, make_batch_layout(config, mesh), abstract_state(config, mesh)


def compiled(config, layout, abstract):
    batch = jax.ShapeDtypeStruct((1, layout.rows, 33), "int32", sharding=layout.sharding)
    return jit_train_step(config, abstract, layout).lower(abstract, batch).compile()


def traffic(program, ways):
    """Bytes that a device sends for the collectives of a compiled program, in a ring of all."""
    total = 0.0
    for line in program.as_text().splitlines():
        if found := re.search(r"= (.*?) (all-reduce|all-gather)\(", line):
            shapes, kind = found.groups()
            size = sum(
                BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
                for dtype, dims in SHAPE.findall(shapes)
            )
            total += gather_bytes(size, ways) * (2 if kind == "all-reduce" else 1)
    return total


@pytest.mark.parametrize(
    ("mesh", "optimizer"), [((8, 1, 1), "adam"), ((8, 1, 1), "muon"), ((1, 8, 1), "adam")], ids=str
)
def test_the_compiled_step_sends_what_the_formulas_predict(config, mesh, optimizer):
    config = config.with_values("optimizer", name=optimizer).with_values("model", n_layer=4)
    config, layout, abstract = laid_out(config, *mesh)
    assert layout.microbatches == 1
    program = compiled(config, layout, abstract)
    expected = sum(communication(abstract, layout, config).values())
    assert traffic(program, 8) == pytest.approx(expected, rel=0.01)


def test_scanned_blocks_send_parameters_and_no_activations(config):
    """The program lists what a loop sends only once, so it is less than the formula. Activations
    would be 8 times as much."""
    config = config.with_values("model", scan_layers=True, remat=True)
    config, layout, abstract = laid_out(config, 1, 8, 1)
    program = compiled(config, layout, abstract)
    expected = sum(communication(abstract, layout, config).values())
    assert 0.5 * expected < traffic(program, 8) < expected


def test_formulas_match_a_calculation_by_hand(config):
    """On a mesh of 2 x 2 x 2, without biases: a device has 4 windows of 32 tokens at a time."""
    config = config.with_values("model", bias=False)
    config, layout, abstract = laid_out(config, 2, 2, 2)
    sent = communication(abstract, layout, config)
    tables, blocks = 2 * 64 * 64, 2 * 12 * 64 * 64
    halved = tables + blocks  # Sharded by tensor; positions and scales are not.
    whole = 32 * 64 + 5 * 64
    assert sent["fsdp"] == 3 * 4 * (halved / 2 + whole) / 2 * layout.microbatches
    assert sent["data"] == 2 * 4 * (halved / 4 + whole / 2) / 2 * layout.microbatches
    activation = 4 * 8 * 32 * 64
    assert sent["tensor"] == (2 * 2 * 2 + 2) * 2 * activation / 2


def test_gradients_are_summed_once_a_step_if_every_device_has_all_parameters(config):
    """Else they are summed after every microbatch."""
    sent = {}
    for size in (8, 4):
        smaller = config.with_values("train", microbatch_size=size)
        resolved, layout, abstract = laid_out(smaller, 4, 1, 1)
        sent[layout.microbatches] = communication(abstract, layout, resolved)["data"]
    assert sent[1] == sent[2] > 0


def test_one_device_sends_nothing(config):
    config, layout, abstract = laid_out(config, 1, 1, 1)
    assert set(communication(abstract, layout, config).values()) == {0}


def test_unsharded_heads_send_nothing_along_tensor(config, capsys):
    config = config.with_values("model", n_head=1, vocab_size=65)
    config, layout, abstract = laid_out(config, 1, 1, 8)
    activation = 4 * 32 * 32 * 64
    sent = communication(abstract, layout, config)["tensor"]
    assert sent == 2 * 2 * 2 * gather_bytes(activation, 8)  # In two MLPs.
    assert "heads = 1 is not sharded" in capsys.readouterr().err
