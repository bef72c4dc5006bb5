"""The mathematics: token ids -> logits.

Owns the GPT and its parts as Flax linen modules. Knows no loss, no optimizer, no files and no mesh:
it only gives axes their logical names. Read gpt.py first, then blocks.py and attention.py.
"""

from gpt_jax.model.attention import MOST_QUERY_BLOCKS, QUERY_BLOCK
from gpt_jax.model.gpt import GPT, Cache, init_cache
from gpt_jax.model.initializers import INIT_STDDEV
from gpt_jax.model.layers import einsum
from gpt_jax.model.stacking import plain, stack, unrolled

__all__ = [
    "GPT",
    "INIT_STDDEV",
    "MOST_QUERY_BLOCKS",
    "QUERY_BLOCK",
    "Cache",
    "einsum",
    "init_cache",
    "plain",
    "stack",
    "unrolled",
]
