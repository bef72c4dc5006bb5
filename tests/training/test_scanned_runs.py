"""Runs with scanned blocks: their steps, their shards, and what they leave."""

from functools import partial

import jax
import numpy as np
import pytest
from steps import losses, setting

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.gpt2.export import export_folder
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.model.stacking import unstack
from gpt_jax.training import evaluation, loop
from gpt_jax.training.state import abstract_state


def test_scanned_steps_match_unrolled_steps_on_another_mesh(small):
    """Both start from the same bits, use Muon and AdamW, and average the parameters.

    The averages stay within a thousandth of the learning rate.
    """
    values = {"name": "muon", "weight_decay": 0.1, "average_decay": 0.5}
    config = small.with_values("optimizer", **values).with_values("model", n_layer=2)
    mesh = {"cpu_devices": 4, "fsdp": 2, "tensor": 2}
    scanned = config.with_values("model", scan_layers=True, remat=True)
    first, first_scanned = setting(config)[0], setting(scanned, **mesh)[0]
    jax.tree.map(np.testing.assert_array_equal, unstack(first_scanned.params), first.params)
    expected, state = losses(config, 4)
    actual, state_scanned = losses(scanned, 4, **mesh)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    near = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(near, unstack(jax.device_get(state_scanned.evaluated)), state.evaluated)


def test_stacked_parameters_are_sharded_like_unrolled_ones(small):
    config = small.with_values("mesh", cpu_devices=8, fsdp=2, tensor=2)
    mesh = make_mesh(config.mesh, jax.devices())
    scanned = config.with_values("model", scan_layers=True)
    specs, expected = (
        {
            jax.tree_util.keystr(path): tuple(leaf.sharding.spec)
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (
            abstract_state(scanned, mesh).params["h"],
            abstract_state(config, mesh).params["h_0"],
        )
    )
    assert specs == {name: (None, *spec) for name, spec in expected.items()}


TEXT = "To be, or not to be, that is the question.\n" * 40


@pytest.fixture(scope="module")
def scanned_run(tmp_path_factory):
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("scanned")
    (folder / "corpus.txt").write_text(TEXT)
    config = Config.from_dict(
        {
            "model": {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
            | {"matmul_dtype": "float32", "scan_layers": True},
            "data": {"corpus": str(folder / "corpus.txt")},
            "optimizer": {"learning_rate": 0.1, "warmup_steps": 2},
            "train": {"steps": 4, "batch_size": 8, "microbatch_size": 8},
            "sample": {"prompt": "To ", "max_new_tokens": 20},
            "mesh": {"cpu_devices": 1},
        }
    )
    loop.train(config, folder / "run")
    return folder / "run"


def test_a_scanned_run_is_sampled_evaluated_and_loaded_unrolled(scanned_run):
    """The validation loss of the scanned model equals that of the unrolled one."""
    model = gpt_jax.load(scanned_run)
    assert not model.config.model.scan_layers
    assert {"h_0", "h_1"} < model.params.keys()
    assert (scanned_run / "samples" / "4.txt").read_text() == model.generate() + "\n"
    val_text = TEXT[int(len(TEXT) * 0.9) :]
    windows = (len(val_text) - 1) // 16
    loss = evaluation.evaluate(scanned_run, "latest").loss
    assert model.loss(val_text[: 16 * windows + 1]) == pytest.approx(loss, rel=1e-6)
    assert model.val_loss == pytest.approx(loss, rel=1e-6)


def test_a_scanned_run_is_exported(scanned_run, tmp_path):
    model = gpt_jax.load(scanned_run)
    export_folder(model.config.model, model.params, model.tokenizer, tmp_path / "out")
    kernel = open_folder(tmp_path / "out").read("h_1/attn/q/kernel", (16, 2, 8))
    np.testing.assert_array_equal(kernel, model.params["h_1"]["attn"]["q"]["kernel"])
