"""A short convolution over time: every position also sees the few before it.

Primer found it by search (So et al., 2021, arXiv 2109.08668), Canon layers are much the same
(Allen-Zhu, 2025, arXiv 2512.17351).

Shapes (the suffix of a name): B rows, T time, S block_size, C width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.initializers import named


def identity_taps(key: Array, shape: tuple[int, int]) -> Array:
    """Taps of a convolution that returns its input."""
    return jnp.zeros(shape).at[0].set(1.0)


class ShortConvolution(nn.Module):
    """y_t = sum over k of taps_k x_(t-k), in each channel by itself. Begins as the identity."""

    config: GPTConfig

    def setup(self) -> None:
        shape = (self.config.short_convolution, self.config.n_embd)
        self.taps = self.param("taps", named(identity_taps, "length", "embed"), shape)

    def __call__(self, x_BTC: Array) -> Array:
        return sum(tap_C * _later(x_BTC, k) for k, tap_C in enumerate(self.taps))

    def decode(
        self, x_BTC: Array, x_BSC: Array, start: Array, first_B: Array | int = 0
    ) -> tuple[Array, Array]:
        """The same for the positions from `start` on, and the cache of inputs, x included.

        `start` and `first_B` are those of `GPT.decode`; the cache is a ring too.
        """
        x_BSC = lax.dynamic_update_slice_in_dim(x_BSC, x_BTC, start, axis=1)
        places_T = start + jnp.arange(x_BTC.shape[1])
        position_BT1 = (places_T - jnp.reshape(first_B, (-1, 1)))[:, :, None]
        y_BTC = self.taps[0] * x_BTC
        for k in range(1, len(self.taps)):
            before_BTC = jnp.take(x_BSC, (places_T - k) % x_BSC.shape[1], axis=1, mode="clip")
            y_BTC += self.taps[k] * jnp.where(position_BT1 < k, 0.0, before_BTC)
        return y_BTC, x_BSC


def _later(x_BTC: Array, k: int) -> Array:
    """x moved by k positions, with zeros before it."""
    return jnp.pad(x_BTC, ((0, 0), (k, 0), (0, 0)))[:, : x_BTC.shape[1]]
