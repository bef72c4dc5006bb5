"""A run writes a sample at every evaluation, and only the one at the end makes it finished."""

import errno

import jax
import pytest
import soak
from steps import share_steps

from gpt_jax.runs.record import read_record
from gpt_jax.sampling import decode
from gpt_jax.text import play
from gpt_jax.training import beginning, loop, samples
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
    """Runs share their compiled steps."""
    share_steps(monkeypatch)


@pytest.fixture(scope="module")
def config(small, tmp_path_factory):
    """Ten steps; samples of 30 tokens after 4 and 8, and one of 20 after 10."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(play.write()[:4000], encoding="utf-8")
    config = small.with_values("model", vocab_size=0).with_values("data", corpus=str(path))
    config = config.with_values("train", eval_every=4, checkpoint_every=4, sample_tokens=30)
    # With a constant learning rate, a run of more steps begins as one of fewer does.
    config = config.with_values("optimizer", schedule="constant")
    return config.with_values("sample", max_new_tokens=20, prompt="The ")


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run that is left alone."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        share_steps(patch)
        assert loop.train(config, workdir) == FINISHED
    return workdir


class Killed(BaseException):
    """Ends a run as kill -9 does: nothing is written after it."""


def killed_in(monkeypatch, module, name, *arguments, call=1, **options):
    """Trains a run that is killed instead of calling `module.name` for the `call`-th time."""
    original, calls = getattr(module, name), []

    def kill(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, kill)
        loop.train(*arguments, **options)


def test_a_sample_at_every_evaluation_is_the_last_sample_of_a_run_that_ends_there(
    config, straight, tmp_path
):
    found = soak.samples(straight)
    lengths = {name: len(text) for name, text in found.items()}
    assert lengths == {"4.txt": 35, "8.txt": 35, "10.txt": 25}  # The prompt and a line break, too.
    for step in (4, 8):
        shorter = config.with_values("train", steps=step)
        shorter = shorter.with_values("sample", max_new_tokens=30)
        assert loop.train(shorter, tmp_path / str(step)) == FINISHED
        assert soak.samples(tmp_path / str(step))[f"{step}.txt"] == found[f"{step}.txt"]


def test_no_tokens_means_no_sample_but_the_last(config, straight, tmp_path):
    assert loop.train(config.with_values("train", sample_tokens=0), tmp_path / "run") == FINISHED
    assert soak.samples(tmp_path / "run") == {"10.txt": soak.samples(straight)["10.txt"]}


def test_samples_on_the_way_compile_nothing_that_the_last_does_not(config, straight, tmp_path):
    def programs():
        return [f._cache_size() for f in (decode.draw_tokens, decode.prefill, decode.uniforms)]

    decode.draw_tokens.clear_cache()
    assert loop.train(config.with_values("train", sample_tokens=0), tmp_path / "few") == FINISHED
    before = programs()
    assert loop.train(config, tmp_path / "many") == FINISHED
    assert programs() == before
    assert before[0] == 1


def test_a_run_whose_last_step_becomes_that_of_a_sample_is_not_finished(
    config, tmp_path, monkeypatch
):
    """However early it is killed: before the change is recorded, and after."""
    workdir, shorter = tmp_path / "run", config.with_values("train", steps=4)
    killed_in(monkeypatch, loop.Loop, "save", config, workdir, call=2)
    assert sorted(soak.samples(workdir)) == ["4.txt", "8.txt"]
    allowed = {"resume_allow": ["train.steps"]}
    killed_in(monkeypatch, beginning, "record_changes", shorter, workdir, **allowed)
    assert read_record(workdir).config.train.steps == 10
    killed_in(monkeypatch, loop, "introduce", shorter, workdir, **allowed)
    assert read_record(workdir).config.train.steps == 4
    assert loop.train(shorter, workdir) == FINISHED
    assert (workdir / "loss.png").exists()
    assert len(soak.samples(workdir)["4.txt"]) == 25
    assert loop.train(shorter, workdir) == ALREADY_FINISHED


def test_a_longer_run_has_the_samples_of_a_straight_one(config, straight, tmp_path):
    """The last sample of the shorter run becomes one on the way."""
    workdir = tmp_path / "run"
    assert loop.train(config.with_values("train", steps=4), workdir) == FINISHED
    assert loop.train(config, workdir, resume_allow=["train.steps"]) == FINISHED
    assert soak.samples(workdir) == soak.samples(straight)


def test_samples_that_an_older_run_left_do_not_finish_a_new_one(config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    (workdir / "samples").mkdir(parents=True)
    (workdir / "samples" / "10.txt").write_text("from another run")
    killed_in(monkeypatch, loop, "finish", config, workdir)
    assert loop.train(config, workdir) == FINISHED


def test_a_run_resumes_with_the_samples_of_a_straight_one_wherever_it_is_killed(
    config, straight, tmp_path, monkeypatch
):
    """Before the first checkpoint, before the first sample, and before the second checkpoint."""
    workdir = tmp_path / "run"
    killed_in(monkeypatch, loop.Loop, "save", config, workdir)
    assert [*soak.samples(workdir)] == ["4.txt"]
    (workdir / "samples" / "4.txt").write_text("what the killed run would not have written")
    killed_in(monkeypatch, samples, "_draw", config, workdir)
    assert soak.samples(workdir) == {}
    killed_in(monkeypatch, loop.Loop, "save", config, workdir, call=2)
    killed_in(monkeypatch, loop.Loop, "run_steps", config, workdir)
    assert sorted(soak.samples(workdir)) == ["4.txt"]
    assert loop.train(config, workdir) == FINISHED
    assert soak.samples(workdir) == soak.samples(straight)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "memory is short ("),
    ],
)
def test_a_sample_that_cannot_be_written_costs_only_a_note(
    config, straight, tmp_path, monkeypatch, capsys, error, reason
):
    write, paths = samples._write, []

    def fail_once(path, text):
        paths.append(path)
        if len(paths) == 1:
            raise error
        write(path, text)

    monkeypatch.setattr(samples, "_write", fail_once)
    assert loop.train(config, tmp_path / "run") == FINISHED
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: there is no sample of step 4 ({reason}")
    assert note.endswith("); training continues")
    assert sorted(soak.samples(tmp_path / "run")) == ["10.txt", "8.txt"]
    assert soak.log(tmp_path / "run") == soak.log(straight)
