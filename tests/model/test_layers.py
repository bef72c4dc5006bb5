"""Products, dropout, LayerNorm and GELU against plain ones; random bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.model.activations import ACTIVATIONS, gelu, softcap
from gpt_jax.model.dropout import dropout
from gpt_jax.model.initializers import normal
from gpt_jax.model.layers import LayerNorm, RMSNorm, einsum
from gpt_jax.model.random_bits import random_bits

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(8))


@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_norm_and_its_gradients_are_flax_s(use_bias):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 16))
    ours, theirs = LayerNorm(use_bias), nn.LayerNorm(epsilon=1e-5, use_bias=use_bias)
    params = nn.unbox(ours.init(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(16) / 7, params)
    y, pull = jax.vjp(ours.apply, params, x)
    expected, pull_expected = jax.vjp(theirs.apply, params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    grad = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), pull(grad), pull_expected(grad)
    )


def test_rms_norm_against_numpy():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 5, 16)).astype(np.float32)
    scale = np.arange(16, dtype=np.float32) / 7
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * scale
    y = RMSNorm().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_soft_cap_is_tanh_and_leaves_small_numbers_alone():
    x = jnp.array([-1e4, -3.0, 0.0, 0.01, 5.0])
    np.testing.assert_allclose(softcap(x, 5.0), 5 * np.tanh(x / 5), rtol=1e-6)
    np.testing.assert_array_equal(softcap(x, 0.0), x)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu_tanh", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ("relu2", lambda x: np.maximum(x, 0) ** 2),
        ("swiglu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations_against_their_formulas(name, formula):
    x = np.linspace(-6, 6, 1001)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), formula(x), atol=1e-5)


def test_gelu_and_its_gradient_are_the_exact_ones():
    x = jnp.linspace(-6, 6, 1001)
    for of in (lambda f: f, lambda f: jax.vmap(jax.grad(f))):
        expected = of(partial(jax.nn.gelu, approximate=False))(x)
        np.testing.assert_allclose(of(gelu)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "a_shape", "b_shape"),
    [
        ("btc,cf->btf", (2, 5, 6), (6, 4)),
        ("btc,chd->bthd", (2, 5, 6), (6, 2, 3)),
        ("bthd,hdc->btc", (2, 5, 2, 3), (2, 3, 6)),
        ("btc,vc->btv", (2, 5, 6), (4, 6)),
        ("bthd,bshd->bhts", (2, 5, 2, 3), (2, 7, 2, 3)),
        ("bhts,bshd->bthd", (2, 2, 5, 7), (2, 7, 2, 3)),
    ],
)
def test_einsum_and_its_gradients_equal_jnp_einsum(spec, a_shape, b_shape):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (a_shape, b_shape))
    y, pull = jax.vjp(lambda a, b: einsum(spec, a, b, "float32"), a, b)
    expected, pull_expected = jax.vjp(lambda a, b: jnp.einsum(spec, a, b), a, b)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    grad = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for actual, wanted in zip(pull(grad), pull_expected(grad), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16_factors_sum_in_float32():
    """4096 products of 1: a bfloat16 sum could not pass 256."""
    x, kernel = jnp.ones((1, 1, 4096)), jnp.ones((4096, 2))
    y, pull = jax.vjp(lambda x, w: einsum("btc,cf->btf", x, w, "bfloat16"), x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 4096)
    grad_x, grad_kernel = pull(jnp.ones_like(y))
    assert grad_x.dtype == grad_kernel.dtype == jnp.float32
    np.testing.assert_array_equal(grad_x, 2)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((8, 100, 50))
    y = dropout(x, KEYS, 3, 0.25)
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)


def test_dropout_of_a_row_depends_on_its_key_and_the_site_alone():
    x = jnp.ones((8, 7, 3))
    whole = dropout(x, KEYS, 3, 0.5)
    parts = jnp.concatenate([dropout(x[i : i + 2], KEYS[i : i + 2], 3, 0.5) for i in (0, 2, 4, 6)])
    np.testing.assert_array_equal(whole, parts)
    assert (whole[0] != whole[1]).any()
    assert (whole != dropout(x, KEYS, 4, 0.5)).any()


def test_random_bits_are_as_good_as_independent():
    """Each bit is 1 half of the time and says nothing of another bit, element, site or key."""
    bits = [np.asarray(random_bits(key, site, (1 << 16,))) for key in KEYS[:3] for site in range(4)]
    ones = np.concatenate([np.unpackbits(words.view(np.uint8)).reshape(-1, 32).T for words in bits])
    signs = ones.astype(np.float32) * 2 - 1
    deviation = 1 / np.sqrt(1 << 16)
    assert abs(signs.mean(1)).max() < 5 * deviation
    between = signs @ signs.T / (1 << 16) - np.eye(len(signs))  # Other bits, sites and keys.
    assert abs(between).max() < 6 * deviation
    assert np.std(between) == pytest.approx(deviation, rel=0.05)
    for lag in (1, 2, 4, 128, 512):  # Neighbours in a row, a column, a head.
        assert abs((signs[:, lag:] * signs[:, :-lag]).mean(1)).max() < 6 * deviation


def test_dropout_of_nearly_all_keeps_something():
    y = dropout(jnp.ones((8, 100_000)), KEYS, 0, 0.9999)
    assert (y != 0).mean() == pytest.approx(0.0001, rel=0.3)
    assert jnp.isfinite(y).all()


def test_without_keys_or_rate_nothing_is_dropped():
    x = jnp.ones((8, 10))
    assert dropout(x, None, 0, 0.9) is x
    assert dropout(x, KEYS, 0, 0.0) is x


def test_initial_numbers_are_normal_and_independent():
    """Their quantiles, and the correlations of neighbours and of two keys."""
    init = jax.jit(normal(0.5), static_argnums=1)
    x, other = (np.asarray(init(KEYS[i], (1000, 1000))).ravel() for i in (0, 1))
    shares = np.array([0.0001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.9999])
    expected = jax.scipy.stats.norm.ppf(shares) * 0.5
    np.testing.assert_allclose(np.quantile(x, shares), expected, atol=0.03)
    np.testing.assert_allclose(np.quantile(x, shares)[1:-1], expected[1:-1], atol=0.005)
    for lag in (1, 2, 128, 1000):
        assert abs(np.corrcoef(x[lag:], x[:-lag])[0, 1]) < 0.005
    assert abs(np.corrcoef(x, other)[0, 1]) < 0.005
    assert np.isfinite(x).all()
