"""Logits -> token, and text one token after another with a cache of keys and values.

A window of at most block_size tokens is in view. `fill` computes the keys and values of its tokens
but the last; `extend` then reads the last token, draws the next, and so on in one loop on the
device. When the window is full, its newest half is kept and filled in again.

Everything has a fixed shape, so a prompt or a text of another length compiles nothing anew.

Shapes (the suffix of a name): B samples, T block_size, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gpt_jax.config import GPTConfig, SampleConfig, UserError
from gpt_jax.model import GPT, Cache, init_cache
from gpt_jax.tokenizer import Tokenizer


def sample_token(
    logits_V: jax.Array,
    key: jax.Array,
    temperature: jax.Array | float,
    top_k: int,
    top_p: jax.Array | float,
) -> jax.Array:
    """Draws an id from softmax(logits / temperature), cut to the likeliest; at 0 the likeliest.

    Top-k is applied first, then top-p: the likeliest tokens whose chances reach `top_p` together.

    Returns: int32 scalar.
    """

    def draw() -> jax.Array:
        scaled_V = logits_V / temperature
        if 0 < top_k < logits_V.shape[0]:
            smallest = lax.top_k(scaled_V, top_k)[0][-1]
            scaled_V = jnp.where(scaled_V < smallest, -jnp.inf, scaled_V)
        scaled_V = lax.cond(top_p < 1, lambda: _cut_to_nucleus(scaled_V, top_p), lambda: scaled_V)
        return jax.random.categorical(key, scaled_V).astype(jnp.int32)

    return lax.cond(temperature == 0, lambda: jnp.argmax(logits_V).astype(jnp.int32), draw)


def _cut_to_nucleus(logits_V: jax.Array, top_p: jax.Array | float) -> jax.Array:
    order_V = jnp.argsort(-logits_V)
    chances_V = jax.nn.softmax(logits_V[order_V])
    before_V = jnp.cumsum(chances_V) - chances_V
    return logits_V.at[order_V].set(jnp.where(before_V < top_p, logits_V[order_V], -jnp.inf))


def _decode(
    config: GPTConfig, params: Any, tokens_BT: jax.Array, cache: Cache, start: jax.Array | int
) -> tuple[jax.Array, Cache]:
    decoded = GPT(config).apply({"params": params}, tokens_BT, cache, start, method="decode")
    return cast(tuple[jax.Array, Cache], decoded)


@partial(jax.jit, static_argnames="config")
def fill(config: GPTConfig, params: Any, window_BT: jax.Array) -> Cache:
    """The keys and values of a whole window, in a new cache."""
    cache = init_cache(config, len(window_BT))
    return _decode(config, params, window_BT, cache, 0)[1]


@partial(jax.jit, static_argnames=("config", "top_k"), donate_argnames="cache")
def extend(
    config: GPTConfig,
    params: Any,
    cache: Cache,
    last_B: jax.Array,
    start: jax.Array,
    count: jax.Array,
    keys_B: jax.Array,
    drawn: jax.Array,
    temperature: jax.Array,
    top_k: int,
    top_p: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Draws `count` tokens after `last_B`, which stands at position `start` of the window.

    Args:
      cache: of the tokens before it; donated.
      count: at most T - start.
      keys_B: a typed key per sample; token i of a sample is drawn with fold_in(key, i).
      drawn: tokens drawn before, over all windows.

    Returns: the ids, shape (B, T) of which `count` columns count, and the cache.
    """

    def draw_one(
        i: jax.Array, carry: tuple[jax.Array, Cache, jax.Array]
    ) -> tuple[jax.Array, Cache, jax.Array]:
        last_B, cache, new_BT = carry
        logits_B1V, cache = _decode(config, params, last_B[:, None], cache, start + i)
        token_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, drawn + i)
        sample = jax.vmap(sample_token, (0, 0, None, None, None))
        last_B = sample(logits_B1V[:, 0], token_keys_B, temperature, top_k, top_p)
        return last_B, cache, lax.dynamic_update_slice_in_dim(new_BT, last_B[:, None], i, 1)

    empty_BT = jnp.zeros((len(last_B), config.block_size), jnp.int32)
    _, cache, new_BT = lax.fori_loop(0, count, draw_one, (last_B, cache, empty_BT))
    return new_BT, cache


def stream(
    config: GPTConfig,
    params: Any,
    prompt_ids: np.ndarray,
    options: SampleConfig,
    seed: int,
    num_samples: int = 1,
    piece: int = 0,
) -> Iterator[np.ndarray]:
    """The ids that follow the prompt in each sample, as they are drawn.

    Sample i is drawn with fold_in(key(seed), i): the same text however many samples there are.

    Args:
      prompt_ids: shape (tokens,), at least one; of a longer prompt the last T tokens are read.
      options: all but `prompt` is heeded.
      piece: most tokens at a time; 0 = as many as the window has room for.

    Yields: arrays of shape (B, tokens), `options.max_new_tokens` tokens in all.
    """
    # Matrix products round in another order for another number of rows. In bfloat16 that changed
    # one text of three within 1000 tokens, in float32 none of 64.
    config = dataclasses.replace(config, matmul_dtype="float32")
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(num_samples))
    window = np.tile(np.asarray(prompt_ids[-config.block_size :], np.int32), (num_samples, 1))
    drawn, cache = 0, None
    while drawn < options.max_new_tokens:
        if cache is None:
            cache = fill(config, params, _padded(window, config.block_size))
        start = window.shape[1] - 1
        count = min(config.block_size - start, options.max_new_tokens - drawn)
        count = min(count, piece or count)
        new_BT, cache = extend(
            config, params, cache, window[:, -1], start, count, keys_B, drawn,
            options.temperature, options.top_k, options.top_p,
        )  # fmt: skip
        new = np.asarray(new_BT)[:, :count]
        yield new
        drawn, window = drawn + count, np.concatenate([window, new], axis=1)
        if window.shape[1] > config.block_size:
            window, cache = window[:, -max(config.block_size // 2, 1) :], None


def _padded(window: np.ndarray, block_size: int) -> np.ndarray:
    return np.pad(window, [(0, 0), (0, block_size - window.shape[1])])


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


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids of a prompt, at least one: an empty one is a line break, or id 0 where none is known.

    Raises:
      UserError: for a character outside the vocabulary.
    """
    if prompt:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.encode("\n")
    except UserError:
        return np.zeros(1, np.int32)


def known_prompt(tokenizer: Tokenizer, prompt: str) -> str:
    """A prompt that nobody asked for: as it is or, where a character of it is unknown, empty."""
    try:
        encode_prompt(tokenizer, prompt)
    except UserError:
        return ""
    return prompt
