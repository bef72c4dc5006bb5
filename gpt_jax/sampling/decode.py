"""Text, one token after another, with a KV cache.

The model sees a window of at most block_size tokens. `prefill` computes the keys and values of all
tokens in the window but the last. `draw_tokens` then reads the last token, draws the next one, and
so on, in one loop on the device. When the window is full, its newest half is kept and prefilled.

All shapes are fixed, so a prompt or text of another length compiles nothing new.

Shapes (the suffix of a name): B samples, T block_size, P half of T, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.config import GPTConfig, SampleConfig
from gpt_jax.model import GPT, Cache, init_cache
from gpt_jax.sampling.sampler import sample_token


def decode_step(
    config: GPTConfig,
    params: Any,
    tokens_BT: Array,
    cache: Cache,
    start: Array | int,
    first_B: Array | int = 0,
) -> tuple[Array, Cache]:
    """`GPT.decode`, which names the arguments."""
    model, variables = GPT(config), {"params": params}
    decoded = model.apply(variables, tokens_BT, cache, start, first_B, method="decode")
    return cast(tuple[Array, Cache], decoded)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(config: GPTConfig, params: Any, cache: Cache, tokens_BP: Array, start: Array) -> Cache:
    """The cache (donated) with the keys and values of tokens at the positions from `start` on."""
    return decode_step(config, params, tokens_BP, cache, start)[1]


# Scheduling a token's many small operations for concurrency costs more than it gains. Without it,
# one sequence takes 145 us a token instead of 174, and 64 sequences take 4.0 ms instead of 4.5.
@partial(
    jax.jit,
    static_argnames=("config", "top_k", "n_tokens"),
    donate_argnames="cache",
    compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False},
)
def draw_tokens(
    config: GPTConfig,
    params: Any,
    cache: Cache,
    last_B: Array,
    start: Array,
    count: Array,
    u_BT: Array,
    temperature: Array,
    top_k: int,
    top_p: Array,
    n_tokens: int,
) -> tuple[Array, Cache]:
    """Draws `count` tokens after `last_B`, which is at position `start` of the window.

    Args:
      cache: of the tokens before `last_B`; donated.
      count: at most T - start.
      u_BT: uniform numbers; number t draws the token after position t.
      n_tokens: only ids below it can be drawn; see `stream`.

    Returns: the ids, shape (B, T), of which the first `count` columns are valid, and the cache.
    """

    def draw_one(i: Array, carry: tuple[Array, Cache, Array]) -> tuple[Array, Cache, Array]:
        last_B, cache, new_BT = carry
        logits_B1V, cache = decode_step(config, params, last_B[:, None], cache, start + i)
        u_B = lax.dynamic_index_in_dim(u_BT, start + i, 1, keepdims=False)
        sample = jax.vmap(sample_token, (0, 0, None, None, None))
        last_B = sample(logits_B1V[:, 0, :n_tokens], u_B, temperature, top_k, top_p)
        return last_B, cache, lax.dynamic_update_slice_in_dim(new_BT, last_B[:, None], i, 1)

    new_BT = jnp.zeros_like(u_BT, jnp.int32)
    _, cache, new_BT = lax.fori_loop(0, count, draw_one, (last_B, cache, new_BT))
    return new_BT, cache


@partial(jax.jit, static_argnames=("rows", "count"))
def uniforms(seed: Array, rows: int, first: Array, count: int) -> Array:
    """Numbers in [0, 1) for `count` tokens from `first` on of every sample, shape (rows, count).

    The number for token j of sample i comes from fold_in(fold_in(key(seed), i), j) and depends on
    nothing else. `first` may be negative; nobody draws those tokens.
    """
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold_in(jax.random.key(seed), jnp.arange(rows))
    keys_BT = jax.vmap(fold_in, (0, None))(keys_B, first + jnp.arange(count))
    return jax.vmap(jax.vmap(jax.random.uniform))(keys_BT)


def stream(
    config: GPTConfig,
    params: Any,
    prompt_ids: np.ndarray,
    options: SampleConfig,
    seed: int,
    num_samples: int = 1,
    piece: int = 0,
    n_tokens: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the ids that follow the prompt in each sample, as they are drawn.

    Each sample has its own random numbers (`uniforms`), so its text does not depend on how many
    samples there are.

    Args:
      params: on one device, or whole on every device of a mesh, which then share the samples.
      prompt_ids: shape (tokens,), at least one. Of a longer prompt, the last T tokens are read.
      options: all but `prompt` apply.
      piece: most tokens per array; 0 = as many as fit into the window.
      n_tokens: only ids below it can be drawn: those the tokenizer knows. The model's vocabulary
        may be padded to a larger size. 0 = all ids.

    Yields: arrays of shape (B, tokens), `options.max_new_tokens` tokens in all.
    """
    # The rounding of matrix products depends on the number of rows. Within 1000 tokens, that
    # changed three texts of 17 in bfloat16 and none of 64 in float32.
    config = dataclasses.replace(config, matmul_dtype="float32")
    place, rows = _layout(params, num_samples)
    prompt = np.asarray(prompt_ids[-config.block_size :], np.int32)
    # One cache for all windows: putting new zeros on the devices took 7 % of the time of 64 texts.
    window, cache = np.tile(prompt, (rows, 1)), place(init_cache(config, rows))
    drawn, moved = 0, True
    while drawn < options.max_new_tokens:
        start = window.shape[1] - 1
        if moved:
            cache = prefill_window(config, params, cache, window[:, :-1], place)
            u_BT = place(uniforms(seed, rows, drawn - start, config.block_size))
        space = config.block_size - start
        count = min(space, options.max_new_tokens - drawn, piece or space)
        new_BT, cache = draw_tokens(
            config, params, cache, place(window[:, -1]), start, count, u_BT,
            options.temperature, options.top_k, options.top_p, n_tokens or config.vocab_size,
        )  # fmt: skip
        new = np.asarray(new_BT)[:, :count]
        yield new[:num_samples]
        drawn, window = drawn + count, np.concatenate([window, new], axis=1)
        if moved := window.shape[1] > config.block_size:
            window = window[:, -half_window(config) :]


