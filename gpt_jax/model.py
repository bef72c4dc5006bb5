"""GPT as linen modules: tokens -> logits. No loss, no optimizer, no sampling.

    x = wte[tokens] + wpe[positions]
    for each block:  x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))
    logits = lm_head(ln_f(x))

Names of modules and parameters are GPT-2's; queries, keys and values are separate. Parameters, the
residual stream, softmax and logits are float32; factors of matrix products are of `matmul_dtype`.

Shapes (the suffix of a name): B rows of a batch, T time, S time of the keys, C width (n_embd),
H heads, D width of a head, F width of the MLP (4 C), V vocabulary.
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


def causal_attention(
    q_BTHD: jax.Array,
    k_BSHD: jax.Array,
    v_BSHD: jax.Array,
    keys_B: jax.Array | None,
    site: int,
    rate: float,
) -> jax.Array:
    """softmax(q k / sqrt(D)) v over the positions up to one's own; dropout on the weights.

    Returns: shape (B, T, H, D).
    """
    scores_BHTS = jnp.einsum("bthd,bshd->bhts", q_BTHD * q_BTHD.shape[-1] ** -0.5, k_BSHD)
    visible_TS = jnp.tri(q_BTHD.shape[1], k_BSHD.shape[1], dtype=bool)
    weights_BHTS = jax.nn.softmax(jnp.where(visible_TS, scores_BHTS, -jnp.inf))
    weights_BHTS = dropout(weights_BHTS, keys_B, site, rate)
    return jnp.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD)


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


def layer_norm(config: GPTConfig, name: str) -> nn.LayerNorm:
    """LayerNorm over the width, with a scale and, if `config.bias`, a bias."""
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON,
        use_bias=config.bias,
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


def residual_stddev(config: GPTConfig) -> float:
    """GPT-2's initialiser of the two projections per block that add to the residual stream."""
    return INIT_STDDEV / math.sqrt(2 * config.n_layer)


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x_BTC: jax.Array, keys_B: jax.Array | None, site: int) -> jax.Array:
        c = self.config
        heads = partial(
            Dense,
            features=(c.n_head, c.head_dim),
            use_bias=c.qkv_bias,
            dtype=c.matmul_dtype,
        )
        q_BTHD = heads(names=("embed", "heads", "head_dim"), name="q")(x_BTC)
        k_BTHD = heads(names=("embed", "kv_heads", "head_dim"), name="k")(x_BTC)
        v_BTHD = heads(names=("embed", "kv_heads", "head_dim"), name="v")(x_BTC)
        y_BTHD = causal_attention(q_BTHD, k_BTHD, v_BTHD, keys_B, site, c.dropout)
        y_BTC = Dense(
            features=(c.n_embd,),
            names=("heads", "head_dim", "embed"),
            use_bias=c.bias,
            dtype=c.matmul_dtype,
            axes=2,
            stddev=residual_stddev(c),
            name="c_proj",
        )(y_BTHD)
        return dropout(y_BTC, keys_B, site + 1, c.dropout)


class MLP(nn.Module):
    """Two projections with a GELU between them, four times as wide as the stream."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x_BTC: jax.Array, keys_B: jax.Array | None, site: int) -> jax.Array:
        c = self.config
        dense = partial(Dense, use_bias=c.bias, dtype=c.matmul_dtype)
        h_BTF = dense(features=(4 * c.n_embd,), names=("embed", "mlp"), name="c_fc")(x_BTC)
        h_BTF = jax.nn.gelu(h_BTF, approximate=False)
        y_BTC = dense(
            features=(c.n_embd,), names=("mlp", "embed"), stddev=residual_stddev(c), name="c_proj"
        )(h_BTF)
        return dropout(y_BTC, keys_B, site, c.dropout)


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised stream and adds to it."""

    config: GPTConfig

    SITES = 3  # Places where a block drops out: attention weights and the two outputs.

    @nn.compact
    def __call__(self, x_BTC: jax.Array, keys_B: jax.Array | None, site: int) -> jax.Array:
        c = self.config
        x_BTC = x_BTC + Attention(c, name="attn")(layer_norm(c, "ln_1")(x_BTC), keys_B, site)
        return x_BTC + MLP(c, name="mlp")(layer_norm(c, "ln_2")(x_BTC), keys_B, site + 2)


class GPT(nn.Module):
    """The language model. `config` must be resolved: vocab_size above 0, matmul_dtype not auto."""

    config: GPTConfig

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Logits of the next token at every position.

        Args:
          tokens_BT: ids below vocab_size, T at most block_size.
          keys_B: one typed key per row turns dropout on.

        Returns: float32 logits, shape (B, T, V).
        """
        c = self.config
        wte = self._table("wte", c.vocab_size, "vocab")
        wpe = self._table("wpe", c.block_size, "length")
        x_BTC = wte(tokens_BT) + wpe.embedding[: tokens_BT.shape[1]]
        for layer in range(c.n_layer):
            x_BTC = Block(c, name=f"h_{layer}")(x_BTC, keys_B, layer * Block.SITES)
        x_BTC = layer_norm(c, "ln_f")(x_BTC)
        if c.tie_embeddings:
            return contract(x_BTC, wte.embedding.T, 1, c.matmul_dtype)
        head = Dense((c.vocab_size,), ("embed", "vocab"), False, c.matmul_dtype, name="lm_head")
        return head(x_BTC)

    def _table(self, name: str, rows: int, axis: str) -> nn.Embed:
        init = named(nn.initializers.normal(INIT_STDDEV), axis, "embed")
        return nn.Embed(rows, self.config.n_embd, embedding_init=init, name=name)
