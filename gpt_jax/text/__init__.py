"""Text -> token ids -> windows, and ids -> text.

Owns corpora (downloaded, yours, the built-in play), tokenizers, prepared corpora on disk, and the
windows of a batch. It uses NumPy, never JAX, and knows nothing of models or runs. The only network
access is one download in corpus.py. Read tokens.py first, then windows.py: the batch of a step is a
function of (seed, step).
"""

from gpt_jax.text.corpus import NO_CORPUS, Corpus, absolute_source, load_corpus
from gpt_jax.text.shards import Tokens
from gpt_jax.text.text_stream import TextStream
from gpt_jax.text.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from gpt_jax.text.tokenizer_file import (
    absolute_kind,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)
from gpt_jax.text.tokens import encoded, new_tokens, no_tokens, vocabulary_size

__all__ = [
    "NO_CORPUS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "TextStream",
    "Tokenizer",
    "Tokens",
    "absolute_kind",
    "absolute_source",
    "bpe",
    "corpus",
    "derivation",
    "encoded",
    "grammar",
    "load_corpus",
    "load_tokenizer",
    "make_tokenizer",
    "new_tokens",
    "no_tokens",
    "play",
    "preparation",
    "save_tokenizer",
    "shards",
    "vocabulary_size",
    "windows",
]
