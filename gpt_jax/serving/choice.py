"""One text of an answer while it is drawn: ids in, pieces of text out."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from gpt_jax.inspection import Scores
from gpt_jax.text import TextStream, Tokenizer

STOP, LENGTH = "stop", "length"  # Why a text ends: a string or its template ended it; max_tokens.


@dataclasses.dataclass(frozen=True)
class Token:
    """A token with its log-probability.

    Attributes:
      logprob: in nats; None for the first token of a text.
      best: the likeliest tokens in its place with theirs, likeliest first.
      offset: where it begins, in characters from the beginning of the text.
    """

    text: str
    logprob: float | None
    best: tuple[tuple[str, float], ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next part of text number `index`; the last part has a `finish_reason`.

    Attributes:
      tokens: filled if they were asked for.
      error: why the text ends here although it is not finished.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    error: str = ""


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces of each text joined into one, in the order in which the texts first appear."""
    found: dict[int, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.index, []).append(piece)
    return [
        Piece(
            index,
            "".join(piece.text for piece in parts),
            tuple(token for piece in parts for token in piece.tokens),
            parts[-1].finish_reason,
            parts[-1].error,
        )
        for index, parts in found.items()
    ]


class Tokens:
    """Describes tokens in their order, with their places in the text."""

    def __init__(self, tokenizer: Tokenizer, best: int, offset: int = 0) -> None:
        """`best`: likeliest tokens to give with each. `offset`: of the first token."""
        self._tokenizer, self._best = tokenizer, best
        self._decode = tokenizer.decoder()
        self.offset = offset  # Of the next token: characters so far that are complete.

    def unscored(self, id_: int) -> Token:
        """The next token, of which no probability is known: the first of a text."""
        token = Token(self._tokenizer.decode([id_]), None, (), self.offset)
        self.offset += len(self._decode([id_], False))
        return token

    def scored(self, ids: Sequence[int], scores: Scores) -> list[Token]:
        """The next tokens."""
        return [
            dataclasses.replace(
                self.unscored(id_), logprob=float(logprob), best=self._likeliest(*best)
            )
            for id_, logprob, *best in zip(ids, *scores, strict=True)
        ]

    def _likeliest(self, logprobs: np.ndarray, ids: np.ndarray) -> tuple[tuple[str, float], ...]:
        pairs = zip(ids[: self._best].tolist(), logprobs[: self._best].tolist(), strict=True)
        return tuple((self._tokenizer.decode([id_]), logprob) for id_, logprob in pairs)


class Choice:
    """One text of an answer. Its ids come from the engine, its pieces go to the client.

    Attributes:
      index: its number in the answer.
      most: tokens of the text, if nothing else ends it.
      drawn: tokens so far, those of the string that ended it among them.
      finish_reason: None while the text goes on.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        most: int,
        best: int | None,
        offset: int = 0,
    ) -> None:
        """Args:
        stops: strings that end the text; it ends before them.
        most: see the class.
        best: likeliest tokens to report with each token; None = no report.
        offset: characters of the answer before this text: those of a prompt that is repeated.
        """
        self.index, self.most, self._stops = index, most, stops
        self._text = TextStream(tokenizer, stops)
        self._tokens = None if best is None else Tokens(tokenizer, best, offset)
        self._held: list[Token] = []  # Tokens whose text is held back.
        self._sent = offset  # Characters.
        self.drawn, self.finish_reason = 0, LENGTH if most == 0 else None

    def add(self, ids: np.ndarray, scores: Scores) -> Piece:
        """The piece that new ids make certain. Ids after the end of the text are ignored."""
        # One id at a time shows which of them ended the text.
        steps = [ids[i : i + 1] for i in range(len(ids))] if self._stops else [ids]
        text, before = "", self.drawn
        for step in steps:
            if self.finish_reason is None:
                text += self._add(step[: self.most - self.drawn])
        self._sent += len(text)
        new = self.drawn - before
        tokens = self._certain(ids[:new].tolist(), Scores(*(x[:new] for x in scores)))
        return Piece(self.index, text, tokens, self.finish_reason)

    def _add(self, ids: np.ndarray) -> str:
        self.drawn += len(ids)
        text = self._text.add(ids, final=self.drawn == self.most)
        if self._text.stopped:
            self.finish_reason = STOP
        elif self.drawn == self.most:
            self.finish_reason = LENGTH
        return text

    def _certain(self, ids: list[int], scores: Scores) -> tuple[Token, ...]:
        """The tokens that begin in the text sent so far; at the full length, all."""
        if self._tokens is None:
            return ()
        self._held += self._tokens.scored(ids, scores)
        all_ = self.finish_reason == LENGTH
        certain = [token for token in self._held if all_ or token.offset < self._sent]
        self._held = self._held[len(certain) :]
        return tuple(certain)
