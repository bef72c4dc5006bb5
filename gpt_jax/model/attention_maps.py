"""What every head attends to: the weights of attention, as numbers to look at.

Shapes (the suffix of a name): T time of the queries, S time of the keys, H heads, L blocks.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gpt_jax.config import GPTConfig
from gpt_jax.model.attention import attention_weights
from gpt_jax.model.gpt import GPT


def _makes_heads(module: nn.Module, method: str) -> bool:
    return method == "_heads"  # Of blocks.Attention: queries, keys and values.


def attention_maps(config: GPTConfig, params: Any, tokens_T: Array) -> Array:
    """The weights of attention for one window, in every block and head.

    Args:
      config: of an unrolled model; see stacking.py.
      tokens_T: at most block_size ids.

    Returns: shape (L, H, T, S). Row t says how much position t attends to each; it sums to 1, and
      is 0 after position t.
    """
    _, found = GPT(config).apply(
        {"params": params}, tokens_T[None], capture_intermediates=_makes_heads
    )
    maps = []
    for layer in range(config.n_layer):
        [(q, k, _)] = found["intermediates"][f"h_{layer}"]["attn"]["_heads"]
        k = jnp.repeat(k, config.n_head // config.kv_heads, axis=2)
        q = q * config.head_dim**-0.5
        maps.append(attention_weights(q, k, config.matmul_dtype)[0])
    return jnp.stack(maps)
