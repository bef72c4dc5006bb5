"""Logits -> token: temperature, top-k, top-p. The suffix V of a name: vocabulary."""

import jax
import jax.numpy as jnp
from jax import Array, lax

COUNTED_VOCAB = 1024  # Up to this size, counting the larger logits is faster than sorting.
MIN_TEMPERATURE = 1e-5  # Below it, logits / temperature could overflow; greedy is the limit anyway.


def sample_token(
    logits_V: Array, u: Array | float, temperature: Array | float, top_k: int, top_p: Array | float
) -> Array:
    """Draws an id from softmax(logits / temperature) after top-k and top-p. At 0, the likeliest id.

    Top-k is applied first. Top-p then keeps the fewest likeliest ids whose probabilities sum to at
    least `top_p`.

    Args:
      u: uniform in [0, 1); picks the id in whose share of the cumulative probabilities it falls.
        One random number per token: Gumbel noise, one per id, took a third of the time.

    Returns: int32 scalar.
    """

    def draw() -> Array:
        scaled_V = _cut_to_top_k(logits_V, top_k) / temperature
        scaled_V = lax.cond(top_p < 1, lambda: _cut_to_top_p(scaled_V, top_p), lambda: scaled_V)
        cumulative_V = jnp.cumsum(jax.nn.softmax(scaled_V))
        # Rounding can leave u above the total. Then take the last id that was not cut.
        last = jnp.max(jnp.where(scaled_V > -jnp.inf, jnp.arange(len(scaled_V)), 0))
        return jnp.minimum(jnp.sum(cumulative_V <= u), last).astype(jnp.int32)

    greedy = temperature < MIN_TEMPERATURE
    return lax.cond(greedy, lambda: jnp.argmax(logits_V).astype(jnp.int32), draw)


def _cut_to_top_k(logits_V: Array, top_k: int) -> Array:
    if not 0 < top_k < len(logits_V):
        return logits_V
    if len(logits_V) <= COUNTED_VOCAB:
        # As a product: on a CPU, summing each row of comparisons takes twice as long.
        larger_V = (logits_V > logits_V[:, None]).astype(jnp.float32) @ jnp.ones(len(logits_V))
        return jnp.where(larger_V < top_k, logits_V, -jnp.inf)
    return jnp.where(logits_V < lax.top_k(logits_V, top_k)[0][-1], -jnp.inf, logits_V)


def _cut_to_top_p(logits_V: Array, top_p: Array | float) -> Array:
    order_V = jnp.argsort(-logits_V)
    sorted_V = jax.nn.softmax(logits_V[order_V])
    before_V = jnp.cumsum(sorted_V) - sorted_V
    top_p = jnp.maximum(top_p, 1e-9)  # Keeps the likeliest id even if top_p rounds to 0.
    return logits_V.at[order_V].set(jnp.where(before_V < top_p, logits_V[order_V], -jnp.inf))
