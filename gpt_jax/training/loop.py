"""The training loop: what happens, and in which order. Nothing numeric.

A step is one update. At some steps, and after the last one, the run evaluates, writes a line of its
log and saves a checkpoint, in this order. A run killed between two of these resumes from an older
checkpoint and drops the log lines that came after it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax

from gpt_jax.config import Config
from gpt_jax.devices import processes, start_devices
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.text.windows import batch_offsets
from gpt_jax.training.beginning import first_state, open_run
from gpt_jax.training.finish import finish
from gpt_jax.training.meeting import ending_together
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.run import Run, prepare
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Metrics
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED, Stop, Stopped, Stopper
from gpt_jax.training.summary import introduce
from gpt_jax.training.tensorboard import Listener, check_installed, event_files


def train(
    config: Config,
    workdir: Path,
    tensorboard: bool = False,
    resume_allow: Sequence[str] = (),
    stopper: Stopper | None = None,
    init_from: str = "",
) -> Stop:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
      tensorboard: also writes TensorBoard's event files.
      resume_allow: settings that may differ from those the run began with, see `check_same_run`.
      stopper: can ask the run to stop early, see stopping.py.
      init_from: absolute folder of GPT-2's weights that a new run begins from, see beginning.py.

    Returns: why training ended; everything up to then is saved.

    Raises:
      UserError: for anything the user can mend; see the modules this one calls.
    """
    if tensorboard:
        check_installed()
    opened = open_run(config, workdir.absolute(), resume_allow, init_from)
    if opened.is_finished:
        return ALREADY_FINISHED
    devices = start_devices(opened.config.mesh, config.train.batch_size)
    run = prepare(opened.config, workdir.absolute(), opened.record, devices, opened.init_from)
    with (
        Checkpoints.for_training(run.workdir / "checkpoints") as checkpoints,
        ending_together(),
    ):
        state = first_state(run, checkpoints, opened)
        with _listener(run, int(state.step), tensorboard) as listener:
            monitor = Monitor(
                run.workdir,
                int(state.step),
                config.train.steps,
                run.tokens_per_step,
                listener=listener,
            )
            introduce(run, state, monitor)
            return _to_the_end(run, state, checkpoints, monitor, stopper or Stopper())


def _listener(run: Run, step: int, tensorboard: bool) -> AbstractContextManager[Listener]:
    writes = tensorboard and processes.is_first()
    return event_files(run.workdir, step) if writes else nullcontext(lambda entry: None)


def _to_the_end(
    run: Run, state: TrainState, checkpoints: Checkpoints, monitor: Monitor, stopper: Stopper
) -> Stop:
    """All that is left of a run: its steps, then its curve and a sample."""
    try:
        # Weights from elsewhere are worth something before the first step; so is a run of no steps.
        is_new = not checkpoints.all()
        if is_new and (run.init_from or not run.config.train.steps):
            evaluate_beginning(run, state, checkpoints, monitor, stopper)
        state = run_steps(run, state, checkpoints, monitor, stopper)
        finish(run, state, monitor, stopper)
    except Stopped as stopped:
        return stopped.stop
    return FINISHED


def evaluate_beginning(
    run: Run, state: TrainState, checkpoints: Checkpoints, monitor: Monitor, stopper: Stopper
) -> None:
    """Evaluates and saves the state before the first step.

    If training only makes the weights worse, this stays the best checkpoint.

    Raises:
      Stopped: when asked to stop; nothing is saved then.
    """
    val_loss = run.evaluate(state.evaluated, stopper.check)
    monitor.tell_beginning(val_loss)
    checkpoints.save(0, state, val_loss)
    checkpoints.confirm(0)


def run_steps(
    run: Run, state: TrainState, checkpoints: Checkpoints, monitor: Monitor, stopper: Stopper
) -> TrainState:
    """Trains to the last step, or finishes and saves the current one when asked to stop.

    Raises:
      Stopped: when asked to stop.
    """
    c, step = run.config.train, int(state.step)
    _catch_up(run, state, checkpoints, monitor, stopper)
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
                val_loss = _evaluated(run, state, monitor, stopper) if evaluates else None
                if logs:
                    monitor.tell(step, metrics, val_loss)
                # Processes agree by a message to all, which must not hold up an accelerator.
                stop = stopper.poll() if waits or not processes.several() else None
                if saves or stop:
                    _save(step, state, val_loss, checkpoints, monitor)
            if stop or step == c.steps:
                checkpoints.confirm(step)
            if stop:
                raise Stopped(stop)
    return state


def _catch_up(
    run: Run, state: TrainState, checkpoints: Checkpoints, monitor: Monitor, stopper: Stopper
) -> None:
    """Evaluates the state a run resumes from, if it stopped before that evaluation was over."""
    c, step = run.config.train, int(state.step)
    if _is_due(step, c.eval_every, c.steps) and monitor.lacks_evaluation(step):
        val_loss = run.evaluate(state.evaluated, stopper.check)
        monitor.add_evaluation(step, val_loss)
        checkpoints.add_loss(step, val_loss)


def _evaluated(run: Run, state: TrainState, monitor: Monitor, stopper: Stopper) -> float | None:
    """The validation loss; None when asked to stop meanwhile: the resumed run evaluates first."""
    try:
        with monitor.doing("evaluating"):
            return run.evaluate(state.evaluated, stopper.check)
    except Stopped:
        return None


def _save(
    step: int, state: TrainState, val_loss: float | None, checkpoints: Checkpoints, monitor: Monitor
) -> None:
    with monitor.doing("saving"):
        checkpoints.save(step, state, val_loss)


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _wait(metrics: Metrics) -> None:
    """Waits for the end of the step.

    CPU devices need this after every step, because two programs with collectives must not overlap
    there: their rendezvous blocks threads. With steps dispatched one after another XLA:CPU gets
    stuck within seconds and aborts the process after 40. The wait costs little beside a step.
    """
    jax.block_until_ready(metrics)


def _check_finite(run: Run, state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Ends a run that no longer trains; single steps that are not finite were skipped and counted.

    Raises:
      UserError: after `train.max_skipped` steps in a row that were not finite.
    """
    c, skipped = run.config, int(state.skipped_in_a_row)
    if skipped < c.train.max_skipped:
        return
    offsets = batch_offsets(
        len(run.train_tokens), c.model.block_size, c.train.batch_size, c.train.seed, step - 1
    )
    saved = [one.step for one in checkpoints.all()]
    raise UserError(
        f"{skipped} steps in a row up to step {step} had a loss or a gradient that is not finite "
        f"(train.max_skipped = {c.train.max_skipped}); the windows of the last began at tokens "
        f"{', '.join(map(str, offsets[:8]))}{', ...' if len(offsets) > 8 else ''}; the last good "
        f"checkpoint is {saved[-1] if saved else 'none'}: resume from it with a lower "
        "--config.optimizer.learning_rate and --resume_allow=optimizer.learning_rate"
    )
