"""Random bits from a hash: what dropout and the initializers draw from."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def random_bits(key: jax.Array, site: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for each element: a hash of its index, the key and `site`.

    Twenty rounds of threefry, what jax.random draws with, took a seventh of the step of
    configs/tiny.py; this is computed where it is used and takes next to nothing. The constants and
    shifts are those of MurmurHash3's finaliser (Appleby, public domain); one half of the key enters
    before it and the other half way.

    Returns: uint32, of `shape`.
    """
    low, high = jax.random.key_data(key)
    site = jnp.asarray(site, jnp.uint32)  # Products are modulo 2^32.
    low = low + np.uint32(0x9E3779B1) * site
    high = high ^ np.uint32(0x85EBCA77) * site
    x = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) * np.uint32(0x9E3779B9) + low
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13) ^ high) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
