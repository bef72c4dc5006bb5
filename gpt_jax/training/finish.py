"""What a run does after its last step: its curve, its final loss and a sample of text."""

import math

from gpt_jax.devices import processes
from gpt_jax.runs import best, read_record
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training.display import short_path
from gpt_jax.training.log import read_metrics
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.pictures import draw_loss_curve, draw_panels
from gpt_jax.training.run import Run
from gpt_jax.training.samples import last_sample, sample_path
from gpt_jax.training.state import TrainState
from gpt_jax.training.stopping import Stopper
from gpt_jax.training.summary import stand_in


def finish(
    run: Run, checkpoints: Checkpoints, state: TrainState, monitor: Monitor, stopper: Stopper
) -> None:
    """Draws the curve, prints the final loss, and writes a sample.

    Raises:
      Stopped: if asked to stop; the resumed run writes the sample.
    """
    _draw_curve(run)
    _print_loss(run, monitor)
    if int(state.step) < run.config.train.steps:
        monitor.say_facts([("ended", _early_end(run, checkpoints, int(state.step)))])
    if not (run.objective.prompt().text or run.config.sample.prompt == ""):
        monitor.say("note: the vocabulary lacks a character of sample.prompt: no prompt is used")
    with monitor.doing("sampling"):
        text = last_sample(run, state, stopper)
    path = sample_path(run.workdir, int(state.step))
    where = f"{short_path(path, 40)}, at temperature {run.config.sample.temperature}"
    monitor.say_facts([("sample", where)])
    monitor.say(f"\n{text}")


def _early_end(run: Run, checkpoints: Checkpoints, step: int) -> str:
    """Why a run ends before `train.steps`, and which checkpoint is the best."""
    c, lowest = run.config.train, best(checkpoints.all()).step
    return (
        f"after step {step:,} of {c.steps:,}, because {c.patience} evaluation(s) in a row found no "
        f"lower validation loss (train.patience); the best checkpoint is step {lowest:,}"
    )


@processes.on_first
def _draw_curve(run: Run) -> None:
    entries, picture = read_metrics(run.workdir / "metrics.jsonl"), run.workdir / "loss.png"
    if run.is_tuned:
        draw_panels(entries, run.objective.panels, picture, run.workdir.name)
    else:
        draw_loss_curve(entries, run.config, picture, run.workdir.name, run.source_loss())


@processes.on_first
def _print_loss(run: Run, monitor: Monitor) -> None:
    entries = read_metrics(run.workdir / "metrics.jsonl") or [{}]  # Its lines may be damaged.
    name = run.objective.shown[0]
    value = entries[-1].get(f"val/{name}")
    value = math.nan if value is None else value  # JSON has no NaN.
    result = f"validation {name} {value:.4f}"
    if not run.is_tuned:
        result += f" nats per token, {run.bits_per_byte(value):.4f} bits per byte"
    monitor.say("")
    monitor.say_facts([("result", result), ("curve", short_path(run.workdir / "loss.png", 60))])
    if sentence := stand_in(read_record(run.workdir)):
        monitor.say(f"note: {sentence}")
