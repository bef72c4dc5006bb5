"""Logits -> token -> text, with a KV cache, in one loop on the device.

Owns how a token is drawn and how the window moves. It does not touch files or runs. Read sampler.py
first (one token), then decode.py (the loop).
"""

from gpt_jax.sampling.decode import generate, stream
from gpt_jax.sampling.prompt import encode_prompt, known_prompt
from gpt_jax.sampling.sampler import sample_token

__all__ = [
    "decode",
    "encode_prompt",
    "generate",
    "known_prompt",
    "sample_token",
    "sampler",
    "stream",
]
