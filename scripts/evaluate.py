"""Evaluates a run on its validation text, which it never trained on.

    python scripts/evaluate.py --workdir=runs/tiny
    python scripts/evaluate.py --workdir=runs/tiny --step=best --json

Without --workdir: the newest run in runs/. --corpus says where its text lies if
that has moved since the run trained.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import command_line
from absl import flags

from gpt_jax.files import expanded
from gpt_jax.runs import newest_run
from gpt_jax.training.log import json_line

if TYPE_CHECKING:
    from gpt_jax.training.evaluation import Evaluation


FLAGS = (
    command_line.WORKDIR,
    ("step", str, "latest", "Checkpoint: latest, best, or the number of a step."),
    ("corpus", str, "", "Where the run's text lies now; default: where the run found it."),
    ("json", bool, False, "Print one JSON object with all digits."),
)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(evaluate, FLAGS, argv, __doc__ or "")


def evaluate(values: flags.FlagValues, words: list[str]) -> None:
    """Evaluates a checkpoint and prints its losses."""
    workdir = expanded(values.workdir) if values.workdir else newest_run(Path("runs"))
    command_line.tell(f"evaluating {workdir}")  # Loading JAX takes seconds.
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import evaluation

    set_up_compiler()
    found = evaluation.evaluate(workdir, values.step, values.corpus)
    if values.json:
        command_line.tell(f"{workdir}, step {found.step:,}")
        print(json_line(dataclasses.asdict(found)), end="")
    else:
        where = f"validation text: the end of {found.corpus}"
        command_line.say(f"{workdir}, step {found.step:,}, {where}")
        print(table(found))


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
    return "\n".join(f"  {name:<19} {value:8.4f}  {meaning}" for name, value, meaning in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
