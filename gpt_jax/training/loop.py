"""The training loop: what happens, and in which order. Nothing numeric.

`train` prepares a run, `Loop` trains it. A step is one update. After some steps, and after the last
one, the run evaluates, writes a line of its log and a sample, and saves a checkpoint, in this
order. A run killed between two of these resumes from an older checkpoint and drops the log lines
and samples that came after it. stopping.py and patience.py say how a run ends early.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from gpt_jax.config import Config
from gpt_jax.devices import pinned_settings, processes, start_devices
from gpt_jax.errors import note
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training.beginning import first_state, open_run
from gpt_jax.training.divergence import check_arrays, check_steps
from gpt_jax.training.finish import finish
from gpt_jax.training.meeting import ending_together
from gpt_jax.training.monitor import Monitor
from gpt_jax.training.objective import LANGUAGE, Maker
from gpt_jax.training.origin import BEST
from gpt_jax.training.run import Run, prepare
from gpt_jax.training.samples import sample_on_the_way
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Metrics
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED, Stop, Stopped, Stopper
from gpt_jax.training.summary import introduce, stand_in
from gpt_jax.training.tensorboard import check_tensorboard, event_files
from gpt_jax.training.weights_and_biases import check_wandb, wandb_run

Figures = dict[str, float]


@pinned_settings()
def train(
    config: Config,
    workdir: Path,
    tensorboard: bool = False,
    resume_allow: Sequence[str] = (),
    stopper: Stopper | None = None,
    init_from: str = "",
    init_step: str = BEST,
    maker: Maker = LANGUAGE,
    wandb: bool = False,
) -> Stop:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
      tensorboard: also writes TensorBoard's event files.
      resume_allow: settings that may differ from those the run began with, see `check_same_run`.
      stopper: can ask the run to stop early.
      init_from: absolute folder that a new run begins from: another run, or GPT-2's weights.
      init_step: which checkpoint of the other run: best, latest or the number of a step.
      maker: of what the run optimises; must be that of `config.tune.objective`.
      wandb: also sends the log to Weights & Biases.

    Returns: why training ended. The state at that moment is saved.

    Raises:
      UserError: for everything the user can correct; see the modules this one calls.
    """
    if tensorboard:
        check_tensorboard()
    if wandb:
        check_wandb()
    stopper, workdir = stopper or Stopper(), workdir.absolute()
    stopper.limit(config.train.max_minutes)
    opened = open_run(config, workdir, resume_allow, init_from, init_step)
    if (sentence := stand_in(opened.record)) and processes.is_first():
        note(sentence)
    if opened.last_step is not None:
        return dataclasses.replace(ALREADY_FINISHED, step=opened.last_step)
    devices = start_devices(opened.config.mesh, opened.config.train.batch_size)
    run = prepare(opened.config, workdir, opened.record, devices, opened.origin, maker)
    with Checkpoints.for_training(workdir / "checkpoints") as checkpoints, ending_together():
        state = first_state(run, checkpoints, opened)
        step, c = int(state.step), run.config.train
        with (
            event_files(workdir, step, tensorboard and processes.is_first()) as to_tensorboard,
            wandb_run(workdir, run.config, wandb) as to_wandb,
        ):
            monitor = Monitor(
                workdir, step, c, run.tokens_per_step, listeners=(to_tensorboard, to_wandb),
                bits_per_byte=None if run.is_tuned else run.bits_per_byte,
                shown=run.objective.shown,
            )  # fmt: skip
            introduce(run, state, monitor)
            return Loop(run, checkpoints, monitor, stopper).finish_run(state)


