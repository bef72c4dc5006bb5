"""How a run begins or resumes: what its folder holds, what it starts from, its first state."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from gpt_jax.config import Config, GPTConfig
from gpt_jax.devices import processes
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.runs import (
    RECORD_FILES,
    Record,
    check_same_run,
    read_record,
    record_changes,
    with_recorded_choices,
)
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.recovery import restore_newest
from gpt_jax.training.distillation import teacher_folders
from gpt_jax.training.origin import BEST, Origin, open_origin, read_origin, recorded_origin
from gpt_jax.training.patience import last_step
from gpt_jax.training.reference import keep_reference
from gpt_jax.training.run import Run
from gpt_jax.training.samples import drop_samples, sample_path
from gpt_jax.training.state import TrainState, init_state, init_state_from

# The settings of a model that its weights do not determine.
NOT_OF_SHAPE = {"dropout", "zero_init", "matmul_dtype", "attention", "remat", "scan_layers"}
SHAPE = [f.name for f in dataclasses.fields(GPTConfig) if f.name not in NOT_OF_SHAPE]

# A change of these makes a finished run unfinished: its last step may be another one, or its sample
# out of date, for example if the tokenizer was replaced.
UNFINISHING = ("train.steps", "train.patience", *RECORD_FILES)


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a run's folder holds, and what a run there will do."""

    config: Config  # With the choices made when the run began, if it did.
    record: Record | None = None  # None for a new run.
    changes: Sequence[dict[str, Any]] = ()  # The differences from the record, all of them allowed.
    origin: Origin | None = None  # What the run begins or began from; None = random parameters.
    last_step: int | None = None  # Of a finished run; None if something is left to do.


def open_run(
    config: Config,
    workdir: Path,
    resume_allow: Sequence[str] = (),
    init_from: str = "",
    init_step: str = BEST,
) -> Opened:
    """Reads a run's folder and checks that `config` can start or resume it; writes nothing.

    For the arguments see `loop.train`.

    Raises:
      UserError: if the configuration contradicts what is there, or a file cannot be read.
    """
    opened = _read_folder(config, workdir, resume_allow, init_from, init_step)
    as_json = dataclasses.asdict(opened) | {"config": opened.config.to_dict()}
    processes.check_same("what is to be trained", as_json)
    return opened


@processes.on_all
def _read_folder(
    config: Config, workdir: Path, resume_allow: Sequence[str], init_from: str, init_step: str
) -> Opened:
    if config.tune.data:
        config = config.with_values("tune", data=str(absolute(config.tune.data)))
    teachers = ",".join(map(str, teacher_folders(config.train.teachers)))
    config = config.with_values("train", teachers=teachers)
    record = read_record(workdir)
    if record is None or _never_began(workdir):
        origin = open_origin(Path(init_from), init_step) if init_from else None
        return Opened(configured(config, origin), origin=origin)
    check_same_origin(record, workdir, init_from, init_step)
    origin = recorded_origin(record)
    config = configured(config, origin)
    config = with_recorded_choices(config, record)
    changes = check_same_run(config, record, workdir, resume_allow)
    last = last_step(workdir, config.train)
    is_finished = sample_path(workdir, last).exists() and not any(
        change["field"] in UNFINISHING for change in changes
    )
    return Opened(config, record, changes, origin, last if is_finished else None)


def _never_began(workdir: Path) -> bool:
    """Whether no run in the folder has logged or saved a step.

    The first try may have failed for lack of memory. Its record must not bind the next one.
    """
    log, saved = workdir / "metrics.jsonl", workdir / "checkpoints"
    return not any(saved.glob("*")) and not (log.is_file() and log.stat().st_size)


def check_same_origin(record: Record, workdir: Path, init_from: str, init_step: str) -> None:
    """Raises UserError if the run in `workdir` began from something else than is asked for."""
    if init_from not in ("", record.init_from):
        raise UserError(
            f"{workdir} holds a run that began from {record.init_from or 'random parameters'}, not "
            f"from {init_from}: leave out --init_from to resume it, or use another --workdir"
        )
    if init_step not in (BEST, str(record.init_step)):
        raise UserError(
            f"{workdir} holds a run that began from step {record.init_step} of "
            f"{record.init_from or 'no other run'}: leave out --init_step={init_step} to resume "
            "it, or use another --workdir"
        )


def configured(config: Config, origin: Origin | None) -> Config:
    """`config` with the shape and the tokenizer of what the run begins from; its text, if tuned.

    Settings at their default follow it; others must agree with it, except the tokenizer, which may
    lie elsewhere.

    Raises:
      UserError: for settings that contradict it.
    """
    if origin is None:
        return config
    if config.tune.objective != "language" and config.data.corpus == Config().data.corpus:
        config = config.with_values("data", corpus=origin.corpus or config.data.corpus)
    return _following(config, origin.model, origin.tokenizer, origin.folder)


def _following(config: Config, shape: GPTConfig, tokenizer: str, source: str) -> Config:
    default = Config()
    of_weights = {name: getattr(shape, name) for name in SHAPE}
    unlike = [
        f"model.{name} = {given!r} instead of {value!r}"
        for name, value in of_weights.items()
        if (given := getattr(config.model, name)) not in (value, getattr(default.model, name))
    ]
    if unlike:
        raise UserError(
            f"the configuration contradicts the weights of {source} ({'; '.join(unlike)}): leave "
            "these settings at their defaults, and they will follow the weights"
        )
    if config.data.tokenizer == default.data.tokenizer:
        config = config.with_values("data", tokenizer=tokenizer)
    return config.with_values("model", **of_weights)


def first_state(run: Run, checkpoints: Checkpoints, opened: Opened) -> TrainState:
    """The state of the newest intact checkpoint or, for a new run, before the first update.

    Removes the samples of later steps, and records what has changed for a run that resumes.

    Raises:
      UserError: if no checkpoint is intact, or the run is already past `train.steps`.
    """
    restored: TrainState | None = restore_newest(checkpoints, run.abstract)
    state = restored or _kept(run, _new_state(run, opened.origin))
    step, steps = int(state.step), run.config.train.steps
    if step > steps:
        raise UserError(
            f"train.steps = {steps}, but the run in {run.workdir} is already at step {step}: give "
            "more steps, or start a new run with another --workdir"
        )
    drop_samples(run.workdir, step, last_step(run.workdir, run.config.train, until=step))
    if opened.record is not None:
        changes = list(opened.changes)
        processes.on_first(record_changes)(run.workdir, opened.record, changes, step)
    return state


def _new_state(run: Run, origin: Origin | None) -> TrainState:
    if origin is None:
        return jax.block_until_ready(init_state(run.config, run.abstract))
    params = read_origin(origin, run.config, run.abstract, run.layout.sharding.mesh)
    return jax.block_until_ready(init_state_from(run.config, run.abstract, params))


def _kept(run: Run, state: TrainState) -> TrainState:
    """The state before the first update, after its parameters are kept if they must be."""
    if run.objective.needs_reference:
        keep_reference(run.workdir, state)
    return state
