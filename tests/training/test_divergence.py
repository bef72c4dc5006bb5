"""A run that diverges saves nothing that is not finite, and names the checkpoint to resume from."""

import jax
import jax.numpy as jnp
import pytest
from steps import share_steps

from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.text import play
from gpt_jax.training import loop
from gpt_jax.training import run as run_module
from gpt_jax.training.stopping import FINISHED


@pytest.fixture
def config(small, tmp_path):
    """Ten steps on a small text, saved after 4, 8 and 10, with averaged parameters."""
    (tmp_path / "corpus.txt").write_text(play.write()[:4000], encoding="utf-8")
    config = small.with_values("model", vocab_size=0)
    config = config.with_values("data", corpus=str(tmp_path / "corpus.txt"))
    config = config.with_values("optimizer", average_decay=0.5, schedule="constant")
    config = config.with_values("sample", max_new_tokens=2, prompt="The ")
    return config.with_values("train", checkpoint_every=4, eval_every=4, max_skipped=3)


def change_after(monkeypatch, step, part, change):
    """Changes all floating-point numbers in a part of the state after a step."""
    share_steps(monkeypatch)
    make = run_module.jit_train_step

    def changed(leaf):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.device_put(change(leaf), leaf.sharding) if is_float else leaf

    def make_changing(*args):
        train_step = make(*args)

        def changing(state, batch):
            state, metrics = train_step(state, batch)
            if int(state.step) == step:
                state = state.replace(**{part: jax.tree.map(changed, getattr(state, part))})
            return state, metrics

        return changing

    monkeypatch.setattr(run_module, "jit_train_step", make_changing)


def saved(workdir):
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        return [one.step for one in checkpoints.all()]


@pytest.mark.parametrize("number", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("part", ["params", "opt_state", "average"])
def test_arrays_that_are_not_finite_are_never_saved(config, tmp_path, monkeypatch, part, number):
    """Whatever the losses are. They stay finite if only the average is not."""
    with monkeypatch.context() as patch:
        change_after(patch, 8, part, lambda x: x + number)
        with pytest.raises(UserError) as error:
            loop.train(config, tmp_path / "run")
    message = str(error.value)
    assert message.startswith(f"after step 8, {part}/")
    assert "holds NaN or infinity; the last good checkpoint is 4: resume from it with" in message
    assert saved(tmp_path / "run") == [4]
    allowed = ["optimizer.learning_rate"]
    share_steps(monkeypatch)
    lower = config.with_values("optimizer", learning_rate=1e-3)
    assert loop.train(lower, tmp_path / "run", resume_allow=allowed) == FINISHED


@pytest.mark.parametrize("average_decay", [0.0, 0.5])
@pytest.mark.parametrize(("eval_every", "good"), [(2, "2"), (10, "none")])
def test_the_error_names_the_checkpoint_before_the_parameters_grew_too_large(
    config, tmp_path, monkeypatch, eval_every, good, average_decay
):
    """The numbers after step 4 are finite, so they are saved, but no loss of theirs is.

    The average of the parameters still has a finite loss. It is the best one, so only that
    checkpoint is kept.
    """
    change_after(monkeypatch, 4, "params", lambda x: x * 1e37)
    good = "none" if average_decay else good
    config = config.with_values("train", checkpoint_every=2, eval_every=eval_every)
    config = config.with_values("optimizer", average_decay=average_decay)
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path / "run")
    then = "begin again" if good == "none" else "resume from it"
    assert "3 steps in a row up to step 7" in str(error.value)
    assert (
        f"the last good checkpoint is {good}: remove {tmp_path / 'run' / 'checkpoints' / '4'}, "
        f"which diverged, then {then} with a lower --config.optimizer.learning_rate"
    ) in str(error.value)


def test_a_run_that_skips_steps_does_not_replace_its_newest_checkpoint(
    config, tmp_path, monkeypatch
):
    """A save is due after step 8. Its parameters are finite, but too large for a finite loss."""
    change_after(monkeypatch, 7, "params", lambda x: x * 1e37)
    config = config.with_values("train", max_skipped=2)
    with pytest.raises(UserError, match=r"2 steps .* step 9 .* checkpoint is 4: resume from it"):
        loop.train(config, tmp_path / "run")
    assert saved(tmp_path / "run") == [4]
