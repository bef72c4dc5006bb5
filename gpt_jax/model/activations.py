"""Activation functions. To add one, add it to ACTIVATIONS and to the rule in config/sections.py."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def gelu(x: Array) -> Array:
    """x Phi(x), exactly. On a CPU, erf costs 40 % of the erfc that jax.nn.gelu uses."""
    return 0.5 * x * (1 + lax.erf(x * np.float32(math.sqrt(0.5))))


def relu2(x: Array) -> Array:
    """The square of ReLU (So et al., Primer, 2021)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu2": relu2,
    "swiglu": jax.nn.silu,  # Applied to the gate; the MLP multiplies by it (Shazeer, 2020).
}


def softcap(x: Array, cap: float) -> Array:
    """cap tanh(x / cap): x, limited to -cap .. cap (Gemma 2, 2024). A cap of 0 returns x."""
    return cap * jnp.tanh(x / cap) if cap else x
