"""Ids -> text while they arrive: whole characters only, and nothing from a stop string on.

No jax.
"""

from collections.abc import Sequence

from gpt_jax.text.tokenizer import Ids, Tokenizer


class TextStream:
    """Decodes ids that arrive in pieces. The returned strings, joined, are the whole text.

    Attributes:
      stopped: whether a stop string has appeared. The text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = "") -> None:
        """`stop`: the text ends before this string, or the first of several; empty = none."""
        self._decode = tokenizer.decoder()
        self._stops = [stop] if isinstance(stop, str) else stop
        self._held = ""
        self.stopped = False

    def add(self, ids: Ids, final: bool = False) -> str:
        """The text that is certain after these ids; if `final`, all the rest."""
        if self.stopped:
            return ""
        text = self._held + self._decode(ids, final)
        if ends := [end for stop in self._stops if stop and (end := text.find(stop)) >= 0]:
            self.stopped = True
            return text[: min(ends)]
        certain = len(text) - (0 if final else self._possible_stop(text))
        self._held = text[certain:]
        return text[:certain]

    def _possible_stop(self, text: str) -> int:
        """How many characters at the end of `text` may be the start of a stop string."""
        longest = min(max((len(stop) for stop in self._stops), default=0) - 1, len(text))
        ends = (text[-n:] for n in range(longest, 0, -1))
        return next((len(e) for e in ends if any(s.startswith(e) for s in self._stops)), 0)
