"""Dropout: which activations are zero, as a function of (key, site, row)."""

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.model.random_bits import random_bits


def dropout(
    x: jax.Array, keys_B: jax.Array | None, site: jax.Array | int, rate: float
) -> jax.Array:
    """Zeroes about `rate` of x and scales up the rest; without keys returns x.

    Args:
      x: activations, shape (B, ...).
      keys_B: one typed key per row. A row's mask depends on its key and on `site` alone, so it is
        the same on every layout of rows over devices and microbatches.
      site: number of this place in the model, below 2^32.
      rate: in [0, 1).
    """
    if keys_B is None or rate == 0:
        return x
    bits = jax.vmap(lambda key: random_bits(key, site, x.shape[1:]))(keys_B)
    return jnp.where(bits >= np.uint32(rate * 2**32), x / (1 - rate), 0.0)
