"""Logits -> token, and text one token after another.

Plain and uncached: every token runs the model over its window again. When the window is full, its
newest half is kept.

Shapes: T block_size, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import GPTConfig, SampleConfig, UserError
from gpt_jax.model import GPT
from gpt_jax.tokenizer import Tokenizer


def sample_token(logits_V: jax.Array, key: jax.Array, options: SampleConfig) -> jax.Array:
    """Draws an id from softmax(logits / temperature), cut to the likeliest; at 0 the likeliest.

    Top-k is applied first, then top-p: the likeliest tokens whose chances reach `top_p` together.

    Returns: int32 scalar.
    """
    if options.temperature == 0:
        return jnp.argmax(logits_V)
    logits_V = logits_V / options.temperature
    if 0 < options.top_k < logits_V.shape[0]:
        smallest = jax.lax.top_k(logits_V, options.top_k)[0][-1]
        logits_V = jnp.where(logits_V < smallest, -jnp.inf, logits_V)
    if options.top_p < 1:
        logits_V = _cut_to_nucleus(logits_V, options.top_p)
    return jax.random.categorical(key, logits_V)


def _cut_to_nucleus(logits_V: jax.Array, top_p: float) -> jax.Array:
    order_V = jnp.argsort(-logits_V)
    chances_V = jax.nn.softmax(logits_V[order_V])
    before_V = jnp.cumsum(chances_V) - chances_V
    return logits_V.at[order_V].set(jnp.where(before_V < top_p, logits_V[order_V], -jnp.inf))


@partial(jax.jit, static_argnames=("config", "options"))
def _next_token(
    config: GPTConfig,
    params: Any,
    window_T: jax.Array,
    length: int,
    key: jax.Array,
    options: SampleConfig,
) -> jax.Array:
    logits_TV = GPT(config).apply({"params": params}, window_T[None])[0]
    return sample_token(logits_TV[length - 1], key, options)


def generate(
    config: GPTConfig, params: Any, prompt_ids: np.ndarray, key: jax.Array, options: SampleConfig
) -> list[int]:
    """The `max_new_tokens` ids that follow the prompt; token i is drawn with fold_in(key, i).

    Args:
      prompt_ids: shape (tokens,), at least one; of a longer prompt the last T tokens are read.
    """
    window = [int(token) for token in prompt_ids[-config.block_size :]]
    new = []
    for i in range(options.max_new_tokens):
        window_T = np.zeros(config.block_size, np.int32)
        window_T[: len(window)] = window
        token = _next_token(
            config, params, window_T, len(window), jax.random.fold_in(key, i), options
        )
        new.append(int(token))
        window.append(new[-1])
        if len(window) > config.block_size:
            window = window[-max(config.block_size // 2, 1) :]
    return new


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
