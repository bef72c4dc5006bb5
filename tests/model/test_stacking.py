"""Scanned blocks against unrolled ones: parameters, logits, gradients, memory."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.model.blocks import Block
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stacking import stack, unrolled, unstack

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(2))


@pytest.fixture
def config(small):
    """Two blocks with dropout; each adds the embedding to its input."""
    return small.with_values("model", n_layer=2, embedding_skip=True).model


@functools.cache
def init(config):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(lambda: GPT(config).init(jax.random.key(0), tokens)["params"])()


def assert_near(actual, expected, atol):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), actual, expected)


def test_stacked_parameters_have_the_shapes_and_axis_names_of_the_scanned_model(config):
    stacked = jax.eval_shape(lambda: stack(init.__wrapped__(config)))
    scanned = dataclasses.replace(config, scan_layers=True)
    expected = jax.eval_shape(lambda: init.__wrapped__(scanned))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected)
    names = ("layers", "embed", "heads", "head_dim")
    assert stacked["h"]["attn"]["q"]["kernel"].names == names


def test_unstack_reverses_stack(config):
    params = nn.unbox(init(config))
    stacked = stack(params)
    assert stacked.keys() == {"wte", "wpe", "h", "ln_f", "lm_head"}
    np.testing.assert_array_equal(
        stacked["h"]["mlp"]["c_fc"]["kernel"][1], params["h_1"]["mlp"]["c_fc"]["kernel"]
    )
    again = unstack(stacked)
    assert again.keys() == params.keys()
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.fixture
def traced(monkeypatch):
    """The blocks that have been traced since, by name."""
    names = []

    def call(block, *arguments):
        names.append(block.name)
        return original(block, *arguments)

    original = Block.__call__
    monkeypatch.setattr(Block, "__call__", call)
    return names


def test_unrolled_blocks_are_traced_once_but_initialized_one_by_one(config, traced):
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(init.__wrapped__(config))
    assert traced == ["h_0", "h_1"]
    del traced[:]
    jax.eval_shape(lambda: GPT(config).apply({"params": params}, tokens))
    assert traced == ["h_0"]


@partial(jax.jit, static_argnums=0)
def gradient(config, params, tokens):
    """The gradient of a number that depends on every logit, and the logits. Dropout is on."""

    def total(params):
        logits = GPT(config).apply({"params": params}, tokens, KEYS)
        return (logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))).sum(), logits

    return jax.grad(total, has_aux=True)(params)


@pytest.mark.parametrize(
    ("remat", "scan_layers"), [(True, False), (False, True), (True, True)], ids=str
)
def test_logits_and_gradients_match_the_plain_model(config, remat, scan_layers):
    """Only the order of float32 sums differs."""
    params = jax.tree.map(lambda leaf: leaf * 3, nn.unbox(init(config)))
    tokens = jax.random.randint(jax.random.key(1), (2, config.block_size), 0, config.vocab_size)
    expected, expected_logits = gradient(config, params, tokens)
    other = dataclasses.replace(config, remat=remat, scan_layers=scan_layers)
    grads, logits = gradient(other, stack(params) if scan_layers else params, tokens)
    assert_near(logits, expected_logits, 1e-6)
    grads = unstack(grads) if scan_layers else grads
    assert_near(grads, expected, 2e-5)  # Gradients reach 44, logits 2.


def test_remat_needs_less_memory(config):
    """With scanned blocks: in unrolled ones, XLA on a CPU merges the work of both passes."""
    needed = []
    for remat in (False, True):
        c = dataclasses.replace(config, n_layer=8, block_size=64, scan_layers=True, remat=remat)
        params = nn.unbox(jax.eval_shape(lambda c=c: init.__wrapped__(c)))
        compiled = gradient.lower(c, params, jax.ShapeDtypeStruct((2, 64), "int32")).compile()
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.5 * needed[0]


def test_unrolled_removes_training_options(config):
    params = {"h": {"kernel": jnp.arange(4.0).reshape(2, 2)}, "ln_f": jnp.ones(2)}
    scanned = dataclasses.replace(config, scan_layers=True, remat=True, attention="cudnn")
    same, apart = unrolled(scanned, params)
    assert same == config
    assert apart["h_1"]["kernel"].tolist() == [2.0, 3.0]
    assert unrolled(config, apart) == (config, apart)
