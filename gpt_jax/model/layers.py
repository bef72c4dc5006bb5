"""The layers: matrix products, Dense, LayerNorm, RMSNorm. No attention, no blocks.

Shapes (the suffix of a name): B rows of a batch, T time, C width.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from gpt_jax.model.initializers import INIT_STDDEV, named, normal

NORM_EPSILON = 1e-5
Pair = tuple[Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(spec: str, a: Array, b: Array, dtype: str) -> Array:
    """`jnp.einsum` of two arrays. The factors are rounded to `dtype`; the sums are float32.

    The backward pass is written out because the gradient arrives as float32. Autodiff would
    multiply in float32, at half the speed. Every letter of `spec` must occur in two of its terms.
    """
    # On two Zen 4 cores, bfloat16 factors reach 310-410 GFLOP/s with a float32 sum
    # (preferred_element_type) and 145-165 with a bfloat16 sum; float32 throughout reaches 165-200.
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _einsum_forward(spec: str, a: Array, b: Array, dtype: str) -> tuple[Array, Pair]:
    return einsum(spec, a, b, dtype), (a.astype(dtype), b.astype(dtype))


def _einsum_backward(spec: str, dtype: str, saved: Pair, grad: Array) -> Pair:
    a, b = saved
    of_a, of_b, of_out = re.split(",|->", spec)
    grad_a = einsum(f"{of_out},{of_b}->{of_a}", grad, b, dtype)
    grad_b = einsum(f"{of_a},{of_out}->{of_b}", a, grad, dtype)
    return grad_a, grad_b


einsum.defvjp(_einsum_forward, _einsum_backward)


class Dense(nn.Module):
    """y = x kernel (+ bias), as an einsum: kernel and bias may have several axes.

    The kernels of the heads stay 3-D in the product. Reshaped to matrices, they made the step of
    configs/tiny.py 15 % slower (docs/benchmarks.md).

    Attributes:
      spec: einsum of x and the kernel, such as "btc,cf->btf".
      features: sizes of the kernel's axes that x does not have.
      names: logical names of the kernel's axes.
    """

    spec: str
    features: tuple[int, ...]
    names: tuple[str, ...]
    use_bias: bool
    dtype: str
    stddev: float = INIT_STDDEV

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = len(self.names) - len(self.features)
        shape = (*x.shape[x.ndim - axes :], *self.features)
        init = named(normal(self.stddev), *self.names)
        y = einsum(self.spec, x, self.param("kernel", init, shape), self.dtype)
        if self.use_bias:
            zeros = named(nn.initializers.zeros, *self.names[axes:])
            y = y + self.param("bias", zeros, self.features)
        return y


@jax.custom_vjp
def normalize(x: Array) -> Array:
    """x with mean 0 and variance 1 over its last axis, shape (B, T, C).

    The backward pass is written out. Autodiff's reads x two more times, which made the whole step
    of configs/tiny.py and configs/small.py 4 % slower on a CPU.
    """
    return _normalize_forward(x)[0]


def _normalize_forward(x: Array) -> tuple[Array, Pair]:
    centered = x - x.mean(-1, keepdims=True)
    scale = lax.rsqrt((centered**2).mean(-1, keepdims=True) + NORM_EPSILON)
    y = centered * scale
    return y, (y, scale)


def _normalize_backward(saved: Pair, grad: Array) -> tuple[Array]:
    """Removes the gradient's components along the mean and along y, and scales the rest."""
    y, scale = saved
    along = grad.mean(-1, keepdims=True) + y * (grad * y).mean(-1, keepdims=True)
    return (scale * (grad - along),)


normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nn.Module):
    """`normalize`, times a scale, plus a bias if `use_bias` (Ba et al., 2016)."""

    use_bias: bool

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        width = x_BTC.shape[-1:]
        y_BTC = normalize(x_BTC) * self.param("scale", named(nn.initializers.ones, "embed"), width)
        if self.use_bias:
            y_BTC = y_BTC + self.param("bias", named(nn.initializers.zeros, "embed"), width)
        return y_BTC


class RMSNorm(nn.Module):
    """x divided by the root of its mean square, times a scale (Zhang and Sennrich, 2019)."""

    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mean_square = jnp.mean(x**2, axis=-1, keepdims=True)
        scale = self.param("scale", named(nn.initializers.ones, self.axis), x.shape[-1:])
        return x * lax.rsqrt(mean_square + NORM_EPSILON) * scale
