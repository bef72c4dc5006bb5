"""Random bits from a hash. Dropout and the initializers draw from them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def random_bits(key: Array, site: Array | int, shape: tuple[int, ...]) -> Array:
    """32 random bits per element: a hash of the element's index, the key and `site`.

    jax.random uses twenty rounds of threefry, which took a seventh of the step of configs/tiny.py.
    This hash is fused into the code that uses it and costs next to nothing. Its constants and
    shifts are those of MurmurHash3's finalizer (Appleby, public domain). One half of the key enters
    before the mixing, the other half in the middle of it.

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
