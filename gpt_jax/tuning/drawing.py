"""Draws answers to many prompts at once, until each ends.

The rows of a batch have prompts of different lengths. They are aligned at their ends, so all rows
write the same place of the KV cache, and each row ignores the padding before its own beginning.
What a row gets depends on its prompt, its key and its number, and on nothing else.

Shapes: B rows, P the longest prompt, N the longest answer, E tokens of the end, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from gpt_jax.config import GPTConfig
from gpt_jax.model import GPT, init_cache
from gpt_jax.sampling import sample_token


class Prompts(NamedTuple):
    """Rows to be answered.

    Attributes:
      ids_BP: each prompt at the end of its row, padded in front; see `aligned`.
      first_B: where each prompt begins.
      keys_B: a typed key for each row.
      limit_B: tokens of each answer, at most.
    """

    ids_BP: Array | np.ndarray
    first_B: Array | np.ndarray
    keys_B: Array
    limit_B: Array | np.ndarray


class Rule(NamedTuple):
    """How a token is drawn, and what ends an answer: `end_E`, its last ids."""

    end_E: Array | np.ndarray
    temperature: Array | float
    top_p: Array | float


def draw(
    config: GPTConfig,
    params: Any,
    prompts: Prompts,
    rule: Rule,
    longest: int,
    n_tokens: int,
    top_k: int,
) -> tuple[Array, Array]:
    """Draws an answer to every prompt.

    Args:
      longest: N, at least the largest limit.
      n_tokens: only ids below it can be drawn.

    Returns: the ids (B, N), and the length of each answer (B,), its end included.
    """
    model, (rows, size) = GPT(config), prompts.ids_BP.shape
    # Longer than a window, so that a row with a short prompt has room for a long answer.
    cache = init_cache(dataclasses.replace(config, block_size=size + longest), rows)
    decode: Any = partial(model.apply, {"params": params}, method="decode")
    _, cache = decode(prompts.ids_BP[:, :-1], cache, jnp.int32(0), prompts.first_B)
    sample = jax.vmap(sample_token, (0, 0, None, None, None))

    def is_going(carry: Any) -> Array:
        return (carry[-1] == 0).any()

    def draw_one(carry: Any) -> Any:
        i, last_B, cache, new_BN, length_B = carry
        logits_B1V, cache = decode(last_B[:, None], cache, size - 1 + i, prompts.first_B)
        u_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, i)))(prompts.keys_B)
        last_B = sample(logits_B1V[:, 0, :n_tokens], u_B, rule.temperature, top_k, rule.top_p)
        new_BN = lax.dynamic_update_slice_in_dim(new_BN, last_B[:, None], i, 1)
        is_over_B = _has_ended(new_BN, rule.end_E, i + 1) | (i + 1 >= prompts.limit_B)
        length_B = jnp.where(is_over_B & (length_B == 0), i + 1, length_B)
        return i + 1, last_B, cache, new_BN, length_B

    new_BN, length_B = jnp.zeros((rows, longest), jnp.int32), jnp.zeros(rows, jnp.int32)
    carry = jnp.int32(0), prompts.ids_BP[:, -1], cache, new_BN, length_B
    *_, new_BN, length_B = lax.while_loop(is_going, draw_one, carry)
    return new_BN, length_B


@partial(
    jax.jit,
    static_argnames=("mesh", "config", "longest", "n_tokens", "top_k"),
    compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False},
)
def draw_over(
    mesh: Mesh,
    config: GPTConfig,
    params: Any,
    prompts: Prompts,
    rule: Rule,
    longest: int,
    n_tokens: int,
    top_k: int,
) -> tuple[Array, Array]:
    """`draw`, with the rows spread over the devices. Each stops when its own rows have ended."""

    def local(params: Any, prompts: Prompts, rule: Rule) -> tuple[Array, Array]:
        return draw(config, params, prompts, rule, longest, n_tokens, top_k)

    whole, rows = PartitionSpec(), PartitionSpec(mesh.axis_names)
    specs = whole, rows, whole
    over = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return over(params, prompts, rule)


def _has_ended(new_BN: Array, end_E: Array | np.ndarray, drawn: Array) -> Array:
    """Whether the last of `drawn` tokens are the end, (B,)."""
    size = len(end_E)
    if size > new_BN.shape[1]:
        return jnp.zeros(len(new_BN), bool)
    start = jnp.maximum(drawn - size, 0)
    last_BE = lax.dynamic_slice_in_dim(new_BN, start, size, axis=1)
    return (last_BE == end_E).all(-1) & (drawn >= size)


def aligned(prompts: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts at the end of rows of `width` ids, and where each begins."""
    prompts_BP = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(prompts_BP, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return prompts_BP, np.array([width - len(prompt) for prompt in prompts], np.int32)


def exact(config: GPTConfig) -> GPTConfig:
    """The model for drawing: float32 products, so that the number of rows changes little."""
    return dataclasses.replace(config, matmul_dtype="float32")
