"""The model: parameters, causality, initialization, precision, dropout, decoding with a cache."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from gpt_jax.model.gpt import GPT, init_cache


def init(config, seed=0):
    return nn.unbox(jitted_init(config, jax.random.key(seed)))["params"]


@partial(jax.jit, static_argnums=0)
def jitted_init(config, key):
    return GPT(config).init(key, jnp.zeros((1, 1), jnp.int32))


def tokens_of(config, rows=2, seed=1):
    shape = (rows, config.block_size)
    return jax.random.randint(jax.random.key(seed), shape, 0, config.vocab_size)


@partial(jax.jit, static_argnums=0)
def apply(config, params, tokens, keys=None):
    return GPT(config).apply({"params": params}, tokens, keys)


@pytest.fixture
def config(small):
    return small.model


def paths(params):
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}


def test_parameter_tree_is_frozen(small):
    c = small.with_values("model", n_layer=1, qkv_bias=True).model
    assert paths(init(c)) == {
        "wte/embedding": (11, 16),
        "wpe/embedding": (16, 16),
        "h_0/ln_1/scale": (16,),
        "h_0/ln_1/bias": (16,),
        "h_0/attn/q/kernel": (16, 2, 8),
        "h_0/attn/q/bias": (2, 8),
        "h_0/attn/k/kernel": (16, 2, 8),
        "h_0/attn/k/bias": (2, 8),
        "h_0/attn/v/kernel": (16, 2, 8),
        "h_0/attn/v/bias": (2, 8),
        "h_0/attn/c_proj/kernel": (2, 8, 16),
        "h_0/attn/c_proj/bias": (16,),
        "h_0/ln_2/scale": (16,),
        "h_0/ln_2/bias": (16,),
        "h_0/mlp/c_fc/kernel": (16, 64),
        "h_0/mlp/c_fc/bias": (64,),
        "h_0/mlp/c_proj/kernel": (64, 16),
        "h_0/mlp/c_proj/bias": (16,),
        "ln_f/scale": (16,),
        "ln_f/bias": (16,),
        "lm_head/kernel": (16, 11),
    }


def test_parameter_tree_with_options(small):
    values = {"n_kv_head": 1, "position": "rotary", "norm": "rms", "qk_norm": True}
    values |= {"activation": "swiglu", "n_inner": 24, "bias": False, "n_layer": 1}
    assert paths(init(small.with_values("model", **values).model)) == {
        "wte/embedding": (11, 16),
        "h_0/ln_1/scale": (16,),
        "h_0/attn/q/kernel": (16, 2, 8),
        "h_0/attn/k/kernel": (16, 1, 8),
        "h_0/attn/v/kernel": (16, 1, 8),
        "h_0/attn/q_norm/scale": (8,),
        "h_0/attn/k_norm/scale": (8,),
        "h_0/attn/c_proj/kernel": (2, 8, 16),
        "h_0/ln_2/scale": (16,),
        "h_0/mlp/c_fc/kernel": (16, 24),
        "h_0/mlp/c_gate/kernel": (16, 24),
        "h_0/mlp/c_proj/kernel": (24, 16),
        "ln_f/scale": (16,),
        "lm_head/kernel": (16, 11),
    }


def test_grouped_heads_match_repeated_keys_and_values(small):
    shared = dataclasses.replace(small.model, n_head=4, n_kv_head=2)
    params, tokens = init(shared), tokens_of(shared)
    expected = apply(shared, params, tokens)
    attn = params["h_0"]["attn"]
    for name in ("k", "v"):
        attn[name]["kernel"] = jnp.repeat(attn[name]["kernel"], 2, axis=1)
    plain = dataclasses.replace(shared, n_kv_head=0)
    np.testing.assert_allclose(apply(plain, params, tokens), expected, atol=1e-6)


def test_zero_initialized_blocks_change_nothing(small):
    c = small.with_values("model", zero_init=True, n_layer=2).model
    params, tokens = init(c), tokens_of(c)
    fewer = dataclasses.replace(c, n_layer=1)
    np.testing.assert_array_equal(apply(c, params, tokens), apply(fewer, params, tokens))
    assert params["h_0"]["attn"]["q"]["kernel"].std() > 0.01


def test_parameter_tree_without_biases_and_with_a_tied_head(small):
    c = small.with_values("model", n_layer=1, bias=False, tie_embeddings=True).model
    names = set(paths(init(c)))
    assert not any(name.endswith("bias") for name in names)
    assert "lm_head/kernel" not in names


def test_a_tied_head_uses_the_embedding(small):
    c = small.with_values("model", tie_embeddings=True).model
    params, tokens = init(c), tokens_of(c)
    params["ln_f"]["scale"] = jnp.zeros_like(params["ln_f"]["scale"])
    params["ln_f"]["bias"] = jnp.eye(c.n_embd)[3]
    expected = jnp.broadcast_to(params["wte"]["embedding"][:, 3], (2, c.block_size, c.vocab_size))
    np.testing.assert_allclose(apply(c, params, tokens), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_and_parameters_are_float32(small, shape, dtype):
    c = small.with_values("model", matmul_dtype=dtype).model
    params = init(c)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    logits = apply(c, params, jnp.zeros(shape, jnp.int32))
    assert logits.shape == (*shape, c.vocab_size)
    assert logits.dtype == jnp.float32


def test_a_position_sees_only_itself_and_the_past(config):
    """The gradient of the logits at t is zero for the position embeddings after t."""
    params, tokens = init(config), tokens_of(config, rows=1)

    def logit_sum(wpe, t):
        logits = apply(config, params | {"wpe": {"embedding": wpe}}, tokens)
        return (logits[0, t] ** 2).sum()

    grad_of = jax.jit(jax.grad(logit_sum))
    for t in (0, 7, config.block_size - 1):
        grad = grad_of(params["wpe"]["embedding"], t)
        seen = np.abs(grad).sum(-1) > 0
        np.testing.assert_array_equal(seen, np.arange(config.block_size) <= t)


def test_logits_of_a_prefix_match_those_of_the_whole(config):
    params, tokens = init(config), tokens_of(config)
    whole = apply(config, params, tokens)
    np.testing.assert_allclose(apply(config, params, tokens[:, :5]), whole[:, :5], atol=1e-6)


def test_initial_loss_is_that_of_a_uniform_guess():
    """Within 0.05 nats of ln 65, for configs/tiny.py and several seeds."""
    from gpt_jax.config.config import Config

    c = Config().with_values("model", vocab_size=65, matmul_dtype="float32").model
    tokens = tokens_of(c, rows=4)
    for seed in range(3):
        log_probs = jax.nn.log_softmax(apply(c, init(c, seed), tokens[:, :-1]))
        picked = jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)
        assert abs(-picked.mean() - math.log(65)) < 0.05


def test_standard_deviation_of_each_kind_of_parameter(small):
    c = small.with_values("model", n_embd=256, vocab_size=256, n_layer=2, block_size=64).model
    params = init(c)
    block = params["h_1"]
    for leaf in (
        params["wte"]["embedding"],
        params["wpe"]["embedding"],
        params["lm_head"]["kernel"],
        block["attn"]["q"]["kernel"],
        block["attn"]["k"]["kernel"],
        block["attn"]["v"]["kernel"],
        block["mlp"]["c_fc"]["kernel"],
    ):
        assert leaf.std() == pytest.approx(0.02, rel=0.03)
    for leaf in (block["attn"]["c_proj"]["kernel"], block["mlp"]["c_proj"]["kernel"]):
        assert leaf.std() == pytest.approx(0.02 / math.sqrt(2 * c.n_layer), rel=0.03)
    assert (block["ln_1"]["scale"] == 1).all()
    assert (block["mlp"]["c_fc"]["bias"] == 0).all()


def products_of(jaxpr):
    """Every product of arrays in a traced function, including nested functions."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from products_of(inner)


