"""Ids -> text while they arrive: whole characters only, and nothing from a stop string on.

No jax.
"""

from gpt_jax.text.tokenizer import Ids, Tokenizer


class TextStream:
    """Decodes ids that arrive in pieces. The returned strings, joined, are the whole text.

    Attributes:
      stopped: whether the stop string has appeared. The text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str = "") -> None:
        """`stop`: the text ends before this string; empty = no stop string."""
        self._decode = tokenizer.decoder()
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, ids: Ids, final: bool = False) -> str:
        """The text that is certain after these ids; if `final`, all the rest."""
        if self.stopped:
            return ""
        text = self._held + self._decode(ids, final)
        if self._stop and (end := text.find(self._stop)) >= 0:
            self.stopped = True
            return text[:end]
        certain = len(text) - (0 if final else self._possible_stop(text))
        self._held = text[certain:]
        return text[:certain]

    def _possible_stop(self, text: str) -> int:
        """How many characters at the end of `text` may be the start of the stop string."""
        longest = min(len(self._stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if self._stop.startswith(text[-n:])), 0)
