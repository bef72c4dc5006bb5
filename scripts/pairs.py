"""Makes preferences of a tuned run's own answers: JSON lines of prompt, chosen and rejected.

    python scripts/pairs.py --workdir=runs/play-instruct --task=play --out=pairs.jsonl

Draws several answers to each of a task's training prompts, judges them, and pairs
the best with the worst. A prompt whose answers are all equally good gives no pair.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
from absl import flags

import gpt_jax
from gpt_jax.config import INT32, POSITIVE, MeshConfig, checked
from gpt_jax.errors import UserError
from gpt_jax.files import expanded
from gpt_jax.runs import newest_run

FLAGS = (
    command_line.WORKDIR,
    command_line.STEP,
    ("task", command_line.TASKS, "play", "The task."),
    ("out", str, "pairs.jsonl", "File for the pairs."),
    ("num_prompts", int, 2000, "Prompts of the task; at most so many pairs."),
    ("num_answers", int, 8, "Answers to each prompt."),
    ("temperature", float, None, "Divides the logits; default: the run's."),
    ("seed", int, 0, "The same seed gives the same pairs."),
)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(make_pairs, FLAGS, argv, __doc__ or "")


def make_pairs(values: flags.FlagValues, words: list[str]) -> None:
    """Draws, judges, pairs and writes."""
    checked("seed", values.seed, int, INT32)
    checked("num_prompts", values.num_prompts, int, POSITIVE)
    if values.num_answers < 2:
        raise UserError(f"--num_answers={values.num_answers}, but a pair needs two answers or more")
    workdir = expanded(values.workdir) if values.workdir else newest_run(Path("runs"))
    command_line.tell(f"loading {workdir}")  # Loading JAX takes seconds.
    from gpt_jax.devices import start_devices
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.tuning import judging
    from gpt_jax.tuning.tasks import TASKS

    set_up_compiler()
    start_devices(MeshConfig(), values.num_prompts)
    model, task = gpt_jax.load(workdir, values.step), TASKS[values.task]()
    prompts = [task.prompt(values.seed, number, False) for number in range(values.num_prompts)]
    options = {} if values.temperature is None else {"temperature": values.temperature}
    with command_line.new_file("out", values.out) as file:
        groups = model.answer_groups(
            [prompt.text for prompt in prompts], values.num_answers, seed=values.seed, **options
        )
        lines = [f"{line}\n" for line in judging.preferences(task, prompts, groups)]
        file.write("".join(lines).encode("utf-8"))
    found = f"{len(lines):,} pairs of {values.num_prompts:,} prompts"
    command_line.tell(f"{found} written to {values.out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
