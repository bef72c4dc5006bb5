"""Causal attention over whole windows, with dropout and a gradient; by cuDNN; over a KV cache.
Rotary positions; exclusive attention. blocks.py fills the cache.

Shapes (the suffix of a name): B rows, T time of the queries, S time of the keys, H heads, N rows
times heads, D width of a head, P half of D.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gpt_jax.model.dropout import dropout
from gpt_jax.model.layers import einsum

# Queries are processed in blocks: at most four, which save three quarters of all that blocks can
# save, and none shorter than 128, which would not be worth its compile time.
MAX_QUERY_BLOCKS, MIN_QUERY_BLOCK = 4, 128
ROTARY_BASE = 10_000.0
MASKED = -1e30
SMALLEST_SQUARE = 1e-9  # A value of zeros has no direction.
MAX_SITES = 1 << 16  # Above any site of a model: each block of queries has a mask of its own.


def rotate(x_BTHD: Array, start: Array | int) -> Array:
    """Rotates pairs of numbers in each head by an angle that grows with the position.

    Scores then depend only on the distance between query and key (Su et al., 2021). Pair i is
    (i, i + D/2), as in GPT-NeoX and Llama. Its angle is position / ROTARY_BASE^(2 i / D).

    Args:
      start: the first position, of all rows or of each: shape () or (B,).

    Returns: shape (B, T, H, D); D must be even.
    """
    half = x_BTHD.shape[-1] // 2
    frequency_P = ROTARY_BASE ** (-np.arange(half, dtype=np.float32) / half)
    positions = jnp.expand_dims(start, -1) + jnp.arange(x_BTHD.shape[1])  # (T,) or (B, T).
    angles = (positions[..., None] * frequency_P)[..., None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x_BTHD[..., :half], x_BTHD[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def query_blocks(length: int) -> int:
    """The number of blocks in which `length` queries are processed."""
    return max(1, min(MAX_QUERY_BLOCKS, length // MIN_QUERY_BLOCK))


def causal_attention(
    q_BTHD: Array,
    k_BTHD: Array,
    v_BTHD: Array,
    keys_B: Array | None = None,
    site: Array | int = 0,
    rate: float = 0.0,
    dtype: str = "float32",
) -> Array:
    """softmax(q k / sqrt(D)) v, each position over itself and those before it.

    Dropout applies to the weights. Factors of products have `dtype`; softmax is float32. A block of
    queries uses only the keys up to its own end: two blocks save a quarter of the work, many blocks
    save half. On 2 cores, two blocks saved a tenth of the step at 256 characters. At 128 they saved
    3 % and are not used.

    Returns: shape (B, T, H, D).
    """
    length = q_BTHD.shape[1]
    size = -(-length // query_blocks(length))
    q_BTHD, blocks = q_BTHD * q_BTHD.shape[-1] ** -0.5, []
    for number, start in enumerate(range(0, length, size)):
        end = start + size
        q, k, v = q_BTHD[:, start:end], k_BTHD[:, :end], v_BTHD[:, :end]
        blocks.append(_block_attention(q, k, v, keys_B, site + number * MAX_SITES, rate, dtype))
    return jnp.concatenate(blocks, axis=1)


def cudnn_attention(q_BTHD: Array, k_BSHD: Array, v_BSHD: Array) -> Array:
    """`causal_attention` in bfloat16 by cuDNN's kernel, which never stores all weights at once.

    For GPUs that `hardware.check_attention` accepts. No dropout: jax.nn does not offer it here.

    Args:
      k_BSHD, v_BSHD: may have fewer heads, each shared by several consecutive heads of q.

    Returns: float32, shape (B, T, H, D).
    """
    q_BTHD, k_BSHD, v_BSHD = (x.astype(jnp.bfloat16) for x in (q_BTHD, k_BSHD, v_BSHD))
    y_BTHD = jax.nn.dot_product_attention(
        q_BTHD, k_BSHD, v_BSHD, is_causal=True, implementation="cudnn"
    )
    return y_BTHD.astype(jnp.float32)


def exclude_own_value(y_BTHD: Array, v_BTHD: Array) -> Array:
    """y minus its component along v: what a position gets from attention is only about others.

    Exclusive self attention (Zhai, 2026, arXiv:2603.09078). Without it, the loss of
    configs/speedrun.py on its selection text is 1.424 instead of 1.419.

    Args:
      v_BTHD: may have fewer heads, each shared by several consecutive heads of y.

    Returns: shape (B, T, H, D).
    """
    v_BTHD = jnp.repeat(v_BTHD, y_BTHD.shape[2] // v_BTHD.shape[2], axis=2)
    square_BTH1 = (v_BTHD**2).sum(-1, keepdims=True) + SMALLEST_SQUARE
    return y_BTHD - (y_BTHD * v_BTHD).sum(-1, keepdims=True) / square_BTH1 * v_BTHD


def attention_weights(q_BTHD: Array, k_BSHD: Array, dtype: str) -> Array:
    """Softmax of the scores of the last T of S positions, shape (B, H, T, S), in `dtype`."""
    time, end = q_BTHD.shape[1], k_BSHD.shape[1]
    scores_BHTS = einsum("bthd,bshd->bhts", q_BTHD, k_BSHD, dtype)
    visible_TS = jnp.arange(end) <= jnp.arange(end - time, end)[:, None]
    return jax.nn.softmax(jnp.where(visible_TS, scores_BHTS, -jnp.inf)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _block_attention(*arguments: Any) -> Array:
    """Attention of one block of queries, already scaled, with a written-out backward pass.

    It saves arrays in `dtype` and draws dropout's mask again; autodiff saves the weights three
    times. configs/small.py takes 371 ms a step instead of 396; configs/tiny.py takes as long as
    before. `_block_attention_forward` names the arguments.
    """
    return _block_attention_forward(*arguments)[0]


def _block_attention_forward(
    q_BTHD: Array,
    k_BSHD: Array,
    v_BSHD: Array,
    keys_B: Array | None,
    site: Array | int,
    rate: float,
    dtype: str,
) -> tuple[Array, tuple[Any, ...]]:
    q_BTHD, k_BSHD, v_BSHD = (x.astype(dtype) for x in (q_BTHD, k_BSHD, v_BSHD))
    weights_BHTS = attention_weights(q_BTHD, k_BSHD, dtype)
    dropped_BHTS = dropout(weights_BHTS, keys_B, site, rate)
    y_BTHD = einsum("bhts,bshd->bthd", dropped_BHTS, v_BSHD, dtype)
    return y_BTHD, (q_BTHD, k_BSHD, v_BSHD, keys_B, site, weights_BHTS)


def _block_attention_backward(
    rate: float, dtype: str, saved: tuple[Any, ...], grad_BTHD: Array
) -> tuple[Array | None, ...]:
    """With weights p, and p' after dropout: dv = p' dy, dp = dropout(dy v),
    ds = p (dp - sum(p dp)), dq = ds k, dk = ds q.

    The order of the factors matters: XLA:CPU cannot run other orders in bfloat16 (jax 0.10.2).
    """
    q_BTHD, k_BSHD, v_BSHD, keys_B, site, weights_BHTS = saved
    dropped_BHTS = dropout(weights_BHTS, keys_B, site, rate)
    grad_v = einsum("bhts,bthd->bshd", dropped_BHTS, grad_BTHD, dtype)
    grad_BHTS = einsum("bthd,bshd->bhts", grad_BTHD, v_BSHD, dtype)
    grad_BHTS = dropout(grad_BHTS, keys_B, site, rate)
    weights_BHTS = weights_BHTS.astype(jnp.float32)
    mean_BHT1 = (weights_BHTS * grad_BHTS).sum(-1, keepdims=True)
    grad_BHTS = weights_BHTS * (grad_BHTS - mean_BHT1)
    grad_q = einsum("bhts,bshd->bthd", grad_BHTS, k_BSHD, dtype)
    grad_k = einsum("bhts,bthd->bshd", grad_BHTS, q_BTHD, dtype)
    return grad_q, grad_k, grad_v, None, None


_block_attention.defvjp(_block_attention_forward, _block_attention_backward)


def cached_attention(
    q_NTD: Array,
    k_NSD: Array,
    v_NSD: Array,
    start: Array,
    groups: int = 1,
    first_N: Array | int = 0,
) -> Array:
    """`causal_attention` over a KV cache, whose places are a ring: place 0 follows the last one.

    Args:
      q_NTD: queries of T / groups places from `start` on, for each of `groups` heads in turn. These
        heads share their keys and values.
      first_N: the place where each row begins; earlier ones are not read. Negative: a row that
        began before place 0 and continues there, so its first places are the last of the ring.

    Returns: shape (N, T, D).
    """
    scores_NTS = jnp.einsum("ntd,nsd->nts", q_NTD * q_NTD.shape[-1] ** -0.5, k_NSD)
    places_T = start + jnp.tile(jnp.arange(q_NTD.shape[1] // groups), groups)
    first_N11, size = jnp.reshape(first_N, (-1, 1, 1)), k_NSD.shape[1]
    # Both sides count from the row's beginning.
    visible_NTS = (jnp.arange(size) - first_N11) % size <= places_T[:, None] - first_N11
    # A finite bound: a query in the padding sees nothing, and its weights must not be NaN.
    weights_NTS = jax.nn.softmax(jnp.where(visible_NTS, scores_NTS, MASKED))
    return jnp.einsum("nts,nsd->ntd", weights_NTS, v_NSD)
