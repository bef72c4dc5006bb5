"""Evaluating a checkpoint of a finished or running run on the validation text."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from gpt_jax.config import MeshConfig
from gpt_jax.devices import hardware, start_devices
from gpt_jax.runs import existing_record
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.text.windows import evaluation_windows
from gpt_jax.training.run import Run, prepare


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Losses of one checkpoint, over all disjoint windows of the validation text.

    Attributes:
      step: finished updates.
      corpus: where the text was found.
      tokens: the number of predicted tokens.
      loss: validation loss, the mean in nats per token; perplexity is exp(loss).
      tutorial_estimate: the tutorial's estimate of the loss, from its own windows: comparable only
        with the tutorial's. None if tokens are not characters.
      source_loss: the loss of the built-in play's own grammar, in nats per character; no model can
        expect less. None for another corpus.
    """

    step: int
    corpus: str
    tokens: int
    loss: float
    bits_per_byte: float
    perplexity: float
    tutorial_estimate: float | None
    source_loss: float | None


def evaluate(workdir: Path, which: str) -> Evaluation:
    """Evaluates a checkpoint of the run in `workdir`, on all devices of this machine.

    Args:
      which: "latest", "best" or the number of a step.

    Raises:
      UserError: if there is no such run or checkpoint, or its corpus has moved or changed.
    """
    workdir = workdir.absolute()
    record = existing_record(workdir)
    # This may be another machine than the run's, so the layout is chosen again.
    config = dataclasses.replace(record.config, mesh=MeshConfig())
    devices = start_devices(config.mesh, config.train.batch_size)
    if not hardware.has_cudnn_attention(devices[0]):
        config = config.with_values("model", attention="xla")
    shared = -(-config.train.batch_size // len(devices)) * len(devices)
    # A GPU can hold as many windows at a time as in training. On a CPU, 0 = chosen again.
    size = math.gcd(shared // len(devices), config.train.microbatch_size)
    size = 0 if devices[0].platform == "cpu" else size
    config = config.with_values("train", batch_size=shared, microbatch_size=size)
    run = prepare(config, workdir, record, devices)
    # Restored right after it is found, because a run in progress deletes checkpoints.
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        step = checkpoints.find(which).step
        params = checkpoints.restore_evaluated(step, run.abstract)
    return _evaluation(run, params, step)


def _evaluation(run: Run, params: Any, step: int) -> Evaluation:
    loss = run.evaluate(params)
    return Evaluation(
        step=step,
        corpus=run.config.data.corpus,
        tokens=evaluation_windows(run.val_tokens, run.config.model.block_size)[:, 1:].size,
        loss=loss,
        bits_per_byte=run.bits_per_byte(loss),
        perplexity=math.exp(loss) if loss < 700 else math.inf,  # exp(710) overflows.
        tutorial_estimate=run.tutorial_estimate(params),
        source_loss=run.source_loss(),
    )
