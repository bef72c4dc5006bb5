"""What the model is made of: matrix products, dropout, Dense, LayerNorm. No attention, no blocks.

Shapes (the suffix of a name): B rows of a batch.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Initializer
from jax import lax

INIT_STDDEV = 0.02  # GPT-2's, for embeddings and kernels.
NORM_EPSILON = 1e-5


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(spec: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """`jnp.einsum` of two arrays whose factors are rounded to `dtype`; sums are float32.

    The backward pass is written out because the cotangent arrives as float32, and autodiff would
    multiply it as such: half the speed. Every letter of `spec` must stand in two of its terms.
    """
    # preferred_element_type: bfloat16 factors with a float32 sum reach 310-410 GFLOP/s on two Zen 4
    # cores, with a bfloat16 sum 145-165, float32 throughout 165-200.
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _einsum_forward(
    spec: str, a: jax.Array, b: jax.Array, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum(spec, a, b, dtype), (a.astype(dtype), b.astype(dtype))


def _einsum_backward(
    spec: str, dtype: str, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    of_a, of_b, of_out = re.split(",|->", spec)
    grad_a = einsum(f"{of_out},{of_b}->{of_a}", grad, b, dtype)
    grad_b = einsum(f"{of_a},{of_out}->{of_b}", a, grad, dtype)
    return grad_a, grad_b


einsum.defvjp(_einsum_forward, _einsum_backward)


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


def named(init: Initializer, *names: str) -> Initializer:
    """`init`, for a parameter that carries logical axis names: sharding.py maps them to a mesh."""
    return cast(Initializer, nn.with_logical_partitioning(init, names))


class Dense(nn.Module):
    """y = x kernel (+ bias), by an einsum: kernel and bias may have several axes.

    Kernels of heads stay 3-D in the product, too: reshaped to matrices the step of configs/tiny.py
    was 15 % slower (README.md has the figures).

    Attributes:
      spec: of x and the kernel, such as "btc,cf->btf".
      features: the sizes of the kernel's axes that x has not.
      names: the logical axes of the kernel.
    """

    spec: str
    features: tuple[int, ...]
    names: tuple[str, ...]
    use_bias: bool
    dtype: str
    stddev: float = INIT_STDDEV

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = len(self.names) - len(self.features)
        shape = (*x.shape[x.ndim - axes :], *self.features)
        init = named(normal(self.stddev), *self.names)
        y = einsum(self.spec, x, self.param("kernel", init, shape), self.dtype)
        if self.use_bias:
            zeros = named(nn.initializers.zeros, *self.names[axes:])
            y = y + self.param("bias", zeros, self.features)
        return y


@jax.custom_vjp
def normalise(x: jax.Array) -> jax.Array:
    """x with mean 0 and variance 1 over its last axis, shape (B, T, C).

    The backward pass is written out: autodiff's reads x twice more, and took 4 % longer of a whole
    step of configs/tiny.py and configs/small.py on a CPU.
    """
    return _normalise_forward(x)[0]


def _normalise_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    centred = x - x.mean(-1, keepdims=True)
    scale = lax.rsqrt((centred**2).mean(-1, keepdims=True) + NORM_EPSILON)
    y = centred * scale
    return y, (y, scale)


def _normalise_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array]:
    """The part of the gradient along the mean and along y is lost; the rest is scaled."""
    y, scale = saved
    along = grad.mean(-1, keepdims=True) + y * (grad * y).mean(-1, keepdims=True)
    return (scale * (grad - along),)


normalise.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nn.Module):
    """`normalise`, times a scale and, with `use_bias`, plus a bias (Ba et al., 2016)."""

    use_bias: bool

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        width = x_BTC.shape[-1:]
        y_BTC = normalise(x_BTC) * self.param("scale", named(nn.initializers.ones, "embed"), width)
        if self.use_bias:
            y_BTC = y_BTC + self.param("bias", named(nn.initializers.zeros, "embed"), width)
        return y_BTC


class RMSNorm(nn.Module):
    """x over the root of its mean square, times a scale (Zhang and Sennrich, 2019)."""

    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean_square = jnp.mean(x**2, axis=-1, keepdims=True)
        scale = self.param("scale", named(nn.initializers.ones, self.axis), x.shape[-1:])
        return x * lax.rsqrt(mean_square + NORM_EPSILON) * scale
