"""Evaluates a checkpoint of a finished or running run on the validation text.

This serves scripts/evaluate.py. While a run trains, loop.py calls Run.evaluate (run.py) instead.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from gpt_jax.config import Config, MeshConfig
from gpt_jax.devices import hardware, pinned_settings, start_devices
from gpt_jax.errors import UserError
from gpt_jax.runs import existing_record
from gpt_jax.runs.recovery import restore_for_reading
from gpt_jax.text import NO_CORPUS, absolute_source
from gpt_jax.text.windows import evaluation_windows
from gpt_jax.training.distillation import loss_of_mean, open_teacher
from gpt_jax.training.run import Run, prepare


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Losses of one checkpoint, over all disjoint windows of the validation text."""

    step: int  # Finished updates.
    corpus: str  # Where the text was found.
    tokens: int  # The number of predicted tokens.
    loss: float  # Validation loss, the mean in nats per token.
    bits_per_byte: float
    perplexity: float  # exp(loss).
    # The loss from the tutorial's own windows: comparable only with the tutorial's. None if tokens
    # are not characters.
    tutorial_estimate: float | None
    # The loss of the built-in play's own grammar, in nats per character; no model can expect less.
    # None for another corpus.
    source_loss: float | None
    mean_loss: float | None  # Of the mean of this and other models; None without others.


@pinned_settings()
def evaluate(
    workdir: Path, which: str, corpus: str = "", others: Sequence[Path] = ()
) -> Evaluation:
    """Evaluates a checkpoint of the run in `workdir`, on all devices of this machine.

    Args:
      which: "latest", "best" or the number of a step.
      corpus: where the run's text lies now; empty = where the run found it.
      others: runs whose checkpoints `which` also count in the mean of the models.

    Raises:
      UserError: if there is no such run or checkpoint, or its text is not there or has changed.
    """
    workdir = workdir.absolute()
    record = existing_record(workdir)
    config = record.config
    if config.data.corpus == NO_CORPUS:
        raise UserError(
            f"{workdir} was tuned without a corpus, so there is no text to evaluate it on: give "
            "--task to judge its answers"
        )
    if corpus:
        config = config.with_values("data", corpus=absolute_source(corpus))
    devices = start_devices(MeshConfig(), config.train.batch_size)
    run = prepare(_fitted(config, devices), workdir, record, devices)
    saved, params = restore_for_reading(workdir / "checkpoints", which, run.abstract)
    found = _evaluation(run, params, saved.step)
    if not others:
        return found
    models = [open_teacher(folder.absolute(), run, which) for folder in (workdir, *others)]
    return dataclasses.replace(found, mean_loss=loss_of_mean(models, run))


def _fitted(config: Config, devices: list[jax.Device]) -> Config:
    """`config` with a layout for `devices`, which may be another machine's than the run's."""
    if not hardware.has_cudnn_attention(devices[0]):
        config = config.with_values("model", attention="xla")
    batch_size = math.ceil(config.train.batch_size / len(devices)) * len(devices)
    # A GPU can hold as many windows at a time as in training. On a CPU, 0 = chosen again.
    size = math.gcd(batch_size // len(devices), config.train.microbatch_size)
    size = 0 if devices[0].platform == "cpu" else size
    config = dataclasses.replace(config, mesh=MeshConfig())
    return config.with_values("train", batch_size=batch_size, microbatch_size=size)


def _evaluation(run: Run, params: Any, step: int) -> Evaluation:
    loss = run.corpus_loss(params)
    return Evaluation(
        step=step,
        corpus=run.config.data.corpus,
        tokens=evaluation_windows(run.val_tokens, run.config.model.block_size)[:, 1:].size,
        loss=loss,
        bits_per_byte=run.bits_per_byte(loss),
        perplexity=math.exp(loss) if loss < 700 else math.inf,  # exp(710) overflows.
        tutorial_estimate=run.tutorial_estimate(params),
        source_loss=run.source_loss(),
        mean_loss=None,
    )
