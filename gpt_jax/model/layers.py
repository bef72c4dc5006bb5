"""What the model is made of: matrix products, dropout, Dense, LayerNorm. No attention, no blocks.

Shapes (the suffix of a name): B rows of a batch.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gpt_jax.model.initializers import INIT_STDDEV, named, normal

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