def _layout(params: Any, num_samples: int) -> tuple[Callable[[Any], Any], int]:
    """A function that places arrays with a row per sample, and the number of rows.

    If the parameters are on several devices, the devices share the samples, and rows are added so
    that every device has the same number.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    ways = len(sharding.device_set)
    if num_samples == 1 or ways == 1:
        return lambda tree: tree, num_samples
    over_devices = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))
    return lambda tree: jax.device_put(tree, over_devices), -(-num_samples // ways) * ways


def half_window(config: GPTConfig) -> int:
    """The number of tokens that are kept when the window is full."""
    return max(config.block_size // 2, 1)


def prefill_window(
    config: GPTConfig,
    params: Any,
    cache: Cache,
    tokens: np.ndarray,
    place: Callable[[Any], Any] = lambda tree: tree,
    most: int = 0,
) -> Cache:
    """The cache (donated) with `tokens`, (B, fewer than block_size), at the positions from 0 on.

    Args:
      place: see `_layout`.
      most: tokens to prefill at a time; 0 = half a window. More than half a window is rare.
    """
    most = most or half_window(config)
    for start in range(0, tokens.shape[1], most):
        piece = tokens[:, start : start + most]
        padded = np.pad(piece, [(0, 0), (0, most - piece.shape[1])])
        cache = prefill(config, params, cache, place(padded), start)
    return cache


def generate(
    config: GPTConfig,
    params: Any,
    prompt_ids: np.ndarray,
    options: SampleConfig,
    seed: int,
    num_samples: int = 1,
) -> np.ndarray:
    """The ids that follow the prompt in each sample, shape (B, max_new_tokens). See `stream`."""
    pieces = stream(config, params, prompt_ids, options, seed, num_samples)
    return np.concatenate([np.zeros((num_samples, 0), np.int32), *pieces], axis=1)
