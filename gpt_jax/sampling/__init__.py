"""Logits -> token -> text, with a KV cache, in one loop on the device.

Owns how a token is drawn and how the window moves. It does not touch files or runs. Read sampler.py
first (one token), then decode.py (the loop). slots.py draws texts that begin and end at different
times.
"""

from gpt_jax.sampling.decode import generate, stream
from gpt_jax.sampling.prompt import encode_prompt, known_prompt
from gpt_jax.sampling.sampler import sample_token
from gpt_jax.sampling.scores import Scores, text_scores
from gpt_jax.sampling.slots import PIECE, Slot, Slots

__all__ = [
    "PIECE",
    "Scores",
    "Slot",
    "Slots",
    "encode_prompt",
    "generate",
    "known_prompt",
    "sample_token",
    "stream",
    "text_scores",
]
