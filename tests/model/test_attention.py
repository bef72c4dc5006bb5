"""Attention and its gradient against the formula written out, in one block and in two."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.attention import MOST_SITES, causal_attention, cudnn_attention, rotate
from gpt_jax.model.dropout import dropout

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(2))


def test_attention_against_numpy():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    expected = np.zeros_like(v)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                scores = k[b, : t + 1, h] @ q[b, t, h] / 2
                weights = np.exp(scores - scores.max())
                expected[b, t, h] = weights / weights.sum() @ v[b, : t + 1, h]
    actual = causal_attention(*map(jnp.asarray, (q, k, v)), None, 0, 0.5)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_rotated_scores_depend_on_the_distance_alone():
    """Also across the boundary of what is cached: positions begin at `start`."""
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 2, 8)).astype(np.float32)

    def score(of_q, of_k):
        return np.einsum("bthd,bthd->h", rotate(q, of_q), rotate(k, of_k))

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    assert np.abs(score(7, 3) - score(8, 3)).min() > 1e-2
    together = rotate(jnp.tile(q, (1, 5, 1, 1)), 3)
    np.testing.assert_allclose(together[:, 4:], rotate(q, 7), rtol=1e-6)


def test_rotation_against_complex_numbers():
    """Pair i at position p is turned by p / 10000^(i / pairs)."""
    x = np.random.default_rng(0).normal(size=(1, 9, 1, 6)).astype(np.float32)
    pairs = x[..., :3] + 1j * x[..., 3:]
    turned = pairs * np.exp(1j * np.arange(9)[:, None, None] / 10_000.0 ** (np.arange(3) / 3))
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), 0), expected, atol=1e-5)


def plain_attention(q, k, v, rate):
    """Written out, with the masks of the two blocks of queries that 300 positions make."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tri(300, dtype=bool), scores, -jnp.inf)
    masks = []
    for block, end in enumerate((150, 300)):
        ones = jnp.ones((*scores.shape[:2], 150, end))
        mask = dropout(ones, KEYS, 3 + block * MOST_SITES, rate)
        masks.append(jnp.pad(mask, [(0, 0), (0, 0), (0, 0), (0, 300 - end)]))
    weights = jax.nn.softmax(scores) * jnp.concatenate(masks, axis=2)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_attention_in_blocks_and_its_gradient_are_those_of_the_whole(rate):
    rng = np.random.default_rng(0)
    q, k, v, grad = rng.normal(size=(4, 2, 300, 2, 4)).astype(np.float32)
    y, pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, KEYS, 3, rate), q, k, v)
    expected, pull_expected = jax.vjp(partial(plain_attention, rate=rate), q, k, v)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for actual, wanted in zip(pull(grad), pull_expected(grad), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_asked_of_cudnn_is_causal_attention(monkeypatch):
    """Of JAX's own formula in its place; heads share keys and values without being repeated."""
    asked, original = [], jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **options):
        asked.extend([implementation, *(x.dtype.name for x in arrays)])
        return original(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 9, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 9, 2, 8)).astype(np.float32)
    y = cudnn_attention(q, k, v)
    assert asked == ["cudnn", "bfloat16", "bfloat16", "bfloat16"]
    assert y.dtype == jnp.float32
    expected = causal_attention(q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)), dtype="bfloat16")
    np.testing.assert_allclose(y, expected, atol=0.03)
