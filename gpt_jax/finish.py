"""What a finished run leaves: its curve, its final loss and a sample of text."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax import distributed, report, sampling
from gpt_jax.files import replacing
from gpt_jax.interruption import Interruption
from gpt_jax.metrics import Monitor, read_metrics
from gpt_jax.run import Run
from gpt_jax.stacking import unrolled
from gpt_jax.train_step import TrainState


def sample_path(workdir: Path, step: int) -> Path:
    """The sample, which is the last thing that a run writes."""
    return workdir / "samples" / f"{step}.txt"


def finish(run: Run, state: TrainState, monitor: Monitor, asked: Interruption) -> None:
    """What a finished run leaves: its final loss, its curve and a sample of text."""
    estimate = run.tutorial_estimate(state.evaluated)
    distributed.first(lambda: _tell_loss(run, monitor, estimate))
    prompt = sampling.known_prompt(run.tokenizer, run.config.sample.prompt)
    if prompt != run.config.sample.prompt:
        monitor.say("(without sample.prompt: the vocabulary lacks a character of it)")
    params = distributed.gathered(state.evaluated)
    text = distributed.first(lambda: _sample(run, params, prompt, asked))
    asked.check()
    distributed.first(lambda: _write_sample(sample_path(run.workdir, run.config.train.steps), text))
    monitor.say(f"a sample at temperature {run.config.sample.temperature}:\n\n{text}")


def _tell_loss(run: Run, monitor: Monitor, estimate: float | None) -> None:
    """Draws the curve of the losses, and says what the last one was."""
    entries = read_metrics(run.workdir / "metrics.jsonl")
    picture = run.workdir / "loss.png"
    report.draw_loss_curve(entries, run.config.model.vocab_size, picture, run.source_loss())
    loss = entries[-1]["val/loss"]
    loss = math.nan if loss is None else loss  # JSON has no NaN.
    monitor.say(
        f"held-out loss {loss:.4f} nats per token, {run.bits_per_byte(loss):.4f} bits per byte"
        + _estimate(estimate)
    )


def _estimate(loss: float | None) -> str:
    if loss is None:
        return ""
    return f" (tutorial_estimate {loss:.4f}: to compare with the tutorial, nothing else)"


def _sample(run: Run, params: Any, prompt: str, asked: Interruption) -> str:
    """The prompt and its continuation; no more of it when asked to end. Alone, on one device."""
    c = run.config
    ids = sampling.encode_prompt(run.tokenizer, prompt)
    model, params = unrolled(c.model, jax.device_put(params, run.device))
    pieces = [np.zeros(0, np.int32)]
    drawn = sampling.stream(
        model, params, ids, c.sample, c.train.seed, n_tokens=run.tokenizer.vocab_size
    )
    for [new] in drawn:
        if asked.signum:
            break
        pieces.append(new)
    return prompt + run.tokenizer.decode(np.concatenate(pieces))


def _write_sample(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # Half a sample would count as the end of the run.
        file.write((text + "\n").encode("utf-8"))
