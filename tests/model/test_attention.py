"""Attention and its gradient against plain formulas, in one block of queries and in two."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.attention import (
    MAX_SITES,
    causal_attention,
    cudnn_attention,
    exclude_own_value,
    rotate,
)
from gpt_jax.model.dropout import dropout

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(2))


def test_attention_matches_numpy():
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


@pytest.mark.parametrize("groups", [1, 2])
def test_exclusive_attention_keeps_what_is_orthogonal_to_the_own_value(groups):
    rng = np.random.default_rng(0)
    y, v = rng.normal(size=(2, 3, 4, 8)), rng.normal(size=(2, 3, 4 // groups, 8))
    found = np.asarray(exclude_own_value(jnp.asarray(y), jnp.asarray(v)))
    v = np.repeat(v, groups, axis=2)
    np.testing.assert_allclose((found * v).sum(-1), 0, atol=1e-5)
    lost = y - found  # Parallel to v: their product is that of their lengths.
    lengths = np.linalg.norm(lost, axis=-1) * np.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(np.abs((lost * v).sum(-1)), lengths, rtol=1e-4)


def test_a_value_of_zeros_excludes_nothing():
    y = jnp.ones((1, 1, 1, 4))
    np.testing.assert_array_equal(exclude_own_value(y, 0 * y), y)
    gradient = jax.grad(lambda v: exclude_own_value(y, v).sum())(0 * y)
    assert np.isfinite(gradient).all()


def test_rotated_scores_depend_only_on_the_distance():
    """Positions begin at `start`, as they do after a cache."""
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 2, 8)).astype(np.float32)

    def score(of_q, of_k):
        return np.einsum("bthd,bthd->h", rotate(q, of_q), rotate(k, of_k))

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    assert np.abs(score(7, 3) - score(8, 3)).min() > 1e-2
    together = rotate(jnp.tile(q, (1, 5, 1, 1)), 3)
    np.testing.assert_allclose(together[:, 4:], rotate(q, 7), rtol=1e-6)


def test_rotation_matches_complex_numbers():
    """Pair i at position p is rotated by p / 10000^(i / pairs)."""
    x = np.random.default_rng(0).normal(size=(1, 9, 1, 6)).astype(np.float32)
    pairs = x[..., :3] + 1j * x[..., 3:]
    rotated = pairs * np.exp(1j * np.arange(9)[:, None, None] / 10_000.0 ** (np.arange(3) / 3))
    expected = np.concatenate([rotated.real, rotated.imag], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), 0), expected, atol=1e-5)


def plain_attention(q, k, v, rate):
    """The formula, with the masks of the two blocks of queries that 300 positions have."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tri(300, dtype=bool), scores, -jnp.inf)
    masks = []
    for block, end in enumerate((150, 300)):
        ones = jnp.ones((*scores.shape[:2], 150, end))
        mask = dropout(ones, KEYS, 3 + block * MAX_SITES, rate)
        masks.append(jnp.pad(mask, [(0, 0), (0, 0), (0, 0), (0, 300 - end)]))
    weights = jax.nn.softmax(scores) * jnp.concatenate(masks, axis=2)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_blocks_of_queries_match_plain_attention(rate):
    rng = np.random.default_rng(0)
    q, k, v, grad = rng.normal(size=(4, 2, 300, 2, 4)).astype(np.float32)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(attention):
        y, pull = jax.vjp(attention, q, k, v)
        return y, pull(grad)

    y, grads = value_and_gradients(lambda q, k, v: causal_attention(q, k, v, KEYS, 3, rate))
    expected, expected_grads = value_and_gradients(partial(plain_attention, rate=rate))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for actual, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_cudnn_attention_matches_causal_attention(monkeypatch):
    """JAX's own attention stands in for cuDNN's. Heads share keys and values without repeats."""
    calls, original = [], jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **options):
        calls.extend([implementation, *(x.dtype.name for x in arrays)])
        return original(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 9, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 9, 2, 8)).astype(np.float32)
    y = cudnn_attention(q, k, v)
    assert calls == ["cudnn", "bfloat16", "bfloat16", "bfloat16"]
    assert y.dtype == jnp.float32
    expected = causal_attention(q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)), dtype="bfloat16")
    np.testing.assert_allclose(y, expected, atol=0.03)
