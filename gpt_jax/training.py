"""The training run: what happens, and in which order. Nothing numeric.

A step is an update. Every so often, and after the last one, the run evaluates, writes a line of its
log and saves a checkpoint, in this order: a run killed between two of them goes on from an older
checkpoint and drops the lines that came after it.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import jax

from gpt_jax import data, distributed, pretrained, sharding
from gpt_jax.checkpoint import Checkpoints
from gpt_jax.config import Config
from gpt_jax.finish import finish, sample_path
from gpt_jax.interruption import Interrupted, Interruption
from gpt_jax.metrics import Monitor
from gpt_jax.resume import check_same_run, record_changes, with_recorded_choices
from gpt_jax.run import Run, prepare
from gpt_jax.run_folder import Record, read_record
from gpt_jax.setting import UserError
from gpt_jax.tensorboard import Listener, check_installed, event_files
from gpt_jax.train_step import Metrics, TrainState, init_state


def train(
    config: Config,
    workdir: Path,
    tensorboard: bool = False,
    resume_allow: Sequence[str] = (),
    asked: Interruption | None = None,
    init_from: str = "",
) -> bool:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
      tensorboard: writes TensorBoard's event files, too.
      resume_allow: fields that may differ from those the run began with, see `check_same_run`.
      asked: whether to end early, see interruption.py.
      init_from: folder of GPT-2's weights that a new run begins from, absolute, see pretrained.py.

    Returns: False when the run was finished before, and nothing was done.

    Raises:
      UserError: for whatever the user can mend; see the modules this one calls.
      Interrupted: when asked to, after saving.
    """
    asked, workdir = asked or Interruption(), workdir.absolute()
    if tensorboard:
        check_installed()
    begun = distributed.together(lambda: _begin(config, workdir, resume_allow, init_from))
    distributed.check_same("what is to be trained", begun.told())
    if begun.finished:
        return False
    config, record, init_from = begun.config, begun.record, begun.init_from
    devices = sharding.start_devices(config.mesh, config.train.batch_size)
    run = prepare(config, workdir, record, devices, init_from)
    with (
        Checkpoints.for_training(workdir / "checkpoints") as checkpoints,
        distributed.ending_together(),
    ):
        state = _first_state(run, checkpoints, init_from)
        step = int(state.step)
        _check_not_over(step, config.train.steps, workdir)
        if record is not None and begun.changes:
            args = workdir, record, run.config, begun.changes, step
            distributed.first(lambda: record_changes(*args))
        with _listener(workdir, step, tensorboard) as listener:
            monitor = Monitor(
                workdir,
                step,
                config.train.steps,
                run.tokens_per_step,
                listener=listener,
                writes=distributed.is_first(),
            )
            _introduce(run, state, monitor)
            if not checkpoints.all() and (init_from or not config.train.steps):
                evaluate_beginning(run, state, checkpoints, monitor, asked)
            state = run_steps(run, state, checkpoints, monitor, asked)
            finish(run, state, monitor, asked)
    return True


@dataclasses.dataclass(frozen=True)
class _Begun:
    """What stands in the run's folder, and what is to be done there.

    Attributes:
      config: with the choices that were made when the run began.
      record: None for a new run.
      changes: what differs from the record, all of it allowed.
    """

    config: Config
    record: Record | None
    changes: list[dict[str, Any]]
    init_from: str
    finished: bool

    def told(self) -> Any:
        """In JSON."""
        return dataclasses.asdict(self) | {"config": self.config.to_dict()}


def _begin(config: Config, workdir: Path, resume_allow: Sequence[str], init_from: str) -> _Begun:
    """Reads the folder and writes nothing. Raises UserError as the modules it calls."""
    record = read_record(workdir)
    config = pretrained.configured(config, init_from, record, workdir)
    if record is None:
        return _Begun(config, None, [], init_from, finished=False)
    config = with_recorded_choices(config, record)
    changes = check_same_run(config, record, workdir, resume_allow)
    finished = sample_path(workdir, config.train.steps).exists()
    return _Begun(config, record, changes, record.init_from, finished)


def _check_not_over(step: int, steps: int, workdir: Path) -> None:
    if step > steps:
        raise UserError(
            f"train.steps = {steps}, but the run in {workdir} is at step {step} already: ask for "
            "more, or start a new one with another --workdir"
        )


def _first_state(run: Run, checkpoints: Checkpoints, init_from: str) -> TrainState:
    """From the newest checkpoint that is whole, or new, with the weights it begins from."""
    restored = checkpoints.restore_newest(run.abstract)
    if restored is not None:
        return cast(TrainState, restored)
    state = init_state(run.config, run.abstract)
    return jax.block_until_ready(pretrained.with_weights(state, init_from) if init_from else state)


def _listener(workdir: Path, step: int, tensorboard: bool) -> AbstractContextManager[Listener]:
    writes = tensorboard and distributed.is_first()
    return event_files(workdir, step) if writes else nullcontext(lambda entry: None)


