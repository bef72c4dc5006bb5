"""What a run optimises: what a batch is, its loss, and how it is evaluated.

The loop, the optimizer, checkpoints, resume, meshes and the log know nothing of it. This module
has the objective of pre-training; those of tuning are in gpt_jax/tuning.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from gpt_jax.config import Config
from gpt_jax.devices import BatchLayout
from gpt_jax.model import GPT
from gpt_jax.sampling import encode_prompt, known_prompt
from gpt_jax.text import Tokenizer, windows
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import EvalStep, Metrics, RowLosses, mean_loss, token_losses

Poll = Callable[[], None]  # Called between batches; may raise.


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an objective is made from.

    Attributes:
      config: resolved: no choice is left to the program.
      train_tokens: ids of the training text, the beginning of the corpus; empty without a corpus.
      val_tokens: ids of the validation text, its end.
      layout: how a batch lies on the devices.
      abstract: shapes, dtypes and shardings of the state.
      eval_step: losses of windows, jitted.
      reference: gives the parameters with which a tuned run began, sharded.
      template: how a prompt becomes text, in the record of a run that resumes; None in a new run.
      origin_template: the same in the run that it began from; None if that was not tuned.
    """

    config: Config
    tokenizer: Tokenizer
    train_tokens: np.ndarray
    val_tokens: np.ndarray
    layout: BatchLayout
    abstract: TrainState
    eval_step: EvalStep
    reference: Callable[[], Any]
    template: dict[str, Any] | None
    origin_template: dict[str, Any] | None

    def corpus_loss(self, params: Any, poll: Poll = lambda: None) -> float:
        """Mean loss over all disjoint windows of the validation text, in nats per token.

        `poll` is called before every batch and may raise.
        """
        windows_NW = windows.evaluation_windows(self.val_tokens, self.config.model.block_size)
        return mean_loss(self.eval_step, params, windows_NW, self.layout, poll)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the samples of a run continue.

    Attributes:
      ids: at least one.
      stop: the sample ends before this text; empty = it has a fixed length.
    """

    text: str
    ids: np.ndarray
    stop: str = ""


class Objective(abc.ABC):
    """What a run optimises.

    Attributes:
      losses: the losses of the rows of a microbatch; see step.py.
      needs_reference: whether the run must keep the parameters with which it began.
      template: how a prompt becomes text, as plain data for the record; None in pre-training.
      data_sha256: hash of the files it learns from, beside the corpus; empty = there are none.
      shown: metrics beside the bar; the first is also in the table.
      panels: keys of the log for the parts of a tuned run's picture: first what is optimised.
    """

    losses: RowLosses
    needs_reference = False
    template: dict[str, Any] | None = None
    data_sha256 = ""
    shown: tuple[str, ...] = ("loss",)
    panels: tuple[tuple[str, ...], ...] = ()

    @abc.abstractmethod
    def batch(self, step: int, state: TrainState) -> Any:
        """What `losses` takes, with leading axes (A, M), on the devices.

        A function of the arguments, the seed and the data.
        """

    @abc.abstractmethod
    def evaluate(self, params: Any, poll: Poll) -> dict[str, float]:
        """`loss`, whose smallest value is the best, and other figures."""

    @abc.abstractmethod
    def prompt(self) -> Prompt:
        """What the samples of the run continue."""

    @abc.abstractmethod
    def describe(self, step: int) -> str:
        """What the batch after `step` updates consists of, for an error message."""

    def may_stop(self, step: int) -> bool:
        """Whether the run can resume after `step` updates."""
        return True


class Maker(Protocol):
    """Makes an objective."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a new run without a corpus; None if it has one."""

    def make(self, parts: Parts) -> Objective:
        """The objective. Raises UserError, before anything is written, if data cannot be used."""


class Language(Objective):
    """Pre-training: the next token of the corpus, in windows at random places."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def losses(
        self, model: GPT, params: Any, windows_MW: Any, keys_M: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """The mean of `token_losses` over each window, at the temperature of training, (M,)."""
        temperature = self._parts.config.train.temperature
        return token_losses(model, params, windows_MW, keys_M, temperature).mean(-1), {}

    def batch(self, step: int, state: TrainState | None = None) -> jax.Array:
        """The windows of a step, shape (A, M, W)."""
        tokens = self._parts.train_tokens
        windows_NW = windows.all_windows(tokens, self._parts.config.model.block_size)
        batch_AMW = self._parts.layout.place(windows_NW, self._offsets(step))
        windows.release(tokens)
        return batch_AMW

    def evaluate(self, params: Any, poll: Poll = lambda: None) -> dict[str, float]:
        """The validation loss, in nats per token."""
        return {"loss": self._parts.corpus_loss(params, poll)}

    def prompt(self) -> Prompt:
        """`sample.prompt`, or an empty one if the tokenizer lacks one of its characters."""
        text = known_prompt(self._parts.tokenizer, self._parts.config.sample.prompt)
        return Prompt(text, encode_prompt(self._parts.tokenizer, text))

    def describe(self, step: int) -> str:
        """Where the windows of a step begin."""
        offsets = self._offsets(step)
        shown = ", ".join(map(str, offsets[:8])) + ", ..." * (len(offsets) > 8)
        return f"the windows of the last step began at tokens {shown}"

    def _offsets(self, step: int) -> np.ndarray:
        """Where the windows of the batch after `step` updates begin, shape (B,)."""
        model, c = self._parts.config.model, self._parts.config.train
        n_tokens = len(self._parts.train_tokens)
        return windows.batch_offsets(n_tokens, model.block_size, c.batch_size, c.seed, step)


class LanguageMaker:
    """Makes the objective of pre-training."""

    tokenizer = None

    def make(self, parts: Parts) -> Objective:
        """As `Maker.make`."""
        return Language(parts)


LANGUAGE = LanguageMaker()
