"""Logits -> token, and text one token after another with a cache of keys and values.

A window of at most block_size tokens is in view. `fill` computes the keys and values of all its
tokens but the last; `extend` then reads the last token, draws the next, and so on in one loop on
the device. When the window is full, its newest half is kept and filled in again.

Everything has a fixed shape, so a prompt or a text of another length compiles nothing anew.

Shapes (the suffix of a name): B samples, T block_size, P half of it, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.config import GPTConfig, SampleConfig
from gpt_jax.model import GPT, Cache, init_cache
from gpt_jax.sampling.sampler import sample_token


def _decode(
    config: GPTConfig, params: Any, tokens_BT: jax.Array, cache: Cache, start: jax.Array | int
) -> tuple[jax.Array, Cache]:
    decoded = GPT(config).apply({"params": params}, tokens_BT, cache, start, method="decode")
    return cast(tuple[jax.Array, Cache], decoded)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def fill(
    config: GPTConfig, params: Any, cache: Cache, tokens_BP: jax.Array, start: jax.Array
) -> Cache:
    """The cache (donated) with the keys and values of tokens that stand at `start` and after."""
    return _decode(config, params, tokens_BP, cache, start)[1]


# Ordering the many small operations of a token for concurrency costs more than it gains: without,
# one sequence takes 145 us a token and not 174, and 64 take 4.0 ms and not 4.5.
@partial(
    jax.jit,
    static_argnames=("config", "top_k", "n_tokens"),
    donate_argnames="cache",
    compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False},
)
def extend(
    config: GPTConfig,
    params: Any,
    cache: Cache,
    last_B: jax.Array,
    start: jax.Array,
    count: jax.Array,
    u_BT: jax.Array,
    temperature: jax.Array,
    top_k: int,
    top_p: jax.Array,
    n_tokens: int,
) -> tuple[jax.Array, Cache]:
    """Draws `count` tokens after `last_B`, which stands at position `start` of the window.

    Args:
      cache: of the tokens before it; donated.
      count: at most T - start.
      u_BT: uniform numbers, that of the token drawn after position t at t.
      n_tokens: the ids below it can be drawn; see `stream`.

    Returns: the ids, shape (B, T) of which `count` columns count, and the cache.
    """

    def draw_one(
        i: jax.Array, carry: tuple[jax.Array, Cache, jax.Array]
    ) -> tuple[jax.Array, Cache, jax.Array]:
        last_B, cache, new_BT = carry
        logits_B1V, cache = _decode(config, params, last_B[:, None], cache, start + i)
        u_B = lax.dynamic_index_in_dim(u_BT, start + i, 1, keepdims=False)
        sample = jax.vmap(sample_token, (0, 0, None, None, None))
        last_B = sample(logits_B1V[:, 0, :n_tokens], u_B, temperature, top_k, top_p)
        return last_B, cache, lax.dynamic_update_slice_in_dim(new_BT, last_B[:, None], i, 1)

    new_BT = jnp.zeros_like(u_BT, jnp.int32)
    _, cache, new_BT = lax.fori_loop(0, count, draw_one, (last_B, cache, new_BT))
    return new_BT, cache


@partial(jax.jit, static_argnames=("rows", "count"))
def uniforms(seed: jax.Array, rows: int, first: jax.Array, count: int) -> jax.Array:
    """A number in [0, 1) for `count` tokens from `first` on of every sample, shape (rows, count).

    Of token j of sample i by fold_in(fold_in(key(seed), i), j), whatever else is drawn. `first` may
    be negative: nobody draws those tokens.
    """

    def one(i: jax.Array, j: jax.Array) -> jax.Array:
        return jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), j)
        )

    of_tokens = jax.vmap(one, (None, 0))
    return jax.vmap(of_tokens, (0, None))(jnp.arange(rows), first + jnp.arange(count))


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
    """The ids that follow the prompt in each sample, as they are drawn.

    Sample i has its own numbers (`uniforms`): the same text however many samples there are.

    Args:
      prompt_ids: shape (tokens,), at least one; of a longer prompt the last T tokens are read.
      params: on one device, or whole on each device of a mesh: then these share the samples.
      options: all but `prompt` is heeded.
      piece: most tokens at a time; 0 = as many as the window has room for.
      n_tokens: the ids below it can be drawn, those the tokenizer knows: the vocabulary of a model
        may be padded, its tables longer. 0 = all.

    Yields: arrays of shape (B, tokens), `options.max_new_tokens` tokens in all.
    """
    # Matrix products round in another order for another number of rows. In bfloat16 that changed
    # three texts of 17 within 1000 tokens, in float32 none of 64.
    config = dataclasses.replace(config, matmul_dtype="float32")
    place, rows = _layout(params, num_samples)
    prompt = np.asarray(prompt_ids[-config.block_size :], np.int32)
    # One cache for all windows: a new one, zeros put on the devices, took 7 % of 64 texts' time.
    window, cache = np.tile(prompt, (rows, 1)), place(init_cache(config, rows))
    drawn, moved = 0, True
    while drawn < options.max_new_tokens:
        start = window.shape[1] - 1
        if moved:
            cache = _filled(config, params, cache, window[:, :-1], place)
            u_BT = place(uniforms(seed, rows, drawn - start, config.block_size))
        count = min(config.block_size - start, options.max_new_tokens - drawn)
        count = min(count, piece or count)
        new_BT, cache = extend(
            config, params, cache, place(window[:, -1]), start, count, u_BT,
            options.temperature, options.top_k, options.top_p, n_tokens or config.vocab_size,
        )  # fmt: skip
        new = np.asarray(new_BT)[:, :count]
        yield new[:num_samples]
        drawn, window = drawn + count, np.concatenate([window, new], axis=1)
        if moved := window.shape[1] > config.block_size:
            window = window[:, -_half(config) :]


def _layout(params: Any, num_samples: int) -> tuple[Callable[[Any], Any], int]:
    """How to place arrays whose rows are samples beside the parameters, and how many rows.

    Where the parameters lie on several devices, these share the samples; rows are filled up so that
    each has as many.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    if num_samples == 1 or len(sharding.device_set) == 1:
        return lambda rows: rows, num_samples
    ways = len(sharding.device_set)
    shared = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))
    return lambda tree: jax.device_put(tree, shared), -(-num_samples // ways) * ways


def _half(config: GPTConfig) -> int:
    return max(config.block_size // 2, 1)


def _filled(
    config: GPTConfig, params: Any, cache: Cache, tokens: np.ndarray, place: Callable[[Any], Any]
) -> Cache:
    """The cache with some tokens, computed half a window at a time: a full one comes rarely."""
    for start in range(0, tokens.shape[1], _half(config)):
        piece = tokens[:, start : start + _half(config)]
        padded = np.pad(piece, [(0, 0), (0, _half(config) - piece.shape[1])])
        cache = fill(config, params, cache, place(padded), start)
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
    none = np.zeros((num_samples, 0), np.int32)
    pieces = stream(config, params, prompt_ids, options, seed, num_samples)
    return np.concatenate([none, *pieces], axis=1)
