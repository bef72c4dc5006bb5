"""Scanned blocks against unrolled ones: parameters, logits, gradients, steps, what a run leaves."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from steps import losses, setting

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.gpt2 import export
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stacking import stack, unrolled, unstack
from gpt_jax.training import evaluation, loop
from gpt_jax.training.state import abstract_state

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(2))


@pytest.fixture
def config(small):
    """A model of three blocks with dropout, whose embedding every block reads again."""
    return small.with_values("model", n_layer=3, embedding_skip=True).model


def init(config):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(lambda: GPT(config).init(jax.random.key(0), tokens)["params"])()


def assert_near(actual, expected, atol):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), actual, expected)


def test_stacked_parameters_are_those_of_the_scanned_model_names_of_axes_included(config):
    boxed = init(config)
    scanned = dataclasses.replace(config, scan_layers=True)
    expected = jax.eval_shape(lambda: init(scanned))
    assert jax.tree.map(jnp.shape, stack(boxed)) == jax.tree.map(jnp.shape, expected)
    assert stack(boxed)["h"]["attn"]["q"]["kernel"].names == (
        *("layers", "embed", "heads", "head_dim"),
    )


def test_unstacked_parameters_are_what_was_stacked(config):
    params = nn.unbox(init(config))
    stacked = stack(params)
    assert stacked.keys() == {"wte", "wpe", "h", "ln_f", "lm_head"}
    np.testing.assert_array_equal(
        stacked["h"]["mlp"]["c_fc"]["kernel"][2], params["h_2"]["mlp"]["c_fc"]["kernel"]
    )
    again = unstack(stacked)
    assert again.keys() == params.keys()
    jax.tree.map(np.testing.assert_array_equal, again, params)


@partial(jax.jit, static_argnums=0)
def gradient(config, params, tokens):
    """Of a number that depends on every logit; and the logits. Dropout is on."""

    def total(params):
        logits = GPT(config).apply({"params": params}, tokens, KEYS)
        return (logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))).sum(), logits

    return jax.grad(total, has_aux=True)(params)


@pytest.mark.parametrize(
    ("remat", "scan_layers"), [(True, False), (False, True), (True, True)], ids=str
)
def test_logits_and_gradients_are_those_of_the_plain_model(config, remat, scan_layers):
    """Up to the order in which float32 sums are made."""
    params = jax.tree.map(lambda leaf: leaf * 3, nn.unbox(init(config)))
    tokens = jax.random.randint(jax.random.key(1), (2, config.block_size), 0, config.vocab_size)
    expected, expected_logits = gradient(config, params, tokens)
    other = dataclasses.replace(config, remat=remat, scan_layers=scan_layers)
    grads, logits = gradient(other, stack(params) if scan_layers else params, tokens)
    assert_near(logits, expected_logits, 1e-6)
    assert_near(
        unstack(grads) if scan_layers else grads, expected, 2e-5
    )  # They reach 44, logits 2.


def test_blocks_that_are_computed_again_need_less_memory(config):
    """Scanned: on a CPU, XLA shares the work of both passes where it sees them side by side."""
    needed = []
    for remat in (False, True):
        c = dataclasses.replace(config, n_layer=8, block_size=64, scan_layers=True, remat=remat)
        params = nn.unbox(jax.eval_shape(lambda c=c: init(c)))
        compiled = gradient.lower(c, params, jax.ShapeDtypeStruct((2, 64), "int32")).compile()
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.5 * needed[0]


def test_steps_are_those_of_the_unrolled_model_on_another_mesh_too(small):
    """From the same bits, with Muon for matrices and AdamW for the rest, and an average of the
    parameters, which stay within a thousandth of the learning rate."""
    values = {"name": "muon", "weight_decay": 0.1, "average_decay": 0.5}
    config = small.with_values("optimizer", **values).with_values("model", n_layer=2)
    mesh = {"cpu_devices": 4, "fsdp": 2, "tensor": 2}
    scanned = config.with_values("model", scan_layers=True, remat=True)
    first, first_scanned = setting(config)[0], setting(scanned, **mesh)[0]
    jax.tree.map(np.testing.assert_array_equal, unstack(first_scanned.params), first.params)
    expected, state = losses(config, 4)
    actual, state_scanned = losses(scanned, 4, **mesh)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_near(unstack(jax.device_get(state_scanned.evaluated)), state.evaluated, 1e-5)


def test_stacked_parameters_lie_on_a_mesh_as_those_apart(small):
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


def test_a_scanned_run_is_sampled_and_loaded_unrolled(scanned_run):
    """Its held-out loss, which the scanned model has computed, is that of the unrolled one."""
    model = gpt_jax.load(scanned_run)
    assert not model.config.model.scan_layers
    assert {"h_0", "h_1"} < model.params.keys()
    assert (scanned_run / "samples" / "4.txt").read_text() == model.generate() + "\n"
    held_out = TEXT[int(len(TEXT) * 0.9) :]
    windows = (len(held_out) - 1) // 16
    loss = evaluation.evaluate(scanned_run, "latest").loss
    assert model.loss(held_out[: 16 * windows + 1]) == pytest.approx(loss, rel=1e-6)
    assert model.val_loss == pytest.approx(loss, rel=1e-6)


def test_a_scanned_run_is_exported(scanned_run, tmp_path):
    model = gpt_jax.load(scanned_run)
    export.export(model, tmp_path / "out")
    kernel = open_folder(tmp_path / "out").read("h_1/attn/q/kernel", (16, 2, 8))
    np.testing.assert_array_equal(kernel, model.params["h_1"]["attn"]["q"]["kernel"])


def test_what_decodes_a_model_is_unrolled_and_of_every_machine(config):
    params = {"h": {"kernel": jnp.arange(6.0).reshape(3, 2)}, "ln_f": jnp.ones(2)}
    scanned = dataclasses.replace(config, scan_layers=True, remat=True, attention="cudnn")
    same, apart = unrolled(scanned, params)
    assert same == config
    assert apart["h_1"]["kernel"].tolist() == [2.0, 3.0]
    assert unrolled(config, apart) == (config, apart)
