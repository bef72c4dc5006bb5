"""What a finished run leaves: its curve, its final loss and a sample of text."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.devices import processes
from gpt_jax.files import replacing
from gpt_jax.model import unrolled
from gpt_jax.sampling import encode_prompt, known_prompt, stream
from gpt_jax.training import pictures
from gpt_jax.training.log import read_metrics
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState
from gpt_jax.training.stopping import Stopper


def sample_path(workdir: Path, step: int) -> Path:
    """The sample, which is the last thing that a run writes."""
    return workdir / "samples" / f"{step}.txt"


def finish(run: Run, state: TrainState, monitor: Monitor, stopper: Stopper) -> None:
    """Leaves what a finished run has: its final loss, its curve and a sample of text.

    Raises:
      Stopped: when asked to stop; the resumed run makes the sample.
    """
    estimate = run.tutorial_estimate(state.evaluated)
    _draw_curve(run)
    _print_loss(run, monitor, estimate)
    prompt = known_prompt(run.tokenizer, run.config.sample.prompt)
    if prompt != run.config.sample.prompt:
        monitor.say("(without sample.prompt: the vocabulary lacks a character of it)")
    text = _sample(run, processes.gathered(state.evaluated), prompt, stopper)
    stopper.check()
    _write_sample(sample_path(run.workdir, run.config.train.steps), text)
    monitor.say(f"a sample at temperature {run.config.sample.temperature}:\n\n{text}")


@processes.on_first
def _draw_curve(run: Run) -> None:
    entries = read_metrics(run.workdir / "metrics.jsonl")
    picture = run.workdir / "loss.png"
    pictures.draw_loss_curve(entries, run.config.model.vocab_size, picture, run.source_loss())


@processes.on_first
def _print_loss(run: Run, monitor: Monitor, estimate: float | None) -> None:
    loss = read_metrics(run.workdir / "metrics.jsonl")[-1]["val/loss"]
    loss = math.nan if loss is None else loss  # JSON has no NaN.
    monitor.say(
        f"held-out loss {loss:.4f} nats per token, {run.bits_per_byte(loss):.4f} bits per byte"
        + _estimate(estimate)
    )


def _estimate(loss: float | None) -> str:
    if loss is None:
        return ""
    return f" (tutorial_estimate {loss:.4f}: to compare with the tutorial, nothing else)"


@processes.on_first
def _sample(run: Run, params: Any, prompt: str, stopper: Stopper) -> str:
    """The prompt and its continuation; no more of it once asked to stop. On one device."""
    c = run.config
    ids = encode_prompt(run.tokenizer, prompt)
    model, params = unrolled(c.model, jax.device_put(params, run.device))
    pieces = [np.zeros(0, np.int32)]
    drawn = stream(model, params, ids, c.sample, c.train.seed, n_tokens=run.tokenizer.vocab_size)
    for [new] in drawn:
        if stopper.signum:
            break
        pieces.append(new)
    return prompt + run.tokenizer.decode(np.concatenate(pieces))


@processes.on_first
def _write_sample(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # Half a sample would count as the end of the run.
        file.write((text + "\n").encode("utf-8"))
