"""What every head attends to: the weights of attention, as numbers to look at.

Shapes (the suffix of a name): T time of the queries, S time of the keys, H heads, L blocks.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from gpt_jax.config import GPTConfig
from gpt_jax.model.attention import attention_weights
from gpt_jax.model.gpt import GPT


def _makes_heads(module: nn.Module, method: str) -> bool:
    return method == "_heads"  # Of blocks.Attention: queries, keys and values.


@partial(jax.jit, static_argnames="config")
def _maps(config: GPTConfig, params: Any, tokens_T: Array) -> Array:
    _, found = GPT(config).apply(
        {"params": params}, tokens_T[None], capture_intermediates=_makes_heads
    )
    maps = []
    for layer in range(config.n_layer):
        [(q, k, _)] = found["intermediates"][f"h_{layer}"]["attn"]["_heads"]
        k = jnp.repeat(k, config.n_head // config.kv_heads, axis=2)
        q = q * config.head_dim**-0.5
        maps.append(attention_weights(q, k, config.matmul_dtype)[0])
    return jnp.stack(maps).astype(jnp.float32)


def attention_maps(config: GPTConfig, params: Any, ids: np.ndarray) -> np.ndarray:
    """The weights of attention for one text, in every block and head.

    Args:
      config: of an unrolled model; see stacking.py.
      ids: shape (T,), 1 to block_size.

    Returns: float32, shape (L, H, T, S). Row t says how much token t attends to each; it sums to 1,
      and is 0 after token t.
    """
    # Padded to a power of two: texts of many lengths share few compiled programs.
    width = min(1 << (len(ids) - 1).bit_length(), config.block_size)
    tokens_T = np.pad(ids, (0, width - len(ids))).astype(np.int32)
    return np.asarray(_maps(config, params, tokens_T))[:, :, : len(ids), : len(ids)]