def test_every_product_has_bfloat16_factors_and_a_float32_sum(small):
    """Forward and backward. It also runs: a CPU cannot run some orders of bfloat16 factors."""
    c = dataclasses.replace(small.model, matmul_dtype="bfloat16")
    params, tokens = init(c), tokens_of(c)
    grad = jax.grad(lambda params: GPT(c).apply({"params": params}, tokens, KEYS[:2]).sum())
    products = list(products_of(jax.make_jaxpr(grad)(params).jaxpr))
    assert len(products) == 3 * (8 * c.n_layer + 1)  # q, k, v, c_proj, 2 of attention, 2 of MLP.
    assert {var.aval.dtype.name for eqn in products for var in eqn.invars} == {"bfloat16"}
    assert {eqn.outvars[0].aval.dtype.name for eqn in products} == {"float32"}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(grad)(params)))


KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(8))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_sites_have_different_numbers(small, monkeypatch, scan_layers):
    config, sites = small.with_values("model", n_layer=3, scan_layers=scan_layers).model, []

    def spy(x, keys_B, site, rate):
        if keys_B is not None:
            jax.debug.callback(lambda number: sites.append(int(number)), site)
        return x

    monkeypatch.setattr("gpt_jax.model.blocks.dropout", spy)
    monkeypatch.setattr("gpt_jax.model.attention.dropout", spy)
    shapes = nn.unbox(jax.eval_shape(lambda: jitted_init(config, jax.random.key(0))))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    jax.jit(GPT(config).apply)(params, tokens_of(config), KEYS[:2])
    jax.effects_barrier()
    assert sorted(sites) == list(range(3 * config.n_layer))


def test_dropout_changes_logits_only_with_keys(config):
    params, tokens = init(config), tokens_of(config)
    plain = apply(config, params, tokens)
    np.testing.assert_array_equal(plain, apply(config, params, tokens))
    dropped = apply(config, params, tokens, KEYS[:2])
    assert (plain != dropped).any()
    np.testing.assert_array_equal(dropped, apply(config, params, tokens, KEYS[:2]))


