"""Exports a run's model as a folder that transformers loads as a GPT-2.

    python scripts/export.py --workdir=runs/tiny --out=exported
    python scripts/export.py --workdir=runs/tiny --step=latest --out=exported

Without --workdir: the newest run in runs/. train.py --init_from=exported reads
the folder back.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
from absl import flags

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.files import absolute, expanded
from gpt_jax.runs import newest_run

FLAGS = (
    command_line.WORKDIR,
    command_line.STEP,
    ("out", str, "", "Folder to create; it must not exist."),
)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(export, FLAGS, argv, __doc__ or "")


def export(values: flags.FlagValues, words: list[str]) -> None:
    """Exports a checkpoint and prints which."""
    if not values.out:
        raise UserError("--out is not given: name the folder to create")
    from gpt_jax.gpt2 import check_new, export_folder  # Loads JAX, so after bad flags.

    workdir = expanded(values.workdir) if values.workdir else newest_run(Path("runs"))
    out = absolute(values.out)
    check_new(out)  # Before the model is loaded.
    command_line.tell(f"loading {workdir}")
    model = gpt_jax.load(workdir, values.step)
    export_folder(model.config.model, model.params, model.tokenizer, out)
    command_line.say(f"{workdir}, step {model.step:,} ({model.described_loss}): exported to {out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
