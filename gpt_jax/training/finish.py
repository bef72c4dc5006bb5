"""What a run does after its last step: its curve, its final loss and a sample of text."""

import math
from pathlib import Path
from typing import Any

import jax

from gpt_jax.devices import processes
from gpt_jax.files import replacing
from gpt_jax.model import unrolled
from gpt_jax.runs import read_record
from gpt_jax.sampling import stream
from gpt_jax.text import TextStream
from gpt_jax.training.display import short_path
from gpt_jax.training.log import read_metrics
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.objective import Prompt
from gpt_jax.training.pictures import draw_loss_curve, draw_panels
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
    prompt = run.objective.prompt()
    if not (prompt.text or run.config.sample.prompt == ""):
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
    if run.is_tuned:
        draw_panels(entries, run.objective.panels, picture, run.workdir.name)
    else:
        draw_loss_curve(entries, run.config, picture, run.workdir.name, run.source_loss())


@processes.on_first
def _print_loss(run: Run, monitor: Monitor, estimate: float | None) -> None:
    entries = read_metrics(run.workdir / "metrics.jsonl") or [{}]  # Its lines may be damaged.
    name = run.objective.shown[0]
    value = entries[-1].get(f"val/{name}")
    value = math.nan if value is None else value  # JSON has no NaN.
    result = f"validation {name} {value:.4f}"
    if not run.is_tuned:
        result += f" nats per token, {run.bits_per_byte(value):.4f} bits per byte"
    rows = [("result", result)]
    if estimate is not None:
        rows.append(("", f"tutorial_estimate {estimate:.4f}, comparable only with the tutorial's"))
    rows.append(("curve", short_path(run.workdir / "loss.png", 60)))
    monitor.say("")
    monitor.say_facts(rows)
    if sentence := stand_in(read_record(run.workdir)):
        monitor.say(f"note: {sentence}")


@processes.on_first
def _sample(run: Run, params: Any, prompt: Prompt, stopper: Stopper) -> str:
    """The prompt and its continuation, on one device. Ends early if asked to stop."""
    c = run.config
    model, params = unrolled(c.model, jax.device_put(params, run.device))
    text, stream_of_text = prompt.text, TextStream(run.tokenizer, prompt.stop)
    vocab_size = run.tokenizer.vocab_size
    for [new] in stream(model, params, prompt.ids, c.sample, c.train.seed, n_tokens=vocab_size):
        text += stream_of_text.add(new)
        if stopper.signum or stream_of_text.stopped:
            break
    return text + stream_of_text.add([], final=True)


@processes.on_first
def _write_sample(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # A file cut short would count as finished.
        file.write((text + "\n").encode("utf-8"))