@partial(jax.jit, static_argnums=0)
def decode(config, params, tokens, cache, start):
    return GPT(config).apply({"params": params}, tokens, cache, start, method="decode")


@pytest.mark.parametrize("pieces", [[16], [5, 11], [1] * 16, [7, 1, 1, 7]], ids=str)
def test_decoding_in_pieces_matches_the_whole_model(config, pieces):
    """What the cache holds at later positions does not matter."""
    params = jax.tree.map(lambda leaf: leaf * 5, init(config))
    tokens = tokens_of(config, rows=3)
    cache = jax.tree.map(lambda x: x + 100.0, init_cache(config, 3))
    start, logits = 0, []
    for size in pieces:
        new, cache = decode(config, params, tokens[:, start : start + size], cache, start)
        logits.append(new)
        start += size
    whole = apply(config, params, tokens)
    np.testing.assert_allclose(np.concatenate(logits, 1), whole, atol=1e-5, rtol=1e-5)


OPTIONS = {
    "position": ("learned", "rotary"),
    "n_kv_head": (0, 2),
    "qk_norm": (False, True),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "swiglu"),
    "logit_softcap": (0.0, 2.0),
    "embedding_skip": (False, True),
}


@pytest.mark.parametrize("values", [*itertools.product(*OPTIONS.values())], ids=str)
def test_decoding_matches_the_whole_model_for_every_combination(config, values, monkeypatch):
    # Flax traces a parameter's initializer at each use: most of the time, with the real one.
    for module in ("layers", "gpt"):
        monkeypatch.setattr(f"gpt_jax.model.{module}.normal", lambda _: nn.initializers.zeros)
    options = dict(zip(OPTIONS, values, strict=True))
    config = dataclasses.replace(config, n_head=4, block_size=6, **options)
    shapes = jax.eval_shape(lambda: GPT(config).init(KEYS[0], jnp.zeros((1, 1), int)))["params"]
    shapes, rng = nn.unbox(shapes), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    # Not jitted: compiling 128 combinations takes longer than running them.
    tokens, cache = tokens_of(config), init_cache(config, 2)
    first, cache = decode.__wrapped__(config, params, tokens[:, :4], cache, 0)
    second, _ = decode.__wrapped__(config, params, tokens[:, 4:], cache, 4)
    whole = apply.__wrapped__(config, params, tokens)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_kv_head", [0, 2])
def test_decoding_with_exclusive_attention_matches_the_whole_model(config, n_kv_head):
    config = dataclasses.replace(
        config, n_head=4, n_kv_head=n_kv_head, block_size=6, exclusive_attention=True
    )
    params, tokens = init(config), tokens_of(config)
    params = jax.tree.map(lambda p: 3 * p, params)  # So that attention changes the stream.
    first, cache = decode(config, params, tokens[:, :4], init_cache(config, 2), 0)
    second, _ = decode(config, params, tokens[:, 4:], cache, 4)
    whole = apply(config, params, tokens)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=1e-5, rtol=1e-5)
    plain = apply(dataclasses.replace(config, exclusive_attention=False), params, tokens)
    assert np.abs(plain - whole).max() > 1e-3


@pytest.mark.parametrize("n_kv_head", [0, 2])
def test_decoding_with_short_convolutions_matches_the_whole_model(config, n_kv_head):
    config = dataclasses.replace(
        config, n_layer=2, n_head=4, n_kv_head=n_kv_head, block_size=6, short_convolution=3
    )
    params, tokens = init(config), tokens_of(config)
    assert params["h_0"]["conv_1"]["taps"].tolist() == [[1.0] * 16, [0.0] * 16, [0.0] * 16]
    params = jax.tree.map(lambda p: p + 0.2 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    whole = apply(config, params, tokens)
    logits, cache = decode(config, params, tokens[:, :2], init_cache(config, 2), 0)
    found = [logits]
    for place in range(2, 6):
        logits, cache = decode(config, params, tokens[:, place : place + 1], cache, place)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5, rtol=1e-5)
    params["h_1"]["conv_2"]["taps"] *= jnp.array([[1.0], [1.0], [0.0]])
    assert np.abs(apply(config, params, tokens) - whole).max() > 1e-3


def test_cache_has_a_slot_for_every_position_of_every_block(config):
    cache = init_cache(dataclasses.replace(config, n_layer=3), 5)
    assert [k.shape for k, _ in cache] == [v.shape for _, v in cache] == [(10, 16, 8)] * 3


def test_with_embedding_skip_every_block_reads_the_stream_plus_the_embedding(config):
    config = dataclasses.replace(config, n_layer=2, position="rotary", embedding_skip=True)
    params, tokens = init(config), tokens_of(config)
    params = jax.tree.map(lambda p: 3 * p, params)  # So that blocks change the stream.
    model = GPT(config).bind({"params": params})
    x = e = jnp.take(params["wte"]["embedding"], tokens, axis=0)
    for block in model.h:
        x = block(x + e, None, 0)
    logits = model.lm_head(model.ln_f(x))
    np.testing.assert_allclose(apply(config, params, tokens), logits, atol=1e-5)
