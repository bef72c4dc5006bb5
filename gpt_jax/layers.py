"""What the model is made of: matrix products, dropout, Dense, LayerNorm. No attention, no blocks.

Shapes (the suffix of a name): B rows of a batch.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax

from gpt_jax.config import GPTConfig

INIT_STDDEV = 0.02  # GPT-2's, for embeddings and kernels.
LAYER_NORM_EPSILON = 1e-5


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def contract(x: jax.Array, kernel: jax.Array, axes: int, dtype: str) -> jax.Array:
    """Sums products over the last `axes` axes of x and the first of kernel: a matrix product.

    Factors are rounded to `dtype`, sums are float32. The backward pass is written out because the
    cotangent arrives as float32, and autodiff would multiply it as such: half the speed.
    """
    left, first = range(x.ndim - axes, x.ndim), range(axes)
    return _product(x, kernel, (left, first), dtype)


def _product(
    a: jax.Array, b: jax.Array, axes: tuple[Sequence[int], Sequence[int]], dtype: str
) -> jax.Array:
    # preferred_element_type: bfloat16 factors with a float32 sum reach 310-410 GFLOP/s on two Zen 4
    # cores, with a bfloat16 sum 145-165, float32 throughout 165-200.
    return lax.dot_general(
        a.astype(dtype), b.astype(dtype), (axes, ((), ())), preferred_element_type=jnp.float32
    )


def _contract_forward(
    x: jax.Array, kernel: jax.Array, axes: int, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return contract(x, kernel, axes, dtype), (x.astype(dtype), kernel)


def _contract_backward(
    axes: int, dtype: str, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = range(x.ndim - axes)
    grad_x = _product(grad, kernel, (range(len(rows), grad.ndim), range(axes, kernel.ndim)), dtype)
    grad_kernel = _product(x, grad, (rows, rows), dtype)
    return grad_x, grad_kernel


contract.defvjp(_contract_forward, _contract_backward)


def dropout(x: jax.Array, keys_B: jax.Array | None, site: int, rate: float) -> jax.Array:
    """Zeroes about `rate` of x and scales up the rest; without keys returns x.

    Args:
      x: activations, shape (B, ...).
      keys_B: one typed key per row. A row's mask depends on its key and on `site` alone, so it is
        the same on every layout of rows over devices and microbatches.
      site: number of this place in the model.
      rate: in [0, 1), rounded to a multiple of 1/256 below 1: a random byte decides about each
        element.
    """
    dropped = min(round(rate * 256), 255)
    if keys_B is None or dropped == 0:
        return x
    row_shape = x.shape[1:]
    words = -(-math.prod(row_shape) // 4)

    def row_bytes(key: jax.Array) -> jax.Array:
        # One 32-bit draw cut into four bytes: jax.random would spend a whole draw on each.
        bits = jax.random.bits(jax.random.fold_in(key, site), (words,), jnp.uint32)
        return lax.bitcast_convert_type(bits, jnp.uint8).reshape(-1)[: math.prod(row_shape)]

    keep = jax.vmap(row_bytes)(keys_B).reshape(x.shape) >= dropped
    return jnp.where(keep, x * (256 / (256 - dropped)), 0.0)


def named(init: Initializer, *names: str) -> Initializer:
    """`init`, for a parameter that carries logical axis names: sharding.py maps them to a mesh."""
    return cast(Initializer, nn.with_logical_partitioning(init, names))


class Dense(nn.Module):
    """y = x kernel (+ bias), over the last `axes` axes of x; kernel and bias may have several axes.

    Kernels of heads stay 3-D in the product, too: reshaped to matrices the step of configs/tiny.py
    is 15 % slower (README.md has the figures).

    Attributes:
      features: the shape that takes the place of those axes.
      names: the logical axes of the kernel.
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    use_bias: bool
    dtype: str
    axes: int = 1
    stddev: float = INIT_STDDEV

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[x.ndim - self.axes :], *self.features)
        init = named(nn.initializers.normal(self.stddev), *self.names)
        y = contract(x, self.param("kernel", init, shape), self.axes, self.dtype)
        if self.use_bias:
            zeros = named(nn.initializers.zeros, *self.names[self.axes :])
            y = y + self.param("bias", zeros, self.features)
        return y


def layer_norm(config: GPTConfig) -> nn.LayerNorm:
    """LayerNorm over the width, with a scale and, if `config.bias`, a bias."""
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON,
        use_bias=config.bias,
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
    )
