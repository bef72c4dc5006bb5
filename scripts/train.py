"""Trains a GPT, or resumes a run that was stopped.

    python scripts/train.py --config=configs/tiny.py
    python scripts/train.py --config.data.corpus=my.txt --workdir=runs/mine
    python scripts/train.py --init_from=gpt2 --config.train.steps=0
    python scripts/train.py --config=configs/gpt2.py:small --plan
    python scripts/train.py --help_config
    python scripts/train.py --distributed --coordinator=HOST:PORT \\
        --num_processes=2 --process_id=0

The same command, given again, resumes from the newest checkpoint in the run's
folder.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import command_line
from absl import flags
from rich.table import Column, Table

from gpt_jax.config import ALLOWED, FIXED, FREE, SECTIONS, Cluster, Config, TrainConfig
from gpt_jax.config.table import section_rows
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.training.display import LABEL_WIDTH, RunConsole, facts, short_path, show
from gpt_jax.training.stopping import ALREADY_FINISHED, stopping_on_signals

if TYPE_CHECKING:
    from gpt_jax.training.plan import Plan


FLAGS: Sequence[command_line.Flag] = (
    ("workdir", str, "", "Folder of the run; default: in runs/, named after what it begins from."),
    ("init_from", str, "", "Begin from another run's folder, or from GPT-2's weights in theirs."),
    ("init_step", str, "best", "Checkpoint of that run: best, latest or the number of a step."),
    ("distill_from", str, "", "Runs to learn from, separated by commas, instead of the text."),
    (
        "resume_allow",
        list,
        [],
        "A setting that may differ from the run to resume, such as train.steps to train a finished "
        "run for longer. Can be given several times.",
    ),
    ("tensorboard", bool, False, "Also write TensorBoard's event files."),
    ("wandb", bool, False, "Also send the log to Weights & Biases."),
    ("plan", bool, False, "Show what training would take, and do not train."),
    ("help_config", bool, False, "Show every setting with its default and range."),
    ("distributed", bool, False, "Train with other processes, each started by this command."),
    ("coordinator", str, "", "HOST:PORT where process 0 listens to the others."),
    ("coordinator_bind", str, "", "Address at which process 0 listens; default: HOST."),
    ("num_processes", int, None, "Number of processes."),
    ("process_id", int, None, "Number of this process, from 0."),
    ("join_timeout", int, 300, "Seconds to wait for the other processes at the start."),
)
DEFAULT = " (the default)"
CHANGES = {FREE: "may change", ALLOWED: "with --resume_allow", FIXED: "fixed"}


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""

    def show_or_train(values: flags.FlagValues, words: list[str]) -> int | None:
        if values.help_config:
            show_settings()
            return None
        config, cluster = command_line.read_config(values), read_cluster(values)
        if values.distill_from:
            config = config.with_values("train", teachers=values.distill_from)
        init_from = values.init_from and str(absolute(values.init_from))
        if values.plan:
            if cluster:
                raise UserError(
                    "--plan needs no other process: leave out --distributed, and give "
                    "--config.mesh.data, fsdp and tensor"
                )
            show_plan(config, init_from, values.init_step)
            return None
        recipe = command_line.config_file(values)
        workdir = absolute(
            values.workdir or default_workdir(recipe, init_from, config.train.teachers)
        )
        if cluster is None or cluster.process_id == 0:
            show_beginning(workdir, recipe, values["config"].using_default_value)
        from gpt_jax.runs import one_writer  # Loads NumPy, so after the first lines.

        # Takes the folder before JAX is loaded; several processes must meet first.
        with meet(cluster, config, workdir) if cluster else one_writer(workdir):
            return train(config, workdir, values, argv, init_from)

    return command_line.run(show_or_train, FLAGS, argv, __doc__ or "", takes_config=True)


def show_beginning(workdir: Path, recipe: str, is_default: bool) -> None:
    """Prints where the run is and what it follows, before JAX is loaded, which takes seconds."""
    console = RunConsole()
    room = console.width - LABEL_WIDTH
    recipe = short_path(recipe, room - len(DEFAULT)) + DEFAULT * is_default
    rows = [("run", short_path(workdir, room)), ("recipe", recipe)]
    show(console, facts(rows, console.width))


def read_cluster(values: flags.FlagValues) -> Cluster | None:
    """The processes that train together; None without --distributed.

    Raises:
      UserError: if a flag is missing, or needs --distributed.
    """
    names = ("coordinator", "num_processes", "process_id", "coordinator_bind", "join_timeout")
    if values.distributed:
        given: list[Any] = [values[name].value for name in names]
        return Cluster(*given)
    if present := [name for name in names if values[name].present]:
        raise UserError(f"--{present[0]} is for several processes: give --distributed, too")
    return None


@contextlib.contextmanager
def meet(cluster: Cluster, config: Config, workdir: Path) -> Iterator[None]:
    """Joins the other processes, and takes the folder of the run for all of them."""
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import meeting

    set_up_compiler()  # The messages between processes are compiled, too.
    with meeting.joined(cluster, config, workdir):
        yield


def train(
    config: Config, workdir: Path, values: flags.FlagValues, argv: Sequence[str], init_from: str
) -> int:
    """Trains, and prints how to resume a run that was stopped. Returns the exit status."""
    # These load JAX, so they come after --help and bad input.
    from gpt_jax.devices import processes
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import loop
    from gpt_jax.tuning import make_maker

    set_up_compiler()
    maker = make_maker(config, bool(init_from))
    with stopping_on_signals(processes.greatest) as stopper:
        stop = loop.train(
            config, workdir, values.tensorboard, values.resume_allow, stopper, init_from,
            values.init_step, maker, values.wandb,
        )  # fmt: skip
    if stop.is_resumable:
        command_line.tell(
            f"\nstopped by {stop.reason} after step {stop.step:,}: the same command resumes the run"
        )
    if stop == ALREADY_FINISHED:
        show_end(config.train, stop.step, argv, workdir)
    return stop.status


def show_end(c: TrainConfig, step: int, argv: Sequence[str], workdir: Path) -> None:
    """Prints that the run is finished, the command that trains it for longer, and one like it."""
    if step < c.steps:
        print(f"The run is finished: it ended after step {step:,} of {c.steps:,}, because", end=" ")
        print(f"{c.patience} evaluation(s) in a row found no lower validation loss.", end=" ")
        longer = longer_run_command(argv, "train.patience", 2 * c.patience)
    else:
        print(f"The run is finished: {c.steps:,} steps.", end=" ")
        longer = longer_run_command(argv, "train.steps", 2 * c.steps or 1000)
    print(f"To train it for longer:\n  {longer}")
    print(f"To start a new one like it:\n  {new_run_command(argv, workdir)}")


def show_settings() -> None:
    """Prints every setting: its default, meaning and range, and whether it may change."""
    print("--config.<setting>=<value> changes one. In brackets: the allowed values, and")
    print("whether a resumed run may change it.\n")
    for section in SECTIONS:
        rows = [
            (f"{name}={default}", f"{meaning} [{allowed}; {CHANGES[change]}]")
            for name, default, allowed, meaning, change in section_rows(section)
        ]
        print(facts(rows, 80, 28), end="\n\n")


def show_plan(config: Config, init_from: str, init_step: str) -> None:
    """Prints what training would take. Writes no file."""
    from gpt_jax.devices.compiler import set_up_compiler
    from gpt_jax.training import beginning, origin
    from gpt_jax.training.plan import plan

    if init_from:
        config = beginning.configured(config, origin.open_origin(Path(init_from), init_step))
    set_up_compiler()  # Training then finds the step compiled.
    command_line.tell("planning (this compiles the step if the devices are here)")
    table = Table("figure", Column("", justify="right"), "meaning", box=None)
    for row in plan_rows(plan(config)):
        table.add_row(*row)
    command_line.ResultConsole().print(table)


def plan_rows(plan: "Plan") -> list[tuple[str, str, str]]:
    """A row for every figure of a plan: name, value, meaning. Leaves out what is zero."""
    c, axes = plan.config, plan.mesh.items()
    layout = f"{c.train.batch_size} x {c.model.block_size} in {plan.microbatches} microbatches"
    bound = "at most (XLA)" if plan.at_hand else "at least (by counting)"
    sent = [
        (f"sent over {axis}", megabytes(plan.sent[axis]), f"per step by each of {size} devices")
        for axis, size in axes
        if size > 1
    ]
    average = ("average memory", megabytes(plan.average_bytes), "optimizer.average_decay")
    counted = ("counted by XLA", f"{plan.counted_flops / 1e12:,.3f}", "in the compiled program")
    return [
        ("parameters", f"{plan.parameters:,}", f"vocabulary {c.model.vocab_size:,}"),
        ("parameter memory", megabytes(plan.parameter_bytes), "float32"),
        ("optimizer memory", megabytes(plan.optimizer_bytes), c.optimizer.name),
        *([average] if plan.average_bytes else []),
        ("devices", f"{plan.devices:,}", " x ".join(f"{axis} {size}" for axis, size in axes)),
        ("state per device", megabytes(plan.state_bytes), "parameters, optimizer, average"),
        ("step per device", megabytes(plan.step_bytes), f"batch, activations, gradients: {bound}"),
        *sent,
        ("tokens per step", f"{plan.tokens:,}", layout),
        ("TFLOP per step", f"{plan.flops / 1e12:,.3f}", "6 N + 12 L C T per token"),
        *([counted] if plan.counted_flops else []),
        ("tokens", f"{plan.tokens * c.train.steps:,}", f"in {c.train.steps:,} steps"),
    ]


def megabytes(size: float) -> str:
    """A number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB"


