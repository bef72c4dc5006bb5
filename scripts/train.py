"""Trains a GPT, or goes on with a run that was stopped.

    python scripts/train.py --config=configs/tiny.py
    python scripts/train.py --config=configs/tiny.py --config.data.corpus=my.txt --workdir=runs/mine

The same command, given again, goes on from the newest checkpoint in the run's folder.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
from absl import flags

from gpt_jax import training


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """--config and its overrides, --workdir."""
    command_line.define_config(values, argv)
    flags.DEFINE_string(
        "workdir",
        "",
        "Folder of the run; runs/<name of the config> unless given.",
        flag_values=values,
    )


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""

    def train(values: flags.FlagValues) -> None:
        config = command_line.read_config(values, argv)
        workdir = Path(values.workdir or default_workdir(command_line.config_file(values)))
        workdir = workdir.expanduser().absolute()
        if not training.train(config, workdir):
            print(f"{workdir} is finished: {config.train.steps} steps. For a new run of the same:")
            print(f"  {new_run_command(argv, workdir)}")

    return command_line.run(train, define_flags, argv, __doc__ or "")


def default_workdir(config_file: str) -> Path:
    """runs/tiny for configs/tiny.py, runs/gpt2-small for configs/gpt2.py:small."""
    path, _, argument = config_file.partition(":")
    return Path("runs") / "-".join(filter(None, [Path(path).stem, argument]))


def new_run_command(argv: Sequence[str], workdir: Path) -> str:
    """The command line again, with the first folder beside `workdir` that does not exist yet."""
    number = 2
    while (new := workdir.with_name(f"{workdir.name}-{number}")).exists():
        number += 1
    kept, words = [], iter(argv)
    for word in words:
        if word.lstrip("-") == "workdir":
            next(words, None)
        elif not word.lstrip("-").startswith("workdir="):
            kept.append(word)
    return shlex.join([sys.executable, *kept, f"--workdir={new}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
