"""Causal attention: of whole windows, with dropout and a gradient, by cuDNN, and over a cache;
rotary positions.

Shapes (the suffix of a name): B rows, T time of the queries, S time of the keys, H heads, N rows
times heads, D width of a head, P half of it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.model.dropout import dropout
from gpt_jax.model.layers import einsum

QUERY_BLOCK = 128  # Shorter blocks of queries are not worth their compilation,
MOST_QUERY_BLOCKS = 4  # nor are more of them: four save three quarters of what can be saved.
ROTARY_BASE = 10_000.0
MOST_SITES = 1 << 16  # More than a model has: a block of queries has masks of its own.


def rotate(x_BTHD: jax.Array, start: jax.Array | int) -> jax.Array:
    """Turns pairs of numbers of each head by angles that grow with the position (Su et al., 2021).

    Scores then depend on the distance of query and key alone. Pair i is (i, i + D/2), as in
    GPT-NeoX and Llama; its angle is position / ROTARY_BASE^(2 i / D), the first one at `start`.

    Returns: shape (B, T, H, D); D must be even.
    """
    half = x_BTHD.shape[-1] // 2
    frequency_P = ROTARY_BASE ** (-np.arange(half, dtype=np.float32) / half)
    position_T = start + jnp.arange(x_BTHD.shape[1])
    angle_T1P = (position_T[:, None] * frequency_P)[:, None]
    sin, cos = jnp.sin(angle_T1P), jnp.cos(angle_T1P)
    a, b = x_BTHD[..., :half], x_BTHD[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_attention(
    q_BTHD: jax.Array,
    k_BTHD: jax.Array,
    v_BTHD: jax.Array,
    keys_B: jax.Array | None = None,
    site: jax.Array | int = 0,
    rate: float = 0.0,
    dtype: str = "float32",
) -> jax.Array:
    """softmax(q k / sqrt(D)) v over the positions up to one's own; dropout on the weights.

    Products have factors of `dtype`, softmax is float32. A block of queries meets the keys up to
    the block's end: two blocks save a quarter of attention, many a half. On 2 cores two saved a
    tenth of the step at 256 characters, and 3 % at 128, where they are not used.

    Returns: shape (B, T, H, D).
    """
    length = q_BTHD.shape[1]
    size = -(-length // max(1, min(MOST_QUERY_BLOCKS, length // QUERY_BLOCK)))
    q_BTHD, blocks = q_BTHD * q_BTHD.shape[-1] ** -0.5, []
    for number, start in enumerate(range(0, length, size)):
        q, k, v = (
            q_BTHD[:, start : start + size],
            k_BTHD[:, : start + size],
            v_BTHD[:, : start + size],
        )
        blocks.append(_attend(q, k, v, keys_B, site + number * MOST_SITES, rate, dtype))
    return jnp.concatenate(blocks, axis=1)


def cudnn_attention(q_BTHD: jax.Array, k_BSHD: jax.Array, v_BSHD: jax.Array) -> jax.Array:
    """`causal_attention` in bfloat16 by cuDNN's kernel, which never holds all weights at once.

    For GPUs that `hardware.check_attention` lets pass. Without dropout: jax.nn has none for it.

    Args:
      k_BSHD, v_BSHD: of as many heads or fewer, each for several in a row of q's.

    Returns: float32, shape (B, T, H, D).
    """
    q_BTHD, k_BSHD, v_BSHD = (x.astype(jnp.bfloat16) for x in (q_BTHD, k_BSHD, v_BSHD))
    y_BTHD = jax.nn.dot_product_attention(
        q_BTHD, k_BSHD, v_BSHD, is_causal=True, implementation="cudnn"
    )
    return y_BTHD.astype(jnp.float32)


def _weights(q_BTHD: jax.Array, k_BSHD: jax.Array, dtype: str) -> jax.Array:
    """Softmax of the scores of the last T of S positions, shape (B, H, T, S), in `dtype`."""
    time, end = q_BTHD.shape[1], k_BSHD.shape[1]
    scores_BHTS = einsum("bthd,bshd->bhts", q_BTHD, k_BSHD, dtype)
    visible_TS = jnp.arange(end) <= jnp.arange(end - time, end)[:, None]
    return jax.nn.softmax(jnp.where(visible_TS, scores_BHTS, -jnp.inf)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(
    q_BTHD: jax.Array,
    k_BSHD: jax.Array,
    v_BSHD: jax.Array,
    keys_B: jax.Array | None,
    site: jax.Array | int,
    rate: float,
    dtype: str,
) -> jax.Array:
    """Attention of one block of queries, which are scaled; its backward pass is written out.

    What it keeps is in `dtype` and without dropout's mask, which is drawn again; autodiff keeps the
    weights three times. configs/small.py takes 371 ms a step instead of 396, configs/tiny.py as
    long as before.
    """
    return _attend_forward(q_BTHD, k_BSHD, v_BSHD, keys_B, site, rate, dtype)[0]


def _attend_forward(
    q_BTHD: jax.Array,
    k_BSHD: jax.Array,
    v_BSHD: jax.Array,
    keys_B: jax.Array | None,
    site: jax.Array | int,
    rate: float,
    dtype: str,
) -> tuple[jax.Array, tuple[Any, ...]]:
    q_BTHD, k_BSHD, v_BSHD = (x.astype(dtype) for x in (q_BTHD, k_BSHD, v_BSHD))
    weights_BHTS = _weights(q_BTHD, k_BSHD, dtype)
    dropped_BHTS = dropout(weights_BHTS, keys_B, site, rate)
    y_BTHD = einsum("bhts,bshd->bthd", dropped_BHTS, v_BSHD, dtype)
    return y_BTHD, (q_BTHD, k_BSHD, v_BSHD, keys_B, site, weights_BHTS)


def _attend_backward(
    rate: float, dtype: str, kept: tuple[Any, ...], grad_BTHD: jax.Array
) -> tuple[jax.Array | None, ...]:
    """With weights p, and p' after dropout: dv = p' dy, dp = dropout(dy v),
    ds = p (dp - sum(p dp)), dq = ds k, dk = ds q.

    The order of factors matters: XLA:CPU cannot run the others in bfloat16 (jax 0.10.2).
    """
    q_BTHD, k_BSHD, v_BSHD, keys_B, site, weights_BHTS = kept
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


_attend.defvjp(_attend_forward, _attend_backward)


def cached_attention(
    q_NTD: jax.Array, k_NSD: jax.Array, v_NSD: jax.Array, start: jax.Array, groups: int = 1
) -> jax.Array:
    """`causal_attention` over a cache. Returns: shape (N, T, D).

    Args:
      q_NTD: of T / groups positions from `start` on, `groups` times over: that many heads share
        the keys and values.
    """
    scores_NTS = jnp.einsum("ntd,nsd->nts", q_NTD * q_NTD.shape[-1] ** -0.5, k_NSD)
    positions_T = start + jnp.tile(jnp.arange(q_NTD.shape[1] // groups), groups)
    visible_TS = jnp.arange(k_NSD.shape[1]) <= positions_T[:, None]
    weights_NTS = jax.nn.softmax(jnp.where(visible_TS, scores_NTS, -jnp.inf))
    return jnp.einsum("nts,nsd->ntd", weights_NTS, v_NSD)
