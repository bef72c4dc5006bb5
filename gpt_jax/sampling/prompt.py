"""Prompt -> ids."""

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.text import Tokenizer


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
