"""Log-probabilities of tokens, and of the likeliest ones in their place.

They are the model's own: at temperature 1, without top-k and top-p.

Shapes (the suffix of a name): B tokens, V vocabulary, S likeliest tokens, T block_size, W = T + 1.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gpt_jax.config import GPTConfig
from gpt_jax.model import GPT

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
    log-probabilities are those of `TrainedModel.token_losses`.
    """
    size, parts = config.block_size, []
    for start in range(0, max(len(ids) - 1, 1), size):
        window = np.asarray(ids[start : start + size + 1], np.int32)
        padded_W = np.pad(window, (0, size + 1 - len(window)))
        scores = jax.device_get(_window_scores(config, params, padded_W, n_tokens))
        parts.append([x[: len(window) - 1] for x in scores])
    return Scores(*(np.concatenate(xs) for xs in zip(*parts, strict=True)))
