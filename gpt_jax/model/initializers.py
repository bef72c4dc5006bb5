"""Initial values of parameters, and the logical names of their axes."""

import math
from typing import Any, cast

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import Array, lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.random_bits import random_bits

INIT_STDDEV = 0.02  # GPT-2's, for embeddings and kernels.


def normal(stddev: float) -> Initializer:
    """Initializer: normally distributed numbers, drawn from `random_bits`.

    jax.random.normal compiles twenty rounds of threefry for every parameter. With it, the first
    start of configs/tiny.py took 2 s and 70 MB more until the parameters were there.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        # 24 bits: the midpoint of one of 2^24 equal steps from -1 to 1, so never -1 or 1 itself.
        uniform = (random_bits(key, 0, shape) >> 8).astype(dtype) * 2.0**-23 + (2.0**-24 - 1)
        return stddev * math.sqrt(2) * lax.erf_inv(uniform)

    return cast(Initializer, init)


def named(init: Initializer, *names: str) -> Initializer:
    """`init` for a parameter with logical axis names; devices/sharding.py maps them to a mesh."""
    return cast(Initializer, nn.with_logical_partitioning(init, names))


def residual_stddev(config: GPTConfig) -> float:
    """GPT-2's standard deviation for the two projections per block that add to the residual."""
    return 0.0 if config.zero_init else INIT_STDDEV / math.sqrt(2 * config.n_layer)
