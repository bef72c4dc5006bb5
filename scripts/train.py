"""Trains a GPT, or goes on with a run that was stopped.

    python scripts/train.py --config=configs/tiny.py
    python scripts/train.py --config=configs/tiny.py --config.data.corpus=my.txt --workdir=runs/mine
    python scripts/train.py --init_from=gpt2 --config.train.steps=0 --workdir=runs/gpt2
    python scripts/train.py --config=configs/gpt2.py:small --plan
    python scripts/train.py --distributed --coordinator=HOST:PORT --num_processes=2 --process_id=0
    python scripts/train.py --help_config

The same command, given again, goes on from the newest checkpoint in the run's folder.
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
from absl import flags
from rich.table import Column, Table

from gpt_jax.config import SECTIONS, Cluster, Config
from gpt_jax.config.table import HEADINGS, section_rows
from gpt_jax.errors import UserError
from gpt_jax.runs import one_writer
from gpt_jax.training.stopping import ALREADY_FINISHED, stopping_on_signals

if TYPE_CHECKING:
    from gpt_jax.training.plan import Plan


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """--config and its overrides, and what else a run can be told."""
    command_line.define_config(values, argv)
    for name, meaning in (
        ("workdir", "Folder of the run; runs/<name of the config or weights> unless given."),
        ("init_from", "Folder with GPT-2's weights as Hugging Face has them, to begin from."),
        ("coordinator", "With --distributed: HOST:PORT where process 0 listens to the others."),
        ("coordinator_bind", "Address at which it listens there; HOST unless given."),
    ):
        flags.DEFINE_string(name, "", meaning, flag_values=values)
    for name, meaning in (
        ("tensorboard", "Write event files for TensorBoard, too."),
        ("plan", "Do not train: show what it would take."),
        ("help_config", "Show every setting, its default and range."),
        ("distributed", "Train together with other processes, each started by this command."),
    ):
        flags.DEFINE_boolean(name, False, meaning, flag_values=values)
    for name, default, meaning in (
        ("num_processes", None, "How many processes train together."),
        ("process_id", None, "Which of them this is, from 0."),
        ("join_timeout", 300, "Seconds to wait for the others at the start."),
    ):
        flags.DEFINE_integer(name, default, meaning, flag_values=values)
    flags.DEFINE_multi_string(
        "resume_allow",
        [],
        "A field that may differ from what the run began with: --resume_allow=train.steps to "
        "train a finished run for longer. Can be given several times.",
        flag_values=values,
    )


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""

    def show_or_train(values: flags.FlagValues, words: list[str]) -> int | None:
        if values.help_config:
            show_settings()
            return None
        config, cluster = command_line.read_config(values, argv), read_cluster(values)
        init_from = values.init_from and str(Path(values.init_from).expanduser().absolute())
        if values.plan:
            if cluster:
                raise UserError(
                    "--plan needs no other process: leave out --distributed, and give "
                    "--config.mesh.data, fsdp and tensor"
                )
            show_plan(config, init_from)
            return None
        named = init_from or command_line.config_file(values)
        workdir = Path(values.workdir or default_workdir(named)).expanduser().absolute()
        # Before anything heavy is loaded; several processes must meet first.
        with meet(cluster, config, workdir) if cluster else one_writer(workdir):
            return train(config, workdir, values, argv, init_from)

    return command_line.run(show_or_train, define_flags, argv, __doc__ or "")


def read_cluster(values: flags.FlagValues) -> Cluster | None:
    """The processes that train together; None without --distributed.

    Raises:
      UserError: for flags that say half of it, or belong to --distributed alone.
    """
    names = ("coordinator", "num_processes", "process_id", "coordinator_bind", "join_timeout")
    if values.distributed:
        told: list[Any] = [values[name].value for name in names]
        return Cluster(*told)
    if given := [name for name in names if values[name].present]:
        raise UserError(f"--{given[0]} is for several processes: give --distributed, too")
    return None


@contextlib.contextmanager
def meet(cluster: Cluster, config: Config, workdir: Path) -> Iterator[None]:
    """Joins the other processes, and holds the folder of the run for all of them."""
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import meeting

    set_up_compiler()  # What they agree on is compiled, too.
    with meeting.joined(cluster, config, workdir):
        yield


def train(
    config: Config, workdir: Path, values: flags.FlagValues, argv: Sequence[str], init_from: str
) -> int:
    """Trains, and prints how to resume a run that was stopped. Returns the exit status."""
    # Not before --help and bad input were answered: it loads JAX.
    from gpt_jax.devices import processes
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import loop

    set_up_compiler()
    with stopping_on_signals(processes.greatest) as stopper:
        stop = loop.train(
            config, workdir, values.tensorboard, values.resume_allow, stopper, init_from
        )
    if stop.is_resumable:
        command_line.tell(f"\nstopped by {stop.reason}: the same command resumes the run")
    if stop == ALREADY_FINISHED:
        print(f"{workdir} is finished: {config.train.steps} steps. For a new run of the same:")
        print(f"  {new_run_command(argv, workdir)}")
    return stop.status


def show_settings() -> None:
    """Prints every setting; one is changed by --config.<field>=<value>."""
    console = command_line.ResultConsole()
    for section in SECTIONS:
        field, *others = HEADINGS
        table = Table(Column(field, no_wrap=True), *others, box=None)
        for row in section_rows(section):
            table.add_row(*row)
        console.print(table, "")


def show_plan(config: Config, init_from: str) -> None:
    """Prints what training would take, and touches no folder."""
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import beginning
    from gpt_jax.training.plan import plan

    config = beginning.configured(config, init_from, None, Path())
    set_up_compiler()  # Training then finds the step compiled.
    command_line.tell("planning; where the devices are at hand, the step is compiled")
    table = Table("figure", Column("", justify="right"), "meaning", box=None)
    for row in plan_rows(plan(config)):
        table.add_row(*row)
    command_line.ResultConsole().print(table)


def plan_rows(plan: "Plan") -> list[tuple[str, str, str]]:
    """A row for every figure of a plan: its name, itself, what it means."""
    c, count = plan.config, f"{plan.config.train.batch_size} x {plan.config.model.block_size}"
    most = "at most (XLA)" if plan.at_hand else "at least (by counting)"
    rows = [
        ("parameters", f"{plan.parameters:,}", f"vocabulary {c.model.vocab_size:,}"),
        ("their memory", megabytes(plan.parameter_bytes), "float32"),
        ("the optimizer's", megabytes(plan.optimizer_bytes), c.optimizer.name),
        ("the average's", megabytes(plan.average_bytes), "optimizer.average_decay"),
        ("devices", f"{plan.devices:,}", " x ".join(f"{k} {n}" for k, n in plan.mesh.items())),
        ("state on each", megabytes(plan.state_bytes), "parameters, optimizer, average"),
        ("a step's on each", megabytes(plan.step_bytes), f"activations and gradients, {most}"),
        *(
            (f"sent along {axis}", megabytes(plan.sent[axis]), f"by each of {size} in a step")
            for axis, size in plan.mesh.items()
        ),
        (
            "tokens a step",
            f"{plan.tokens:,}",
            f"{count}, in {plan.microbatches} microbatch(es) one after another",
        ),
        ("TFLOP a step", f"{plan.flops / 1e12:,.3f}", "6 N + 12 L C T for each token"),
        ("counted", f"{plan.counted_flops / 1e12:,.3f}", "by XLA in the compiled program"),
        ("tokens", f"{plan.tokens * c.train.steps:,}", f"in {c.train.steps:,} steps"),
    ]
    unsaid = {f"sent along {axis}" for axis, size in plan.mesh.items() if size == 1}
    unsaid |= {"the average's"} if not plan.average_bytes else set()
    unsaid |= {"counted"} if not plan.counted_flops else set()
    return [row for row in rows if row[0] not in unsaid]


def megabytes(size: float) -> str:
    """A number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB"


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
