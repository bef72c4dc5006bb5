"""The first values of parameters, and the names of their axes."""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.random_bits import random_bits

INIT_STDDEV = 0.02  # GPT-2's, for embeddings and kernels.


def normal(stddev: float) -> Initializer:
    """Initialiser: normally distributed numbers from `random_bits`.

    jax.random.normal compiles twenty rounds of threefry for every parameter: 2 s and 70 MB more
    until a first run of configs/tiny.py has its parameters.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        # 24 bits, the middle of each of the 2^24 steps between -1 and 1: never the ends.
        uniform = (random_bits(key, 0, shape) >> 8).astype(dtype) * 2.0**-23 + (2.0**-24 - 1)
        return stddev * math.sqrt(2) * lax.erf_inv(uniform)

    return cast(Initializer, init)


def named(init: Initializer, *names: str) -> Initializer:
    """`init`, for a parameter that carries logical axis names: sharding.py maps them to a mesh."""
    return cast(Initializer, nn.with_logical_partitioning(init, names))


def residual_stddev(config: GPTConfig) -> float:
    """GPT-2's initialiser of the two projections per block that add to the residual stream."""
    return 0.0 if config.zero_init else INIT_STDDEV / math.sqrt(2 * config.n_layer)
