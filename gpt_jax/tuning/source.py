"""Where the rows of tuning come from: a task or JSON lines, a template and a tokenizer."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from gpt_jax.config import Config, TuneConfig
from gpt_jax.errors import UserError, note
from gpt_jax.text import Tokenizer
from gpt_jax.training.objective import Objective, Parts, Prompt
from gpt_jax.tuning import tasks
from gpt_jax.tuning.examples import digest
from gpt_jax.tuning.rows import Dropped, Row, encode
from gpt_jax.tuning.template import ASSISTANT, USER, Template, Turn

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Source:
    """What rows are made with. `task` is None where rows come from JSON lines."""

    config: Config
    tokenizer: Tokenizer
    template: Template
    task: tasks.Task | None

    @property
    def name(self) -> str:
        """The task or the data."""
        return self.config.tune.task or self.config.tune.data

    @property
    def width(self) -> int:
        """The tokens of a window, W."""
        return self.config.model.block_size + 1

    def row(self, turns: Sequence[Turn]) -> Row:
        """A conversation as a row. Raises Dropped as `encode`."""
        mask = self.config.tune.mask_prompt
        return encode(self.template, self.tokenizer, turns, self.width, mask)

    def prompt(self, index: int, held_out: bool = False) -> tasks.Prompt:
        """A prompt of the task. Held-out prompts are the same for every run."""
        assert self.task is not None
        seed = 0 if held_out else self.config.train.seed
        return self.task.prompt(seed, index, held_out)

    def task_row(self, prompt: tasks.Prompt) -> Row:
        """A prompt of the task with its right answer. Raises UserError if it does not fit."""
        try:
            return self.row((Turn(USER, prompt.text), Turn(ASSISTANT, prompt.answer)))
        except Dropped as reason:
            raise UserError(
                f"a row of the task {self.name} is {reason}: give a larger model.block_size"
            ) from None

    def prompt_ids(self, prompt: str) -> np.ndarray:
        """A prompt in the template, as ids."""
        return self.template.prompt_ids(self.tokenizer, (Turn(USER, prompt),))

    def usable(self, items: Iterable[Item], make: Callable[[Item], Made]) -> list[Made]:
        """What `make` makes of the items. Those for which it raises Dropped are counted and told.

        Raises UserError, with the number of the row, for one that cannot be written in ids.
        """
        made, dropped = [], Counter[str]()
        for number, item in enumerate(items, 1):
            try:
                made.append(make(item))
            except Dropped as reason:
                dropped[str(reason)] += 1
            except UserError as error:
                raise UserError(f"row {number} of {self.name}: {error}") from error
        for why, count in dropped.items():
            note(f"{count} row(s) of {self.name} left out: {why}")
        return made


class Tuning(Objective):
    """What the objectives of tuning share."""

    panels: tuple[tuple[str, ...], ...] = (("train/loss", "val/loss"), ("val/corpus_loss",))

    def __init__(self, parts: Parts, source: Source, example: np.ndarray) -> None:
        """`example`: ids of the prompt that is answered at the end of the run."""
        self.template = source.template.to_dict()
        self.data_sha256 = "" if source.task else digest(source.name)
        self._parts, self._source, self._example = parts, source, example

    def prompt(self) -> Prompt:
        """A prompt that the run did not learn from."""
        source = self._source
        return Prompt(source.tokenizer.decode(self._example), self._example, source.template.end)

    def describe(self, step: int) -> str:
        """Which batch a step learned from."""
        return f"the last batch was number {step} of {self._source.name}"


def make_task(c: TuneConfig) -> tasks.Task | None:
    """The task, if one is named. Raises UserError for both a task and data, or for neither."""
    if bool(c.task) == bool(c.data):
        raise UserError(
            f"tune.objective = {c.objective!r} needs either a task or data: give "
            f"--config.tune.task={'|'.join(tasks.TASKS)} or --config.tune.data=FILE"
        )
    return tasks.TASKS[c.task]() if c.task else None


def in_epochs(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which of `count` rows make the batch of a step: one shuffled epoch after another, (B,)."""
    numbers = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng([seed, epoch, 1]).permutation(count)
        for epoch in {number // count for number in numbers}
    }
    return np.array([orders[number // count][number % count] for number in numbers])


def split_rows(rows: list[Item], val_fraction: float, source: str) -> tuple[list[Item], list[Item]]:
    """Training rows and validation rows: the last of them, at least one of each.

    Raises UserError for fewer than two rows.
    """
    if len(rows) < 2:
        raise UserError(
            f"{source} has {len(rows)} usable row(s): tuning needs two, one to validate"
        )
    cut = min(max(1, int(len(rows) * (1 - val_fraction))), len(rows) - 1)
    return rows[:cut], rows[cut:]
