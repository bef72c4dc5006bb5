"""The plan of a run: its figures, and that it allocates, writes and reads nothing."""

import re

import jax
import pytest
import train
from support import GPT2_TINY, ROOT

from gpt_jax.devices.mesh import make_mesh
from gpt_jax.errors import UserError
from gpt_jax.training import plan as plan_module
from gpt_jax.training.memory import activation_bytes
from gpt_jax.training.plan import count_parameters, flops_per_token, plan
from gpt_jax.training.state import abstract_state, init_state


@pytest.fixture
def unread(small):
    """A configuration whose corpus does not exist."""
    return small.with_values("data", corpus="/nothing.txt")


def test_sizes_match_the_state(unread):
    config = unread.with_values("optimizer", average_decay=0.9)
    found = plan(config)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = init_state(config, abstract_state(config, mesh))
    sizes = {
        name: sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(state, name)))
        for name in ("params", "opt_state", "average")
    }
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert (found.parameter_bytes, found.optimizer_bytes) == (sizes["params"], sizes["opt_state"])
    assert found.average_bytes == sizes["average"] == sizes["params"]
    assert found.step_bytes > found.parameter_bytes  # Gradients are as large.
    assert found.tokens == 8 * 16


def test_operations_match_a_calculation_by_hand(small):
    """One block of width 16, context 16, 11 ids."""
    matrices, others = 12 * 16**2, 16 + 64 + 16 + 3 * 32  # Biases of three products, LayerNorms.
    attention = 12 * 1 * 16 * 16
    c, tables = small.model, (11 + 16) * 16
    parameters = plan(small.with_values("data", corpus="/nothing.txt")).parameters
    assert parameters == tables + matrices + 11 * 16 + others
    assert flops_per_token(c, parameters) == 6 * (parameters - tables) + attention
    tied = small.with_values("model", tie_embeddings=True).model
    assert flops_per_token(tied, parameters) == 6 * (parameters - 16 * 16) + attention


def test_the_layout_changes_memory_but_not_operations(unread):
    """XLA counts a loop's body once, and for one device; the plan multiplies."""
    whole = unread.with_values("train", microbatch_size=8)
    two_devices = unread.with_values("mesh", cpu_devices=2)
    plans = [plan(config) for config in (whole, unread, two_devices)]
    assert [(p.devices, p.microbatches) for p in plans] == [(1, 1), (1, 4), (2, 2)]
    assert len({p.flops for p in plans}) == 1
    for found in plans:
        assert found.counted_flops == pytest.approx(plans[0].counted_flops, rel=0.3)
    assert plans[1].step_bytes < plans[0].step_bytes


@pytest.mark.parametrize("sizes", [(1024, 1, 1), (8, 32, 4)], ids=str)
def test_other_devices_are_planned_from_shapes(unread, sizes):
    config = unread.with_values("mesh", data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    config = config.with_values("train", batch_size=1024, microbatch_size=0)
    config = config.with_values("model", vocab_size=1024, n_embd=128, n_head=4)
    found = plan(config)
    assert not found.at_hand
    assert found.devices == 1024
    one_device = make_mesh(unread.mesh, jax.devices()[:1])
    assert found.parameters == count_parameters(abstract_state(config, one_device).params)
    everywhere = 3 * 4 * found.parameters
    if sizes[1:] == (1, 1):  # Seven small arrays besides: steps, counts, the key.
        assert 0 < found.state_bytes - everywhere < 64
        assert found.sent["data"] == 2 * found.parameter_bytes * 1023 / 1024
        assert found.sent["fsdp"] == found.sent["tensor"] == 0
    else:
        assert everywhere / 128 < found.state_bytes < everywhere / 100
        assert min(found.sent.values()) > 0


def test_too_many_devices_to_plan_are_rejected(unread):
    with pytest.raises(UserError, match="are 1025 devices: plan for at most 1024"):
        plan(unread.with_values("mesh", data=1025))


def test_activation_bytes_are_close_to_the_compiled_step(unread):
    """XLA on a CPU needs up to twice as much, and never less."""
    config = unread.with_values("model", n_layer=2, n_embd=64, block_size=64)
    config = config.with_values("train", microbatch_size=8)
    found = plan(config)
    counted = activation_bytes(found.config.model, 8) + found.parameter_bytes
    assert counted < found.step_bytes < 2.2 * counted
    assert activation_bytes(found.config.model, 8, tensor=2) < 0.7 * activation_bytes(
        found.config.model, 8
    )


def test_microbatches_keep_two_gradients_and_a_batch_counts(unread):
    """The sum of the gradients, and those of the microbatch that is added to it."""
    config = unread.with_values("mesh", data=2, fsdp=1, tensor=1)  # Planned from shapes.
    for size, count in ((4, 1), (2, 2), (1, 2)):
        found = plan(config.with_values("train", microbatch_size=size))
        batch = 4 * 4 * 17
        kept = found.step_bytes - activation_bytes(found.config.model, size) - batch
        assert (found.microbatches, kept) == (4 // size, count * found.parameter_bytes)


def test_what_does_not_fit_is_planned_without_compiling(unread, monkeypatch):
    monkeypatch.setattr(plan_module, "jit_train_step", lambda *args: pytest.fail("it compiles"))
    found = plan(unread.with_values("model", n_inner=2**31 - 1, n_embd=2**30))
    assert not found.at_hand
    assert found.step_bytes > found.parameter_bytes > 2**63
    assert plan(unread.with_values("train", batch_size=2**31 - 2)).step_bytes > 2**31 * 17


def test_no_counted_operations_for_scanned_blocks(unread):
    found = plan(unread.with_values("model", n_layer=3, scan_layers=True))
    assert found.counted_flops == 0
    names = [row[0] for row in train.plan_rows(found)]
    assert "TFLOP per step" in names and "counted by XLA" not in names


def test_unsupported_attention_is_rejected_before_compiling(unread):
    values = {"attention": "cudnn", "dropout": 0.0, "matmul_dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"but the device is cpu: .* set model.attention=xla"):
        plan(unread.with_values("model", **values))


def test_a_plan_allocates_nothing(unread):
    before = {id(array) for array in jax.live_arrays()}
    plan(unread)
    assert {id(array) for array in jax.live_arrays()} <= before


def test_the_vocabulary_is_read_from_the_corpus_if_it_is_not_given(small, unread, text_file):
    config = small.with_values("model", vocab_size=0)
    found = plan(config.with_values("data", corpus=str(text_file)))
    assert found.config.model.vocab_size == len(set(text_file.read_text(encoding="utf-8")))
    unknown = unread.with_values("model", vocab_size=0)
    unknown = unknown.with_values("mesh", data=2, fsdp=1, tensor=1)  # Planned from shapes.
    assert plan(unknown.with_values("data", tokenizer="byte")).config.model.vocab_size == 256
    with pytest.raises(UserError, match=r"/nothing.txt"):
        plan(unknown)


def test_the_plan_of_given_weights_prints_a_table_and_makes_no_folder(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT / 'configs' / 'tiny.py'}"
    flags = ["--config.train.batch_size=8", "--config.mesh.cpu_devices=1", "--plan"]
    assert train.main(["scripts/train.py", config, f"--init_from={GPT2_TINY}", *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"parameters +7,536 +vocabulary 288", out)
    assert re.search(r"tokens per step +192 +8 x 24 in \d microbatch", out)
    assert list(tmp_path.iterdir()) == []
