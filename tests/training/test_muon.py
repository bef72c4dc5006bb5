"""Muon: which parameters it updates, and how."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh
from optax.contrib import scale_by_muon
from trees import paths_of, shapes_of

from gpt_jax.training.muon import groups, matrix_axes, orthogonalized
from gpt_jax.training.optimizer import make_optimizer


def test_muon_updates_only_the_kernels_of_blocks(small):
    """Tests the whole tree, and which parameters each part of the optimizer has state for."""
    values = {"qkv_bias": True, "activation": "swiglu", "qk_norm": True}
    config = small.with_values("model", **values).with_values("optimizer", name="muon")
    boxed = shapes_of(config.model)
    params = nn.unbox(boxed)
    matrices = {
        *(f"h_0/attn/{name}/kernel" for name in ("q", "k", "v", "c_proj")),
        *(f"h_0/mlp/{name}/kernel" for name in ("c_fc", "c_gate", "c_proj")),
    }
    for tree in (boxed, params):
        found = {name for name, group in paths_of(groups(tree)).items() if group == "matrix"}
        assert found == matrices
    inner = jax.eval_shape(make_optimizer(config).init, params)[1].inner_states
    kept = {name: paths_of(inner[name].inner_state[0].mu) for name in ("matrix", "other")}
    assert kept["matrix"].keys() == matrices
    assert kept["other"].keys() == paths_of(params).keys() - matrices


def test_the_state_does_not_depend_on_the_devices_so_a_run_can_resume_on_others(small):
    config = small.with_values("optimizer", name="muon")
    params = nn.unbox(shapes_of(config.model))
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    alone, shared = (
        jax.eval_shape(make_optimizer(config, devices).init, params) for devices in (None, mesh)
    )
    assert jax.tree.structure(alone) == jax.tree.structure(shared)
    assert len(alone[1].inner_states["matrix"].inner_state) == 4  # As earlier versions saved it.


@pytest.fixture
def muon(small):
    """A configuration with Muon, without clipping."""
    values = {"name": "muon", "warmup_steps": 0, "grad_clip": 0.0, "matrix_learning_rate": 0.1}
    return small.with_values("optimizer", **values, weight_decay=0.5, learning_rate=0.01)


@functools.cache
def jitted_update(config):
    return jax.jit(make_optimizer(config).update)


def first_updates(config, grads, params):
    return jitted_update(config)(grads, make_optimizer(config).init(params), params)[0]


def test_muon_updates_are_nearly_orthogonal(muon):
    """Jordan's five iterations leave up to 30 %; matrices with more outputs are scaled up."""
    shapes, rng = nn.unbox(shapes_of(muon.model)), np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)  # Nothing decays.
    updates = first_updates(muon, grads, zeros)["h_0"]
    for path, shape, scale in (
        (("attn", "q"), (16, 16), 1.0),
        (("attn", "c_proj"), (16, 16), 1.0),
        (("mlp", "c_fc"), (16, 64), 2.0),
        (("mlp", "c_proj"), (64, 16), 1.0),
    ):
        matrix = updates[path[0]][path[1]]["kernel"].reshape(shape)
        sizes = np.linalg.svd(matrix, compute_uv=False) / (0.1 * scale)
        assert sizes.min() > 0.5, path
        assert sizes.max() < 1.3, path


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("scanned", [False, True])
def test_orthogonal_matrices_are_those_of_optax_whatever_devices_share_the_work(
    small, devices, scanned
):
    """Eight matrices of one shape and four of another; three devices get unequal shares."""
    c = small.with_values("model", n_layer=2, scan_layers=scanned).model
    shapes, rng = nn.unbox(shapes_of(c)), np.random.default_rng(0)
    blocks = {name: tree for name, tree in shapes.items() if name.startswith("h")}
    kernels = {
        path: rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in traverse_util.flatten_dict(blocks).items()
        if path[-1] == "kernel"
    }
    grads, beta = traverse_util.unflatten_dict(kernels), 0.95
    whole = scale_by_muon(beta=beta, weight_dimension_numbers=matrix_axes)
    expected, _ = whole.update(grads, whole.init(grads))
    normal = scale_by_muon(ns_steps=0, beta=beta, weight_dimension_numbers=matrix_axes)
    normalized, _ = normal.update(grads, normal.init(grads))
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    found = jax.jit(lambda tree: orthogonalized(tree, mesh))(normalized)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_weight_decay_with_muon_applies_to_kernels_and_embeddings(muon):
    shapes = nn.unbox(shapes_of(muon.model))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    updates = paths_of(first_updates(muon, jax.tree.map(np.zeros_like, ones), ones))
    decay = {name: float(-update.mean()) for name, update in updates.items()}
    assert decay["h_0/attn/q/kernel"] == pytest.approx(0.05, rel=1e-5)
    assert decay["wte/embedding"] == decay["lm_head/kernel"] == pytest.approx(0.005, rel=1e-5)
    assert decay["h_0/ln_1/scale"] == decay["h_0/mlp/c_fc/bias"] == 0
