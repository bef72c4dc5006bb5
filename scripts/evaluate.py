"""Evaluates a run on its validation text, which it never trained on.

With --task also has its answers judged.

    python scripts/evaluate.py --workdir=runs/tiny
    python scripts/evaluate.py --workdir=runs/tiny --step=best --json
    python scripts/evaluate.py --workdir=runs/play-instruct --task=play
    python scripts/evaluate.py --workdir=runs/a --mean_with=runs/b,runs/c

Without --workdir: the newest run in runs/. --corpus says where its text lies if
that has moved since the run trained.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
from absl import flags

import gpt_jax
from gpt_jax.config import INT32, POSITIVE, MeshConfig, SampleConfig, checked
from gpt_jax.files import expanded
from gpt_jax.runs import existing_record, newest_run
from gpt_jax.text import NO_CORPUS
from gpt_jax.training.log import json_line

if TYPE_CHECKING:
    from gpt_jax.training.evaluation import Evaluation
    from gpt_jax.tuning.judging import Report, Share

OWN = "default: the run's"
FLAGS = (
    command_line.WORKDIR,
    ("step", str, "latest", "Checkpoint: latest, best, or the number of a step."),
    ("corpus", str, "", "Where the run's text lies now; default: where the run found it."),
    ("mean_with", str, "", "Also evaluate the mean of this model and those of these runs (a,b)."),
    ("task", command_line.TASKS, None, "Also judge answers to held-out prompts of this task."),
    ("num_prompts", int, 1000, "Prompts of the task."),
    ("num_answers", int, 1, "Answers to each prompt."),
    ("seed", int, 0, "The same seed gives the same answers."),
    ("temperature", float, None, f"Divides the logits of answers; 0 = greedy; {OWN}."),
    ("top_k", int, None, f"Draw answers from this many likeliest tokens; 0 = all; {OWN}."),
    ("json", bool, False, "Print one JSON object with all digits."),
)
OPTIONS = ("temperature", "top_k")
MEANINGS = {
    "fulfilled": "all that was asked, and an end",
    "ended": "ended by itself",
}


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(evaluate, FLAGS, argv, __doc__ or "")


def evaluate(values: flags.FlagValues, words: list[str]) -> None:
    """Evaluates a checkpoint and prints its losses, and how its answers are judged."""
    check_options(values)
    workdir = expanded(values.workdir) if values.workdir else newest_run(Path("runs"))
    command_line.tell(f"evaluating {workdir}")  # Loading JAX takes seconds.
    from gpt_jax.devices import start_devices
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import evaluation

    set_up_compiler()
    has_corpus = existing_record(workdir).config.data.corpus != NO_CORPUS
    if values.task and not has_corpus and not values.mean_with:
        start_devices(MeshConfig(), values.num_prompts)
        found = None
    else:
        others = [expanded(folder) for folder in values.mean_with.split(",") if folder]
        found = evaluation.evaluate(workdir, values.step, values.corpus, others)
    step, report = judged(values, workdir) if values.task else (0, None)
    step = found.step if found else step
    if values.json:
        command_line.tell(f"{workdir}, step {step:,}")
        print(json_line({"step": step, **as_json(found, report)}), end="")
        return
    where = f", validation text: the end of {found.corpus}" if found else ""
    command_line.say(f"{workdir}, step {step:,}{where}")
    if found:
        print(table(found))
    if report:
        print(answers_table(report, values))


def check_options(values: flags.FlagValues) -> None:
    """Refuses bad options before anything is loaded."""
    SampleConfig(**given(values))
    checked("seed", values.seed, int, INT32)
    for name in ("num_prompts", "num_answers"):
        checked(name, values[name].value, int, POSITIVE)


def given(values: flags.FlagValues) -> dict[str, Any]:
    """The options of sampling that were given."""
    return {name: values[name].value for name in OPTIONS if values[name].value is not None}


def judged(values: flags.FlagValues, workdir: Path) -> tuple[int, "Report"]:
    """The step of the checkpoint, and what the judge of the task says of its answers."""
    from gpt_jax.tuning import judging
    from gpt_jax.tuning.tasks import TASKS

    model, task = gpt_jax.load(workdir, values.step), TASKS[values.task]()
    prompts = [task.prompt(0, number, True) for number in range(values.num_prompts)]
    groups = model.answer_groups(
        [prompt.text for prompt in prompts], values.num_answers, seed=values.seed, **given(values)
    )
    return model.step, judging.judge(task, prompts, groups)


def as_json(found: "Evaluation | None", report: "Report | None") -> dict[str, Any]:
    """All figures, by name; of a share its value and its interval."""
    figures = dataclasses.asdict(found) if found else {}
    for name, share in shares(report).items() if report else ():
        figures |= {name: share.value, f"{name}_interval": share.interval}
    return figures


def shares(report: "Report") -> "dict[str, Share]":
    """The shares of a report by name."""
    return {
        "fulfilled": report.fulfilled,
        **report.conditions,
        "ended": report.ended,
        "pass_at_k": report.pass_at_k,
    }


def answers_table(report: "Report", values: flags.FlagValues) -> str:
    """One line per share, with its 95 % interval."""
    meanings = MEANINGS | {"pass_at_k": f"one of {values.num_answers} answers is right"}
    lines = [f"answers to {values.num_prompts:,} held-out prompts of {values.task}, in %"]
    for name, share in shares(report).items():
        low, high = (100 * bound for bound in share.interval)
        meaning = meanings.get(name, f"of {share.total:,}")
        figures = f"{100 * share.value:8.1f}  {low:5.1f} to {high:5.1f}"
        lines.append(f"  {name:<19} {figures}  {meaning}")
    return "\n".join(lines)


def table(found: "Evaluation") -> str:
    """One line per figure."""
    lines = [
        ("loss", found.loss, f"nats per token, over {found.tokens:,} tokens"),
        ("bits per byte", found.bits_per_byte, "of the text in UTF-8"),
        ("perplexity", found.perplexity, "e to the power of the loss"),
    ]
    if found.tutorial_estimate is not None:
        meaning = "comparable only with the tutorial's"
        lines.append(("tutorial_estimate", found.tutorial_estimate, meaning))
    if found.source_loss is not None:
        lines.append(("entropy of the play", found.source_loss, "no model can expect a lower loss"))
    if found.mean_loss is not None:
        lines.append(("mean of models", found.mean_loss, "the loss of their mean distribution"))
    return "\n".join(f"  {name:<19} {value:8.4f}  {meaning}" for name, value, meaning in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
