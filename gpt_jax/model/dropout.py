"""Dropout: which activations are zeroed, as a function of (key, site, row)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gpt_jax.model.random_bits import random_bits


def dropout(x: Array, keys_B: Array | None, site: Array | int, rate: float) -> Array:
    """Zeroes a share of about `rate` of x and scales up the rest. Without keys, returns x.

    Args:
      x: activations, shape (B, ...).
      keys_B: one typed key per row. A row's mask depends only on its key and on `site`, so it is
        the same however the rows are spread over devices and microbatches.
      site: number of this place in the model, below 2^32.
      rate: in [0, 1).
    """
    if keys_B is None or rate == 0:
        return x
    bits = jax.vmap(lambda key: random_bits(key, site, x.shape[1:]))(keys_B)
    return jnp.where(bits >= np.uint32(rate * 2**32), x / (1 - rate), 0.0)
