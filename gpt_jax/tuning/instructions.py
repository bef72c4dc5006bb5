"""Instructions: the model learns answers (SFT). What a batch is, and how it is evaluated."""

from collections.abc import Sequence
from typing import Any

from gpt_jax.training.objective import Parts, Poll
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import jit_eval_step, mean_loss
from gpt_jax.tuning.examples import read_conversations
from gpt_jax.tuning.losses import instruction_losses
from gpt_jax.tuning.rows import Row, padded
from gpt_jax.tuning.source import Source, Tuning, in_epochs, split_rows

VALIDATION_PROMPTS = 256  # Held-out prompts of a task.


class Instructions(Tuning):
    """The objective."""

    losses = staticmethod(instruction_losses)

    def __init__(self, parts: Parts, source: Source) -> None:
        """Reads and checks all data. Raises UserError if it cannot be used."""
        self._rows, val_rows = _read(source)
        super().__init__(parts, source, val_rows[0].prompt)
        self._val_rows = self._arrays(val_rows)
        self._eval_step = jit_eval_step(parts.config, parts.abstract, parts.layout, self.losses)

    def batch(self, step: int, state: TrainState) -> Any:
        """The rows of a step: of a task, always new ones; of data, one epoch after another."""
        c, source = self._parts.config.train, self._source
        if source.task is None:
            rows = [self._rows[i] for i in in_epochs(len(self._rows), c.batch_size, c.seed, step)]
        else:
            numbers = range(step * c.batch_size, (step + 1) * c.batch_size)
            rows = [source.task_row(source.prompt(i)) for i in numbers]
        return self._parts.layout.place(self._arrays(rows))

    def evaluate(self, params: Any, poll: Poll) -> dict[str, float]:
        """The mean loss of all learned targets of the validation rows, in nats per token."""
        loss = mean_loss(self._eval_step, params, self._val_rows, self._parts.layout, poll)
        return {"loss": loss}

    def _arrays(self, rows: Sequence[Row]) -> Any:
        tokens_NW, mask_NT = padded(rows, self._source.width)
        # The mean over rows of weighted sums is then the mean over all learned targets.
        return {"tokens": tokens_NW, "weights": mask_NT * (len(rows) / mask_NT.sum())}


def _read(source: Source) -> tuple[list[Row], list[Row]]:
    """The training rows and the validation rows; a task makes its training rows step by step."""
    if source.task is not None:
        prompts = [source.prompt(i, held_out=True) for i in range(VALIDATION_PROMPTS)]
        return [], [source.task_row(prompt) for prompt in prompts]
    rows = source.usable(read_conversations(source.name), source.row)
    return split_rows(rows, source.config.data.val_fraction, source.name)
