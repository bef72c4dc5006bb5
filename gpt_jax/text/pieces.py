"""Splits long texts into pieces that can be encoded one by one, with the ids of the whole.

GPT-2's rule splits a text into added tokens, such as `<|endoftext|>`, and words: letters, digits,
or other visible characters in a row, perhaps after one space. A piece may end only where, in the
whole text, a word or an added token certainly begins.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain

SPACES = " \t\r\n\u3000"
# As many whole words as fit, if spaces are between them: the usual case.
WHOLE_WORDS = re.compile(r".*\S(?=[ \t\r\n])", re.DOTALL)
# The last character of a word, perhaps: before a space, or a letter or digit before another sign.
LAST = rf"\S(?=[{SPACES}])|[^\W_](?=[^\w\s])"
# The library tokenizers may know another version of Unicode than Python. What is a letter in both
# of these versions, the oldest and the newest here, is one in all.
UNICODE = unicodedata.ucd_3_2_0, unicodedata


def of_characters(blocks: Iterable[str], size: int) -> Iterator[str]:
    """The text of `blocks` in pieces of `size` characters, for tokens that are no words."""
    held = ""
    for block in blocks:
        held += block
        whole = len(held) - len(held) % size
        yield from (held[start : start + size] for start in range(0, whole, size))
        held = held[whole:]
    if held:
        yield held


def cut(texts: Iterable[str], size: int) -> Iterator[str]:
    """The texts, each cut into pieces of at most `size` characters."""
    for text in texts:
        yield from (text[start : start + size] for start in range(0, len(text), size))


def of_words(blocks: Iterable[str], size: int, added: Iterable[str] = ()) -> Iterator[str]:
    """The text of `blocks` in pieces of whole words, of at most `size` characters if possible.

    A piece is longer only if no word certainly begins in so many characters. Where it ends depends
    only on the text from its start on, not on the blocks.

    Args:
      added: the tokens that are found in a text before its words. They contain no spaces.
    """
    added = tuple(filter(None, added))
    last = re.compile("|".join([LAST, *(f".(?={re.escape(token)})" for token in added)]), re.DOTALL)
    ahead = max(map(len, added), default=1)  # How far a decision looks ahead.
    held, wanted = "", size + ahead
    for block in chain(blocks, [None]):
        held, start = held + (block or ""), 0
        if block is None:  # The end of the text.
            ahead, wanted = 0, size
        while len(held) - start > wanted:
            end = _end(held, start, size, len(held) - ahead, added, last)
            if not end and block is not None:
                wanted = 2 * (len(held) - start)  # Looking again at every block would be slow.
                break
            yield held[start : (end := end or len(held))]
            start, wanted = end, size + ahead
        held = held[start:]
    if held:
        yield held


def _end(
    text: str, start: int, size: int, limit: int, added: tuple[str, ...], last: re.Pattern[str]
) -> int:
    """The last end of a word at most `size` after `start`, else the first up to `limit`, else 0."""
    if whole_words := WHOLE_WORDS.match(text, start, start + size):
        return whole_words.end()
    end = 0
    for place in (match.end() for match in last.finditer(text, start)):
        if place > limit or (end and place > start + size):
            break
        if _is_certain(text, start, place, added):
            end = place
            if place > start + size:
                break
    return end


def _is_certain(text: str, start: int, place: int, added: tuple[str, ...]) -> bool:
    """Whether a word or an added token begins at `place`, whatever surrounds the text."""
    for token in added:
        if text.find(token, max(start, place - len(token) + 1), place + len(token) - 1) >= 0:
            return False  # The place is inside it.
    before, after = text[place - 1], text[place]
    return (
        after in SPACES
        or text.startswith(added, place)
        or all(u.category(before)[0] in "LN" and u.category(after)[0] in "PS" for u in UNICODE)
    )
