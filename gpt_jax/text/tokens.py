"""The settings of a corpus -> the token ids on which a new run trains. No jax."""

import sys

import numpy as np

from gpt_jax.config import DataConfig
from gpt_jax.text import shards
from gpt_jax.text.corpus import NO_CORPUS, Corpus, DownloadError, load_corpus
from gpt_jax.text.shards import Tokens
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.text.tokenizer_file import make_tokenizer


def new_tokens(data: DataConfig) -> Tokens:
    """A new run's corpus as token ids. Raises UserError if it or its tokenizer cannot be read."""
    if shards.is_prepared(data.corpus):
        return shards.load(data)
    corpus = _load_or_play(data.corpus)
    return encoded(corpus, _new_tokenizer(data, corpus.text))


def no_tokens(tokenizer: Tokenizer) -> Tokens:
    """What a run without a corpus has: a tokenizer, and no ids."""
    return Tokens(NO_CORPUS, "", tokenizer, np.zeros(0, np.uint8))


def encoded(corpus: Corpus, tokenizer: Tokenizer) -> Tokens:
    """A text as token ids. Raises UserError for a character that the tokenizer does not know."""
    return Tokens(corpus.source, corpus.sha256, tokenizer, tokenizer.encode(corpus.text))


def vocabulary_size(data: DataConfig) -> int:
    """A new tokenizer's vocabulary size. Reads the corpus if it must. Raises as `new_tokens`."""
    if shards.is_prepared(data.corpus):
        return shards.load(data).tokenizer.vocab_size
    learned = data.tokenizer in ("char", "bpe")
    text = _load_or_play(data.corpus).text if learned else ""
    return _new_tokenizer(data, text).vocab_size


def _load_or_play(source: str) -> Corpus:
    """The corpus, or the built-in play if the download fails."""
    try:
        return load_corpus(source)
    except DownloadError as error:
        print(f"note: {error}; this run uses the built-in play", file=sys.stderr)
        return load_corpus("builtin")


def _new_tokenizer(data: DataConfig, text: str) -> Tokenizer:
    """The tokenizer for the settings.

    BPE merges are learned from the training text only. Here the text is split by characters, later
    by tokens, so the two splits differ by some thousandths of the text.
    """
    if data.tokenizer == "bpe":
        text = text[: int(len(text) * (1 - data.val_fraction))]
    return make_tokenizer(data.tokenizer, [text], data.bpe_vocab_size)