def default_workdir(recipe: str, init_from: str, teachers: str = "") -> Path:
    """runs/tiny for configs/tiny.py, runs/gpt2-small for configs/gpt2.py:small; runs/tiny-distilled
    for a run with teachers.

    runs/gpt2 for a run that begins from the weights in gpt2, runs/tiny-small for one that begins
    from the run in runs/tiny with configs/small.py.
    """
    path, _, argument = recipe.partition(":")
    name = "-".join(filter(None, [Path(path).stem, argument, "distilled" * bool(teachers)]))
    if not init_from:
        return Path("runs", name)
    source = Path(init_from)
    is_run = (source / "checkpoints").is_dir()
    return Path("runs", f"{source.name}-{name}" if is_run else source.name)


def longer_run_command(argv: Sequence[str], setting: str, value: int) -> str:
    """The same command line with another value of a setting, which the run is allowed to have."""
    allowed = f"--resume_allow={setting}"
    return shlex.join([sys.executable, *argv, f"--config.{setting}={value}", allowed])


def new_run_command(argv: Sequence[str], workdir: Path) -> str:
    """The same command line with a new folder: the next free number after `workdir`."""
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


def leave(status: int) -> NoReturn:
    """Ends this process.

    A single process does not wait for its threads: after a save has failed, one of Orbax's may wait
    forever (Orbax 0.12.8: a run on a full disk never ended in 1 of 5 tries).
    """
    processes = sys.modules.get("gpt_jax.devices.processes")
    if processes is not None and processes.several():
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # Its disk is full.
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv))
