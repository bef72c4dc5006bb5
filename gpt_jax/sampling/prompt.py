"""Prompt -> ids."""

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.text import Tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids of a prompt, at least one: an empty prompt becomes a line break, if known, or id 0.

    Raises:
      UserError: if a character is not in the vocabulary.
    """
    if prompt:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.encode("\n")
    except UserError:
        return np.zeros(1, np.int32)


def known_prompt(tokenizer: Tokenizer, prompt: str) -> str:
    """A default prompt: `prompt`, or an empty one if the tokenizer lacks one of its characters."""
    try:
        encode_prompt(tokenizer, prompt)
    except UserError:
        return ""
    return prompt
