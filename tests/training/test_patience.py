"""A run ends when its validation loss has not improved for `train.patience` evaluations."""

import math
import signal

import pytest
import soak
from steps import share_steps

from gpt_jax.config.config import TrainConfig
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoint_list import Saved
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.text import play
from gpt_jax.training import loop
from gpt_jax.training.patience import evaluations_without_progress, last_step
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED, Stop, Stopper

LOSSES = {2: 3.0, 4: 2.5, 6: 2.7, 8: 2.6, 10: 2.4}  # By step.


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([], 0),
        ([3.0], 0),
        ([3.0, 2.0, 1.0], 0),
        ([3.0, 2.0, 2.5, 2.1], 2),
        ([3.0, 2.0, 2.5, 1.9], 0),
        ([2.0, 2.0], 1),
        ([2.0, None, math.nan, math.inf], 3),
        ([None, 2.0], 0),
    ],
)
def test_evaluations_count_since_the_lowest_loss(losses, count):
    assert evaluations_without_progress(losses) == count


def test_the_log_says_which_step_is_the_last(tmp_path):
    assert last_step(tmp_path, TrainConfig(patience=1)) == 3000
    lines = ('{"step": 4, "val/loss": 2}', '{"step": 8, "val/loss": null}', '{"step": 9}')
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    assert last_step(tmp_path, TrainConfig(patience=0)) == 3000
    assert last_step(tmp_path, TrainConfig(patience=1)) == 8
    assert last_step(tmp_path, TrainConfig(patience=1), until=7) == 3000
    assert last_step(tmp_path, TrainConfig(patience=2)) == 3000


@pytest.fixture(scope="module")
def config(small, tmp_path_factory):
    """Ten steps, evaluated after every second and saved after every fourth; it ends after 8."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(play.write()[:4000], encoding="utf-8")
    config = small.with_values("model", vocab_size=0).with_values("data", corpus=str(path))
    config = config.with_values("train", eval_every=2, checkpoint_every=4, log_every=1)
    config = config.with_values("train", patience=2, sample_tokens=5)
    return config.with_values("sample", max_new_tokens=20, prompt="The ")


def prepare(monkeypatch):
    """Runs share their compiled steps, and find the losses of LOSSES."""
    share_steps(monkeypatch)

    def evaluate(self, state):
        self.stopper.check()
        return {"loss": LOSSES[int(state.step)]}

    monkeypatch.setattr(loop.Loop, "evaluate", evaluate)


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    prepare(monkeypatch)


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run that nobody stops. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        assert loop.train(config, workdir) == FINISHED
    return workdir


def checkpoints(workdir):
    with Checkpoints.for_reading(workdir / "checkpoints") as found:
        return found.all()


def test_a_run_out_of_patience_ends_as_a_finished_one(config, straight, tmp_path, capsys):
    assert [entry["step"] for entry in soak.log(straight)] == [*range(1, 9)]
    assert checkpoints(straight) == [Saved(4, 2.5), Saved(8, 2.6)]
    assert (straight / "loss.png").exists()
    lengths = {name: len(text) for name, text in soak.samples(straight).items()}
    assert lengths == {"2.txt": 10, "4.txt": 10, "6.txt": 10, "8.txt": 25}
    stop = loop.train(config, straight)
    assert (stop, stop.step) == (ALREADY_FINISHED, 8)
    assert loop.train(config, tmp_path / "run") == FINISHED
    told = " ".join(capsys.readouterr().out.split())
    reason = "because 2 evaluation(s) in a row found no lower validation loss (train.patience)"
    assert f"ended after step 8 of 10, {reason}; the best checkpoint is step 4" in told


def test_the_last_state_is_saved_even_if_no_save_is_due(config, tmp_path):
    assert loop.train(config.with_values("train", checkpoint_every=5), tmp_path / "run") == FINISHED
    assert checkpoints(tmp_path / "run")[-1] == Saved(8, 2.6)


@pytest.mark.parametrize("step", range(1, 9))
def test_a_stopped_run_ends_after_the_same_step(config, straight, tmp_path, monkeypatch, step):
    stopper, workdir, wait, waits = Stopper(), tmp_path / "run", loop._wait, []

    def wait_and_stop(metrics):
        waits.append(1)
        stopper.signum = signal.SIGTERM if len(waits) == step else 0
        wait(metrics)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_wait", wait_and_stop)
        assert loop.train(config, workdir, stopper=stopper) == Stop("SIGTERM", 143)
    assert loop.train(config, workdir) == FINISHED
    assert not soak.differences(workdir, straight)
    assert loop.train(config, workdir) == ALREADY_FINISHED


def test_more_patience_lets_an_ended_run_continue_if_allowed(config, tmp_path):
    workdir, patient = tmp_path / "run", config.with_values("train", patience=3)
    assert loop.train(config, workdir) == FINISHED
    with pytest.raises(UserError, match=r"train\.patience was 2 .* --resume_allow=train\.patience"):
        loop.train(patient, workdir)
    assert loop.train(patient, workdir, resume_allow=["train.patience"]) == FINISHED
    assert loop.train(patient, tmp_path / "straight") == FINISHED
    assert soak.log(workdir)[-1]["step"] == 10
    assert not soak.differences(workdir, tmp_path / "straight")


def test_more_steps_do_not_let_a_run_out_of_patience_continue(config, tmp_path, monkeypatch):
    workdir, longer = tmp_path / "run", config.with_values("train", steps=20)
    assert loop.train(config, workdir) == FINISHED
    monkeypatch.setattr(loop.Loop, "after_step", lambda *args: pytest.fail("it trains"))
    assert loop.train(longer, workdir, resume_allow=["train.steps"]) == FINISHED
    assert loop.train(longer, workdir) == ALREADY_FINISHED


def test_less_patience_ends_a_run_at_its_next_evaluation(config, tmp_path, monkeypatch):
    """Not at an evaluation before its checkpoint, though that has a sample, and it is killed."""
    workdir, stopper, wait = tmp_path / "run", Stopper(), loop._wait
    patient = config.with_values("train", patience=0)

    def stop_in_the_seventh(metrics):
        waits.append(1)
        stopper.signum = signal.SIGTERM if len(waits) == 7 else 0
        wait(metrics)

    waits = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_wait", stop_in_the_seventh)
        assert loop.train(patient, workdir, stopper=stopper) == Stop("SIGTERM", 143)
    impatient = config.with_values("train", patience=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Loop, "run_steps", lambda *args: exec("raise KeyboardInterrupt"))
        loop.train(impatient, workdir, resume_allow=["train.patience"])
    assert read_record(workdir).config.train.patience == 1
    assert loop.train(impatient, workdir) == FINISHED
    assert soak.log(workdir)[-1]["step"] == 8
