"""Dropout, and the random bits it draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.dropout import dropout
from gpt_jax.model.random_bits import random_bits

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(8))


def test_dropout_zeroes_the_rate_and_scales_up_the_rest():
    x = jnp.ones((8, 100, 50))
    y = dropout(x, KEYS, 3, 0.25)
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)


def test_dropout_mask_depends_only_on_key_and_site():
    x = jnp.ones((8, 7, 3))
    whole = dropout(x, KEYS, 3, 0.5)
    parts = jnp.concatenate([dropout(x[i : i + 2], KEYS[i : i + 2], 3, 0.5) for i in (0, 2, 4, 6)])
    np.testing.assert_array_equal(whole, parts)
    assert (whole[0] != whole[1]).any()
    assert (whole != dropout(x, KEYS, 4, 0.5)).any()


def test_dropout_at_a_high_rate_keeps_some_elements():
    y = dropout(jnp.ones((8, 100_000)), KEYS, 0, 0.9999)
    assert (y != 0).mean() == pytest.approx(0.0001, rel=0.3)
    assert jnp.isfinite(y).all()


def test_dropout_without_keys_or_rate_returns_its_input():
    x = jnp.ones((8, 10))
    assert dropout(x, None, 0, 0.9) is x
    assert dropout(x, KEYS, 0, 0.0) is x


def test_random_bits_are_uniform_and_uncorrelated():
    """Each bit is 1 half of the time and independent of other bits, elements, sites and keys."""
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
