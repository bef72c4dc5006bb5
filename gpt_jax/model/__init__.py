"""The mathematics: token ids -> logits.

Owns the GPT and its parts, as Flax linen modules. It does not touch the loss, the optimizer, files
or the mesh; it only gives the axes of arrays their logical names. Read gpt.py first, then blocks.py
and attention.py. The KV cache is made in gpt.py (init_cache) and filled in blocks.py.
"""

from gpt_jax.model.attention import attention_weights, query_blocks
from gpt_jax.model.gpt import GPT, Cache, init_cache
from gpt_jax.model.initializers import INIT_STDDEV
from gpt_jax.model.layers import NORM_EPSILON, einsum
from gpt_jax.model.stacking import plain, stack, unrolled

__all__ = [
    "GPT",
    "INIT_STDDEV",
    "NORM_EPSILON",
    "Cache",
    "attention_weights",
    "einsum",
    "init_cache",
    "plain",
    "query_blocks",
    "stack",
    "unrolled",
]
