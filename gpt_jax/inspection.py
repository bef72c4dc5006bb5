"""What a model makes of a text: the probabilities of its tokens, and what each head attends to.

Shapes (the suffix of a name): B tokens, V vocabulary, S likeliest tokens, N windows, T block_size,
W = T + 1.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from gpt_jax.config import GPTConfig
from gpt_jax.model import GPT, attention_weights
from gpt_jax.text.windows import evaluation_windows
from gpt_jax.training.step import token_losses

WINDOWS_AT_ONCE = 8  # Of a text whose losses are computed.
MOST_SCORED = 20  # Likeliest tokens that are given.


class Scores(NamedTuple):
    """Log-probabilities of tokens, in nats.

    Attributes:
      token: of the token, shape (B,).
      best: of the likeliest tokens in its place, likeliest first, shape (B, S).
      best_ids: these tokens.
    """

    token: Any
    best: Any
    best_ids: Any


def scores_of(logits_BV: Array, ids_B: Array, n_tokens: int) -> Scores:
    """The scores of tokens, from the logits in their places.

    Args:
      n_tokens: only ids below it are among the likeliest: those the tokenizer knows.
    """
    logp_BV = jax.nn.log_softmax(logits_BV)
    best, best_ids = lax.top_k(logp_BV[:, :n_tokens], min(MOST_SCORED, n_tokens))
    return Scores(jnp.take_along_axis(logp_BV, ids_B[:, None], axis=1)[:, 0], best, best_ids)


@partial(jax.jit, static_argnames=("config", "n_tokens"))
def _window_scores(config: GPTConfig, params: Any, window_W: Array, n_tokens: int) -> Scores:
    logits_1TV = cast(Array, GPT(config).apply({"params": params}, window_W[None, :-1]))
    return scores_of(logits_1TV[0], window_W[1:], n_tokens)


def text_scores(config: GPTConfig, params: Any, ids: np.ndarray, n_tokens: int) -> Scores:
    """The scores of all tokens of a text but the first, which has none; NumPy arrays.

    The text is evaluated as in training, in windows of T tokens and with `matmul_dtype`, so the
    log-probabilities are those of `text_losses`.
    """
    size, parts = config.block_size, []
    for start in range(0, max(len(ids) - 1, 1), size):
        window = np.asarray(ids[start : start + size + 1], np.int32)
        padded_W = np.pad(window, (0, size + 1 - len(window)))
        scores = jax.device_get(_window_scores(config, params, padded_W, n_tokens))
        parts.append([x[: len(window) - 1] for x in scores])
    return Scores(*(np.concatenate(xs) for xs in zip(*parts, strict=True)))


@partial(jax.jit, static_argnames="config")
def _token_losses(config: GPTConfig, params: Any, windows_NW: Array) -> Array:
    return token_losses(GPT(config), params, windows_NW)


def text_losses(config: GPTConfig, params: Any, ids: np.ndarray) -> np.ndarray:
    """-ln p of every token of a text but the first, in nats, shape (tokens - 1,).

    The text is evaluated as in training: in windows of T tokens, with `matmul_dtype`.

    Args:
      ids: at least two.
    """
    size = config.block_size
    count = -(-(len(ids) - 1) // size)
    padded = np.pad(ids, (0, count * size + 1 - len(ids)))
    windows_NW = evaluation_windows(padded, size)
    batches = []
    for first in range(0, count, WINDOWS_AT_ONCE):
        batch_NW = windows_NW[first : first + WINDOWS_AT_ONCE]
        filled = np.resize(batch_NW, (WINDOWS_AT_ONCE, size + 1))  # One shape to compile.
        losses_NT = np.asarray(_token_losses(config, params, filled.astype(np.int32)))
        batches.append(losses_NT[: len(batch_NW)])
    return np.concatenate(batches).reshape(-1)[: len(ids) - 1]


@partial(jax.jit, static_argnames=("config", "n_tokens"))
def _probabilities(
    config: GPTConfig, params: Any, window_T: Array, length: int, n_tokens: int
) -> Array:
    config = dataclasses.replace(config, matmul_dtype="float32")  # As in sampling.
    logits_1TV = cast(Array, GPT(config).apply({"params": params}, window_T[None]))
    return jax.nn.softmax(logits_1TV[0, length - 1, :n_tokens])


def next_probabilities(
    config: GPTConfig, params: Any, ids: np.ndarray, n_tokens: int
) -> np.ndarray:
    """The probability of every id after a text, shape (n_tokens,).

    Args:
      ids: of the text, at least one; the last block_size are read.
      n_tokens: only ids below it can follow: those the tokenizer knows.
    """
    ids = ids[-config.block_size :]
    window_T = np.pad(ids, (0, config.block_size - len(ids)))
    return np.asarray(_probabilities(config, params, window_T, len(ids), n_tokens))


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
      ids: 1 to block_size.

    Returns: float32, shape (layers, heads, T, T) for T ids. Row t says how much token t attends to
      each; it sums to 1, and is 0 after token t.
    """
    # Padded to a power of two: texts of many lengths share few compiled programs.
    width = min(1 << (len(ids) - 1).bit_length(), config.block_size)
    tokens_T = np.pad(ids, (0, width - len(ids))).astype(np.int32)
    return np.asarray(_maps(config, params, tokens_T))[:, :, : len(ids), : len(ids)]
