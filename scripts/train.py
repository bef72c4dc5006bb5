"""Trains a GPT, or goes on with a run that was stopped.

    python scripts/train.py --config=configs/tiny.py
    python scripts/train.py --config=configs/tiny.py --config.data.corpus=my.txt --workdir=runs/mine
    python scripts/train.py --help_config

The same command, given again, goes on from the newest checkpoint in the run's folder.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
from absl import flags
from rich.table import Column, Table

from gpt_jax import config_table
from gpt_jax.config import SECTIONS, Config
from gpt_jax.interruption import Interrupted, interruption
from gpt_jax.lock import one_writer


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """--config and its overrides, --workdir, --tensorboard, --resume_allow, --help_config."""
    command_line.define_config(values, argv)
    flags.DEFINE_string(
        "workdir",
        "",
        "Folder of the run; runs/<name of the config> unless given.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "tensorboard", False, "Write event files for TensorBoard, too.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "resume_allow",
        [],
        "A field that may differ from what the run began with: --resume_allow=train.steps to "
        "train a finished run for longer. Can be given several times.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "help_config", False, "Show every setting, its default and range.", flag_values=values
    )


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""

    def show_or_train(values: flags.FlagValues, words: list[str]) -> None:
        if values.help_config:
            show_settings()
            return
        config = command_line.read_config(values, argv)
        workdir = Path(values.workdir or default_workdir(command_line.config_file(values)))
        workdir = workdir.expanduser().absolute()
        with one_writer(workdir):  # Before anything heavy is loaded.
            train(config, workdir, values, argv)

    return command_line.run(show_or_train, define_flags, argv, __doc__ or "")


def train(config: Config, workdir: Path, values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Trains, and says how to go on where the run was stopped or was finished before."""
    from gpt_jax import training  # Not before --help and bad input were answered: it loads JAX.
    from gpt_jax.compilation import set_up_compiler

    set_up_compiler()
    with interruption() as asked:
        try:
            trained = training.train(
                config, workdir, values.tensorboard, values.resume_allow, asked
            )
        except Interrupted as stopped:
            command_line.tell(f"\nstopped by {stopped}: the same command goes on where it was")
            raise
    if not trained:
        print(f"{workdir} is finished: {config.train.steps} steps. For a new run of the same:")
        print(f"  {new_run_command(argv, workdir)}")


def show_settings() -> None:
    """Prints every setting; one is changed by --config.<field>=<value>."""
    console = command_line.ResultConsole()
    for section in SECTIONS:
        field, *others = config_table.HEADINGS
        table = Table(Column(field, no_wrap=True), *others, box=None)
        for row in config_table.section_rows(section):
            table.add_row(*row)
        console.print(table, "")


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