def _introduce(run: Run, state: TrainState, monitor: Monitor) -> None:
    """Says what is about to happen: sizes, layout, how often the text will be read."""
    c, layout = run.config, run.layout
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    epochs = c.train.steps * run.tokens_per_step / len(run.train_tokens)
    monitor.say(
        f"{run.workdir}: {parameters:,} parameters, vocabulary {c.model.vocab_size}, corpus "
        f"{c.data.corpus} ({len(run.train_tokens):,} tokens, {len(run.val_tokens):,} held out)"
    )
    monitor.say(
        f"{c.train.steps:,} steps of {c.train.batch_size} x {c.model.block_size} = "
        f"{run.tokens_per_step:,} tokens: {epochs:.1f} epochs; "
        f"{layout.sharding.mesh.size} {run.device.platform} device(s), {layout.microbatches} "
        f"microbatch(es) of {layout.rows_per_device}, matrix products in {c.model.matmul_dtype}"
    )
    if step := int(state.step):
        monitor.say(f"goes on after step {step:,}")


def evaluate_beginning(
    run: Run, state: TrainState, checkpoints: Checkpoints, monitor: Monitor, asked: Interruption
) -> None:
    """Evaluates and saves the state before the first step: weights that are worth something.

    If training makes them worse, they stay the best checkpoint.

    Raises:
      Interrupted: when asked to end; nothing is saved then.
    """
    val_loss = run.evaluate(state.evaluated, asked.check)
    monitor.tell_beginning(val_loss)
    checkpoints.save(0, state, val_loss)
    checkpoints.confirm(0)


def run_steps(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    monitor: Monitor,
    asked: Interruption,
) -> TrainState:
    """Trains to the last step, or to the one that is in hand when asked to end, and saves it.

    Raises:
      Interrupted: when asked to.
    """
    c, step = run.config.train, int(state.step)
    lacks = distributed.first(lambda: monitor.lacks_evaluation(step))
    if lacks and _is_due(step, c.eval_every, c.steps):
        missed = run.evaluate(state.evaluated, asked.check)
        distributed.first(lambda: monitor.add_evaluation(step, missed))
        checkpoints.add_loss(step, missed)
    with monitor.bar():
        while step < c.steps:
            state, metrics = run.train_step(state, run.batch(step))
            step += 1
            evaluates = _is_due(step, c.eval_every, c.steps)
            logs = evaluates or _is_due(step, c.log_every, c.steps)
            saves = _is_due(step, c.checkpoint_every, c.steps)
            waits = run.device.platform == "cpu" or logs or saves
            if waits:
                _wait(metrics)
                _check_finite(run, state, step, checkpoints)
            monitor.step_done(step)
            with monitor.pause():
                val_loss = _evaluated(run, state, asked) if evaluates else None
                if logs:
                    monitor.tell(step, metrics, val_loss)
                # To agree on it costs a message to all, and must not hold up an accelerator.
                signum = asked.poll() if waits or not distributed.several() else 0
                if saves or signum:
                    checkpoints.save(step, state, val_loss)
            if signum or step == c.steps:
                checkpoints.confirm(step)
            if signum:
                raise Interrupted(signum)
    return state


def _evaluated(run: Run, state: TrainState, asked: Interruption) -> float | None:
    """The held-out loss; None when asked to end meanwhile: a resumed run evaluates first."""
    try:
        return run.evaluate(state.evaluated, asked.check)
    except Interrupted:
        return None


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _wait(metrics: Metrics) -> None:
    """Until the step is over.

    On CPU devices after every step: two programs with collectives must not overlap there. They
    meet in a rendezvous that blocks threads; with steps dispatched one after another XLA:CPU
    sticks within seconds and aborts the process after 40. The wait costs little beside a step.
    """
    jax.block_until_ready(metrics)


def _check_finite(run: Run, state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Ends a run that does not train any more; single bad steps were skipped and counted.

    Raises:
      UserError: after `train.max_skipped` steps in a row that were not finite.
    """
    c, skipped = run.config, int(state.skipped_in_a_row)
    if skipped < c.train.max_skipped:
        return
    offsets = data.batch_offsets(
        len(run.train_tokens), c.model.block_size, c.train.batch_size, c.train.seed, step - 1
    )
    saved = [one.step for one in checkpoints.all()]
    raise UserError(
        f"{skipped} steps in a row up to step {step} had a loss or a gradient that is not finite "
        f"(train.max_skipped = {c.train.max_skipped}); the windows of the last began at tokens "
        f"{', '.join(map(str, offsets[:8]))}{', ...' if len(offsets) > 8 else ''}; the last good "
        f"checkpoint is {saved[-1] if saved else 'none'}: go on from it with a lower "
        "--config.optimizer.learning_rate and --resume_allow=optimizer.learning_rate"
    )
