"""Matrix products and normalizations against plain ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.model.layers import LayerNorm, RMSNorm, einsum


@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_norm_and_its_gradients_match_flax(use_bias):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 16))
    ours, theirs = LayerNorm(use_bias), nn.LayerNorm(epsilon=1e-5, use_bias=use_bias)
    params = nn.unbox(ours.init(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(16) / 7, params)
    grad = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(layer):
        y, pull = jax.vjp(layer.apply, params, x)
        return y, pull(grad)

    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, value_and_gradients(ours), value_and_gradients(theirs))


def test_rms_norm_matches_numpy():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 5, 16)).astype(np.float32)
    scale = np.arange(16, dtype=np.float32) / 7
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * scale
    y = RMSNorm().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


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
def test_einsum_and_its_gradients_match_jnp_einsum(spec, a_shape, b_shape):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (a_shape, b_shape))
    y, pull = jax.vjp(lambda a, b: einsum(spec, a, b, "float32"), a, b)
    expected, pull_expected = jax.vjp(lambda a, b: jnp.einsum(spec, a, b), a, b)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    grad = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for actual, wanted in zip(pull(grad), pull_expected(grad), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_products_of_bfloat16_are_summed_in_float32():
    """4096 products of 1; a bfloat16 sum would stop at 256."""
    x, kernel = jnp.ones((1, 1, 4096)), jnp.ones((4096, 2))
    y, pull = jax.vjp(lambda x, w: einsum("btc,cf->btf", x, w, "bfloat16"), x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 4096)
    grad_x, grad_kernel = pull(jnp.ones_like(y))
    assert grad_x.dtype == grad_kernel.dtype == jnp.float32
    np.testing.assert_array_equal(grad_x, 2)
