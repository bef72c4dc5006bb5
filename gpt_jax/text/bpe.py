"""Byte-pair encoding by the library tokenizers: GPT-2's from its files, or one trained on a text.

All tokenizers here work like GPT-2's: its rule splits a text into words, a word is its UTF-8 bytes,
and bytes are merged in the order of a list. So every text has ids, and they give it back exactly.
The library can also normalize a text or add spaces, which would break this; such a tokenizer is
refused. `<|endoftext|>` in a text is one token, as with GPT-2's own tokenizer.

This is the only module that uses the library. It imports it only when needed: it is in the extra
`gpt2`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_jax.errors import UserError
from gpt_jax.files import open_file, read_json
from gpt_jax.text import extra_tokens, pieces

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
# Characters of a text without spaces that count as one word when merges are learned. The library's
# time grows with their square: 150,000 characters of Chinese took 41 s as words of 2**16, now 0.4.
LONGEST_LEARNED = 2**12
PIECE = 2**16  # Characters that one core encodes at a time.
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
MAX_GAPS = 2**16  # Ids that a vocabulary may leave out.
WANTED = "a tokenizer.json of byte-level BPE, a folder with one, or with vocab.json and merges.txt"


def read(path: Path) -> dict[str, Any]:
    """The library's JSON for a tokenizer.json, or a folder with it or vocab.json + merges.txt.

    Raises:
      UserError: if it cannot be read, does not work like GPT-2's, or the library is missing.
    """
    library = _library()
    file = path / "tokenizer.json" if path.is_dir() else path
    pair = path / "vocab.json", path / "merges.txt"
    try:
        if file.exists() or not all(part.exists() for part in pair):
            content = read_json(file)
        else:
            for part in pair:
                open_file(part).close()  # The library would wait for a pipe.
            content = _from_pair(library.models.BPE.from_file(*map(str, pair)))
        return _content(parse(_with_extra(content, path) if path.is_dir() else content))
    except UserError:
        raise
    except Exception as error:  # The library has no error class of its own.
        reason = str(error)[:300]  # It can quote the whole file.
        raise UserError(
            f"no tokenizer can be read from {path} ({reason}): give {WANTED}"
        ) from error


def _from_pair(model: "tokenizers.models.BPE") -> dict[str, Any]:
    """The JSON for a vocabulary with merges, whose files do not say which tokens are special."""
    new = _untrained(model)
    _check_ids(new)
    if new.token_to_id(END_OF_TEXT) is not None:
        new.add_special_tokens([END_OF_TEXT])  # It keeps its id.
    return _content(new)


def _with_extra(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The JSON with the tokens that other files of its folder add.

    Raises ValueError as `extra_tokens.of_folder`, and for an id that is not the next.
    """
    library, parsed = _library(), parse(content)
    for i, token, options in extra_tokens.of_folder(folder):
        parsed.add_tokens([library.AddedToken(token, **options)])
        if (own := parsed.token_to_id(token)) != i:
            raise ValueError(f"the added token {token!r} has the id {own} there, but {i} in a list")
    return _content(parsed)


def train(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """The library's JSON for a tokenizer that merges the most frequent pairs of a text.

    It is a function of the text: ties are broken by the ids of the pair. The vocabulary stays
    smaller than `vocab_size` if no pair is left that occurs twice.

    Args:
      texts: parts of the text.
      vocab_size: the 256 bytes, <|endoftext|> (id 0) and the merges.
    """
    library = _library()
    new = _untrained(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The trainer does not know the special token yet and would learn merges for its letters.
    parts = pieces.of_words(texts, LONGEST_LEARNED, [END_OF_TEXT])
    words = (word for part in parts for word in part.split(END_OF_TEXT))
    new.train_from_iterator(pieces.cut(words, LONGEST_LEARNED), trainer)
    return _content(new)


def parse(content: dict[str, Any]) -> "tokenizers.Tokenizer":
    """The library's tokenizer for its JSON.

    Raises:
      UserError: if the library is missing.
      ValueError: if the JSON is not a tokenizer, or one that does not work like GPT-2's.
    """
    library, model = _library(), content.get("model")
    if isinstance(model, dict) and any(model.get(name) for name in AFFIXES):  # It could panic.
        raise ValueError("it is not like GPT-2's: its tokens have prefixes or suffixes")
    try:
        parsed = library.Tokenizer.from_str(json.dumps(content))
    except Exception as error:
        raise ValueError(str(error)) from error
    _check_ids(parsed)
    # A file may still hold these settings of its last user. They would change the ids.
    parsed.no_truncation()
    parsed.no_padding()
    if reason := _difference(_content(parsed)):
        raise ValueError(f"it is not like GPT-2's: {reason}")
    return parsed


def _check_ids(parsed: "tokenizers.Tokenizer") -> None:
    """Raises ValueError for an id far above the number of tokens, before anything is as large."""
    ids = parsed.get_vocab(with_added_tokens=True).values()
    if max(ids, default=0) > len(ids) + MAX_GAPS:
        raise ValueError(f"its highest id is {max(ids):,}, but it has only {len(ids):,} tokens")


def _difference(content: dict[str, Any]) -> str:
    """How a tokenizer differs from the way GPT-2's works; empty if it does not."""
    model, split = content["model"], content["pre_tokenizer"] or {}
    if model["type"] != "BPE" or split.get("type") != "ByteLevel" or not split["use_regex"]:
        return "it is not byte-level BPE with GPT-2's words"
    if content["normalizer"] or split["add_prefix_space"] or model["dropout"]:
        return "it changes the text (normalizer, add_prefix_space or dropout)"
    added = {token["content"]: token for token in content["added_tokens"]}
    if any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added.values()):
        return "an added token absorbs the spaces around it"
    if any(character.isspace() for token in added for character in token):
        return "an added token contains spaces"  # A piece of text might end in it.
    letters = set(_alphabet())
    if not letters <= set(model["vocab"]):
        return "it lacks some of the 256 bytes"
    if any(set(token) - letters for token in model["vocab"] if token not in added):
        return "its tokens are not made of bytes"
    return ""


def added_tokens(parsed: "tokenizers.Tokenizer") -> list[str]:
    """The tokens that are found in a text before it is split into words."""
    return [token.content for token in parsed.get_added_tokens_decoder().values()]


def token_bytes(parsed: "tokenizers.Tokenizer") -> list[bytes]:
    """The bytes of every id; empty for an id that the vocabulary leaves out."""
    vocab = parsed.get_vocab(with_added_tokens=True)
    added = set(added_tokens(parsed))
    letters = _alphabet()
    found = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        found[i] = token.encode() if token in added else bytes(letters[c] for c in token)
    return found


def _alphabet() -> dict[str, int]:
    """The byte that each character stands for.

    A byte that is visible in Latin-1 is its own character. The other bytes are the characters from
    U+0100 on, in order.
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), 256)} - {0xAD}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _untrained(model: "tokenizers.models.BPE") -> "tokenizers.Tokenizer":
    """A tokenizer that splits a text into words and joins them as GPT-2's does."""
    library = _library()
    new = library.Tokenizer(model)
    new.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    new.decoder = library.decoders.ByteLevel()
    return new


def _content(parsed: "tokenizers.Tokenizer") -> dict[str, Any]:
    return json.loads(parsed.to_str())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "byte-pair encoding needs the package tokenizers, which is not installed: "
            '.venv/bin/pip install -e ".[gpt2]", or use the tokenizer char or byte'
        ) from None
    return tokenizers