def _is_due(step: int, every: int, last: int) -> bool:
    """Whether what happens every `every` steps, and at the last, happens after `step`."""
    return step % every == 0 or step == last


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop of a run, and what it works with.

    Methods that evaluate raise Stopped if the run is asked to stop while they do.
    """

    run: Run
    checkpoints: Checkpoints
    monitor: Monitor
    stopper: Stopper

    def finish_run(self, state: TrainState) -> Stop:
        """Does all that is left of the run: its steps, then its curve and a sample."""
        try:
            with self.monitor.bar:
                if self.evaluates(0) and not self.checkpoints.all():
                    self.evaluate_beginning(state)
                else:
                    self.evaluate_if_missing(state)
                state = self.run_steps(state)
                finish(self.run, self.checkpoints, state, self.monitor, self.stopper)
        except Stopped as stopped:
            return dataclasses.replace(stopped.stop, step=self.checkpoints.latest_step)
        return FINISHED

    def evaluate_beginning(self, state: TrainState) -> None:
        """Evaluates and saves the state before the first step.

        If training only makes the weights worse, this stays the best checkpoint.
        """
        figures = self.evaluate(state)
        self.monitor.record_beginning(figures)
        self.sample(0, state)
        self.stopper.check()
        self.save(0, state, figures["loss"])
        self.checkpoints.confirm(0)

    def evaluate_if_missing(self, state: TrainState) -> None:
        """Evaluates the state that a run resumes from, if the run stopped before that was done.

        Writes its sample again, see `drop_samples`.
        """
        step = int(state.step)
        if not self.evaluates(step):
            return
        if self.monitor.lacks_evaluation(step):
            figures = self.evaluate(state)
            self.monitor.add_evaluation(step, figures)
            self.checkpoints.add_loss(step, figures["loss"])
        self.sample(step, state)
        self.stopper.check()

    def run_steps(self, state: TrainState) -> TrainState:
        """Trains to the last step. Returns the final state."""
        step = int(state.step)
        while not self.is_last(step):
            state, metrics = self.run.train_step(state, self.run.objective.batch(step, state))
            step += 1
            self.after_step(step, state, metrics)
        return state

    def evaluates(self, step: int) -> bool:
        """Whether the run evaluates after `step` updates.

        Given weights are evaluated before the first step, and so is a run of no steps.
        """
        c = self.run.config.train
        if step == 0:
            return self.run.origin is not None or not c.steps
        return _is_due(step, c.eval_every, c.steps)

    def is_last(self, step: int) -> bool:
        """Whether the run ends after `step` updates, which have been evaluated if that is due."""
        c = self.run.config.train
        may_run_out = c.patience > 0 and self.evaluates(step)
        return step == c.steps or (may_run_out and self.monitor.is_out_of_patience())

    def after_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Does what is due after `step` updates. A run that is asked to stop saves first."""
        c = self.run.config.train
        evaluates = self.evaluates(step)
        logs = evaluates or step % c.log_every == 0
        saves = self.is_save_due(step, state)
        waits = self.run.device.platform == "cpu" or logs or saves
        if waits:
            _wait(metrics)
            check_steps(self.run, self.checkpoints, step, state)
        self.monitor.step_done(step)
        with self.monitor.pause():
            figures = self.evaluate_unless_stopped(state) if evaluates else None
            if logs:
                self.monitor.record(step, metrics, figures)
            is_last = self.is_last(step)
            if figures:
                self.sample(step, state)
            # Several processes agree by a message, which must not hold up an accelerator.
            may_stop = self.run.objective.may_stop(step) and (waits or not processes.several())
            stop = self.stopper.poll() if may_stop else None
            if saves or stop or is_last:
                self.save(step, state, figures["loss"] if figures else None)
        if stop or is_last:
            self.checkpoints.confirm(step)
        if stop:
            raise Stopped(stop)

    def is_save_due(self, step: int, state: TrainState) -> bool:
        """Whether to save after `step` updates.

        While steps are skipped, only the last one is saved: the run may be diverging, and the
        newest checkpoint is the way back.
        """
        c = self.run.config.train
        is_due = _is_due(step, c.checkpoint_every, c.steps)
        return is_due and (step == c.steps or not int(state.skipped_in_a_row))

    def save(self, step: int, state: TrainState, val_loss: float | None) -> None:
        """Saves the log and the state. Raises UserError if an array of the state is not finite."""
        with self.monitor.doing("saving"):
            check_arrays(self.checkpoints, step, state)
            self.monitor.flush()  # The log is never behind a checkpoint.
            self.checkpoints.save(step, state, val_loss)

    def evaluate(self, state: TrainState) -> Figures:
        """The figures of an evaluation; `loss` is the validation loss, in nats per token."""
        with self.monitor.doing("evaluating"):
            return self.run.evaluate(state.evaluated, self.stopper.check)

    def evaluate_unless_stopped(self, state: TrainState) -> Figures | None:
        """The same; None if asked to stop first. The resumed run then evaluates."""
        try:
            return self.evaluate(state)
        except Stopped:
            return None

    def sample(self, step: int, state: TrainState) -> None:
        """Writes the sample of an evaluation; the last one has another, see finish.py."""
        if self.run.config.train.sample_tokens and not self.is_last(step):
            with self.monitor.doing("sampling"):
                sample_on_the_way(self.run, step, state, self.stopper)


def _wait(metrics: Metrics) -> None:
    """Waits for the end of the step.

    CPU devices need this after every step, because two programs with collectives must not overlap
    there: their rendezvous blocks threads. If steps are dispatched one after another, XLA:CPU gets
    stuck within seconds and aborts the process after 40. The wait costs little beside a step.
    """
    jax.block_until_ready(metrics)
