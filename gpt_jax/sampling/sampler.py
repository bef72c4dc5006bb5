"""Logits -> token: temperature, top-k, top-p. The suffix V of a name: vocabulary."""

import jax
import jax.numpy as jnp
from jax import Array, lax

COUNTED_VOCAB = 1024  # Up to this size, counting the larger logits is faster than sorting.
MIN_TEMPERATURE = 1e-5  # Below it, logits / temperature could overflow; greedy is the limit anyway.


def sample_token(
    logits_V: Array, u: Array | float, temperature: Array | float, top_k: int, top_p: Array | float
) -> Array:
    """Draws an id, an int32 scalar, from softmax(logits / temperature) after top-k and top-p.

    At temperature 0, the likeliest id. Top-k keeps `top_k` ids; of equal ones, the lowest. Top-p
    then keeps the fewest likeliest ids whose probabilities sum to at least `top_p`.

    Args:
      u: uniform in [0, 1); picks the id in whose share of the cumulative probabilities it falls.
        One random number per token: Gumbel noise, one per id, took a third of the time.
    """

    def draw() -> Array:
        scaled_V = _cut_to_top_k(logits_V, top_k) / temperature
        scaled_V = lax.cond(top_p < 1, lambda: cut_to_top_p(scaled_V, top_p), lambda: scaled_V)
        return pick(scaled_V, u)

    greedy = temperature < MIN_TEMPERATURE
    return lax.cond(greedy, lambda: jnp.argmax(logits_V).astype(jnp.int32), draw)


def pick(scaled_V: Array, u: Array | float) -> Array:
    """The id in whose share of the cumulative probabilities `u` falls."""
    cumulative_V = jnp.cumsum(jax.nn.softmax(scaled_V))
    # Rounding can leave u above the total. Then take the last id that was not cut.
    last = jnp.max(jnp.where(scaled_V > -jnp.inf, jnp.arange(len(scaled_V)), 0))
    return jnp.minimum(jnp.sum(cumulative_V <= u), last).astype(jnp.int32)


def _cut_to_top_k(logits_V: Array, top_k: int) -> Array:
    if not 0 < top_k < len(logits_V):
        return logits_V
    if len(logits_V) > COUNTED_VOCAB:
        kept_K = lax.top_k(logits_V, top_k)[1]
        return jnp.full_like(logits_V, -jnp.inf).at[kept_K].set(logits_V[kept_K])
    return jnp.where(counted_ranks(logits_V) < top_k, logits_V, -jnp.inf)


def counted_ranks(logits_V: Array) -> Array:
    """How many ids come before each: those with larger logits, and lower ids with equal ones."""
    left_V1, is_lower_VV = logits_V[:, None], jnp.tri(len(logits_V), k=-1, dtype=bool)
    before_VV = jnp.where(is_lower_VV, logits_V >= left_V1, logits_V > left_V1)
    # As a product: on a CPU, summing each row of comparisons takes twice as long.
    return before_VV @ jnp.ones(len(logits_V))


def cut_to_top_p(logits_V: Array, top_p: Array | float) -> Array:
    """The logits, -inf for those that top-p cuts."""
    order_V = jnp.argsort(-logits_V)
    sorted_V = jax.nn.softmax(logits_V[order_V])
    before_V = jnp.cumsum(sorted_V) - sorted_V
    top_p = jnp.maximum(top_p, 1e-9)  # Keeps the likeliest id even if top_p rounds to 0.
    return logits_V.at[order_V].set(jnp.where(before_V < top_p, logits_V[order_V], -jnp.inf))
