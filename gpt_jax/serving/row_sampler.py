"""Logits -> tokens, for rows with options of their own. The suffixes B and V: rows, vocabulary."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from gpt_jax.sampling.sampler import (
    COUNTED_VOCAB,
    MIN_TEMPERATURE,
    counted_ranks,
    cut_to_top_p,
    pick,
)


def sample_rows(
    logits_BV: Array, u_B: Array, temperature_B: Array, top_k_B: Array, top_p_B: Array
) -> Array:
    """`sample_token` for rows that have options of their own, none of them static: ids, (B,).

    A cut that no row asks for is skipped. Under `vmap`, every row would pay for it.
    """
    kept_BV = lax.cond(
        jnp.any(top_k_B > 0), jax.vmap(_cut_to_any_top_k), lambda x, k: x, logits_BV, top_k_B
    )
    scaled_BV = kept_BV / jnp.maximum(temperature_B, MIN_TEMPERATURE)[:, None]

    def cut(x_BV: Array, p_B: Array) -> Array:
        return jnp.where(p_B[:, None] < 1, jax.vmap(cut_to_top_p)(x_BV, p_B), x_BV)

    scaled_BV = lax.cond(jnp.any(top_p_B < 1), cut, lambda x, p: x, scaled_BV, top_p_B)
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    drawn_B = jax.vmap(pick)(scaled_BV, u_B)
    return jnp.where(temperature_B < MIN_TEMPERATURE, greedy_B, drawn_B)


def _cut_to_any_top_k(logits_V: Array, top_k: Array) -> Array:
    """`_cut_to_top_k` for a number that is not static; it sorts a large vocabulary."""
    if len(logits_V) > COUNTED_VOCAB:
        order_V = jnp.argsort(-logits_V)  # Stable, so of equal logits the lowest id comes first.
        rank_V = jnp.zeros_like(order_V).at[order_V].set(jnp.arange(len(logits_V)))
    else:
        rank_V = counted_ranks(logits_V)
    return jnp.where((rank_V < top_k) | (top_k == 0), logits_V, -jnp.inf)
