"""The distribution of initial values."""

import jax
import numpy as np

from gpt_jax.model.initializers import normal

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(8))


def test_initial_values_are_normal_and_uncorrelated():
    """Tests quantiles, and correlations between neighbours and between two keys."""
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
