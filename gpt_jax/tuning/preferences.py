"""Preferences: chosen answers become likelier than rejected ones (DPO). What a batch is."""

from typing import Any

import jax
import numpy as np

from gpt_jax.training.objective import Parts, Poll
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import jit_eval_step, mean_loss
from gpt_jax.tuning.examples import Preference, read_preferences
from gpt_jax.tuning.losses import preference_losses
from gpt_jax.tuning.rows import Row, padded
from gpt_jax.tuning.scoring import make_score
from gpt_jax.tuning.source import Source, Tuning, in_epochs, split_rows

Pair = tuple[Row, Row]  # Chosen, rejected.


class Preferences(Tuning):
    """The objective."""

    needs_reference = True
    shown = ("loss", "rewards/margins", "rewards/accuracies")
    panels = (
        ("train/loss", "val/loss"),
        ("rewards/chosen", "rewards/rejected"),
        ("val/corpus_loss",),
    )

    def __init__(self, parts: Parts, source: Source) -> None:
        """Reads and checks all data. Raises UserError if it cannot be used."""
        c = parts.config.tune
        self.losses = lambda model, params, rows, keys: preference_losses(c, model, params, rows)
        pairs = source.usable(read_preferences(source.name), lambda one: _pair(source, one))
        self._pairs, val = split_rows(pairs, parts.config.data.val_fraction, source.name)
        super().__init__(parts, source, val[0][0].prompt)
        self._val_rows = _arrays(val, source.width)
        self._score = make_score(parts)
        self._eval_step = jit_eval_step(parts.config, parts.abstract, parts.layout, self.losses)

    def batch(self, step: int, state: TrainState) -> Any:
        """The pairs of a step, one epoch after another, with the reference's log p."""
        c = self._parts.config.train
        chosen = in_epochs(len(self._pairs), c.batch_size, c.seed, step)
        rows = _arrays([self._pairs[i] for i in chosen], self._source.width)
        return self._with_reference(self._parts.layout.place(rows))

    def evaluate(self, params: Any, poll: Poll) -> dict[str, float]:
        """The mean loss over all validation pairs, in nats."""

        def eval_step(params: Any, rows: Any) -> Any:
            return self._eval_step(params, self._with_reference(rows))

        return {"loss": mean_loss(eval_step, params, self._val_rows, self._parts.layout, poll)}

    def _with_reference(self, rows: Any) -> Any:
        reference = jax.block_until_ready(self._score(self._parts.reference(), rows["tokens"]))
        return rows | {"reference": reference}


def _pair(source: Source, one: Preference) -> Pair:
    """Both answers, of which alone is learned. Raises Dropped if one of them cannot be a row."""
    start = len(source.template.prompt_ids(source.tokenizer, one.prompt))
    chosen, rejected = (source.row(one.prompt + turns) for turns in (one.chosen, one.rejected))
    return chosen.learned_from(start), rejected.learned_from(start)


def _arrays(pairs: list[Pair], width: int) -> dict[str, np.ndarray]:
    """Pairs as arrays: tokens (N, 2, W), mask (N, 2, T)."""
    tokens_NW, mask_NT = padded([row for pair in pairs for row in pair], width)
    return {
        "tokens": tokens_NW.reshape(len(pairs), 2, -1),
        "mask": mask_NT.reshape(len(pairs), 2, -1),
    }
