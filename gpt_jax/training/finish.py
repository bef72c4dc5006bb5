"""What a run does after its last step: its curve, its final loss and a sample of text."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.devices import processes
from gpt_jax.files import replacing
from gpt_jax.model import unrolled
from gpt_jax.runs import read_record
from gpt_jax.sampling import encode_prompt, known_prompt, stream
from gpt_jax.training.display import short_path
from gpt_jax.training.log import read_metrics
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.pictures import draw_loss_curve
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState
from gpt_jax.training.stopping import Stopper
from gpt_jax.training.summary import stand_in


def sample_path(workdir: Path, step: int) -> Path:
    """The file of the sample. A run writes it last, so a run that has it is finished."""
    return workdir / "samples" / f"{step}.txt"


def finish(run: Run, state: TrainState, monitor: Monitor, stopper: Stopper) -> None:
    """Draws the curve, prints the final loss, and writes a sample.

    Raises:
      Stopped: if asked to stop; the resumed run writes the sample.
    """
    with monitor.doing("evaluating"):
        estimate = run.tutorial_estimate(state.evaluated)
    _draw_curve(run)
    _print_loss(run, monitor, estimate)
    prompt = known_prompt(run.tokenizer, run.config.sample.prompt)
    if prompt != run.config.sample.prompt:
        monitor.say("note: the vocabulary lacks a character of sample.prompt: no prompt is used")
    with monitor.doing("sampling"):
        text = _sample(run, processes.gathered(state.evaluated), prompt, stopper)
    stopper.check()
    path = sample_path(run.workdir, run.config.train.steps)
    _write_sample(path, text)
    where = f"{short_path(path, 40)}, at temperature {run.config.sample.temperature}"
    monitor.say_facts([("sample", where)])
    monitor.say(f"\n{text}")


@processes.on_first
def _draw_curve(run: Run) -> None:
    entries, picture = read_metrics(run.workdir / "metrics.jsonl"), run.workdir / "loss.png"
    draw_loss_curve(entries, run.config, picture, run.workdir.name, run.source_loss())


@processes.on_first
def _print_loss(run: Run, monitor: Monitor, estimate: float | None) -> None:
    entries = read_metrics(run.workdir / "metrics.jsonl") or [{}]  # Its lines may be damaged.
    loss = entries[-1].get("val/loss")
    loss = math.nan if loss is None else loss  # JSON has no NaN.
    bits = f"{run.bits_per_byte(loss):.4f} bits per byte"
    rows = [("result", f"validation loss {loss:.4f} nats per token, {bits}")]
    if estimate is not None:
        rows.append(("", f"tutorial_estimate {estimate:.4f}, comparable only with the tutorial's"))
    rows.append(("curve", short_path(run.workdir / "loss.png", 60)))
    monitor.say("")
    monitor.say_facts(rows)
    if sentence := stand_in(read_record(run.workdir)):
        monitor.say(f"note: {sentence}")


@processes.on_first
def _sample(run: Run, params: Any, prompt: str, stopper: Stopper) -> str:
    """The prompt and its continuation, on one device. Ends early if asked to stop."""
    c = run.config
    ids = encode_prompt(run.tokenizer, prompt)
    model, params = unrolled(c.model, jax.device_put(params, run.device))
    tokens = [np.zeros(0, np.int32)]
    vocab_size = run.tokenizer.vocab_size
    for [new] in stream(model, params, ids, c.sample, c.train.seed, n_tokens=vocab_size):
        if stopper.signum:
            break
        tokens.append(new)
    return prompt + run.tokenizer.decode(np.concatenate(tokens))


@processes.on_first
def _write_sample(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # A file cut short would count as finished.
        file.write((text + "\n").encode("utf-8"))
