"""Conversations -> the rows of a batch: ids, and which of them the model learns.

A row is one conversation, padded at its end. Its mask is 1 at every target that belongs to an
answer, the end included: the model learns what it should say and when it should stop. Padding is
masked; what the padding is does not matter, because attention never looks ahead.

Shapes: N rows, W = T + 1 tokens, at most those of a window.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gpt_jax.text import Tokenizer
from gpt_jax.tuning.template import ASSISTANT, Template, Turn, joined


@dataclasses.dataclass(frozen=True)
class Row:
    """One conversation.

    Attributes:
      ids: of the whole conversation.
      learned: for each id, whether the model learns it.
      prompt_size: how many ids come before the last answer.
    """

    ids: np.ndarray
    learned: np.ndarray
    prompt_size: int

    @property
    def prompt(self) -> np.ndarray:
        """The ids before the last answer, at least one."""
        return self.ids[: max(self.prompt_size, 1)]

    def learned_from(self, start: int) -> "Row":
        """The same row, of which nothing before id number `start` is learned."""
        after = np.arange(len(self.ids)) >= start
        return dataclasses.replace(self, learned=self.learned & after)


class Dropped(Exception):
    """Why a conversation cannot be a row."""


def encode(
    template: Template, tokenizer: Tokenizer, turns: Sequence[Turn], longest: int, mask: bool = True
) -> Row:
    """A conversation as a row.

    Args:
      longest: most ids, W.
      mask: whether only answers are learned; else prompts are, too.

    Raises:
      Dropped: with the reason: too long, nothing to learn, or an answer that holds its own end.
      UserError: for a character that is not in the vocabulary.
    """
    for turn in turns:
        if turn.role == ASSISTANT and template.end in turn.content + template.end[:-1]:
            raise Dropped("an answer holds the text that ends it")
    pieces = [(tokenizer.encode(text), is_answer) for text, is_answer in template.pieces(turns)]
    ids = joined([piece for piece, _ in pieces])
    answered = joined([np.full(len(piece), is_answer) for piece, is_answer in pieces]) > 0
    if len(ids) > longest:
        raise Dropped(f"longer than the {longest} tokens of a window")
    if not answered[1:].any():
        raise Dropped("nothing to learn")
    begins = np.flatnonzero(np.diff(answered.astype(int), prepend=0) == 1)
    return Row(ids, answered | (not mask), int(begins[-1]))


def padded(rows: Sequence[Row], window: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids, int32 (N, W), and the mask of the targets, float32 (N, W - 1).

    `window`: the tokens of a window. T is the least quarter of a window that has room for all rows,
    so the step is compiled at most four times. The play's rows need three quarters.
    """
    quarters = math.ceil(4 * (max(len(row.ids) for row in rows) - 1) / (window - 1))
    width = math.ceil(quarters * (window - 1) / 4) + 1
    tokens_NW = np.zeros((len(rows), width), np.int32)
    mask_NT = np.zeros((len(rows), width - 1), np.float32)
    for tokens_W, mask_T, row in zip(tokens_NW, mask_NT, rows, strict=True):
        tokens_W[: len(row.ids)] = row.ids
        mask_T[: len(row.ids) - 1] = row.learned[1:]
    return tokens_NW, mask_NT
