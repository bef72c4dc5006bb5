"""Reading a checkpoint while the run trains, saves and deletes its older ones."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from gpt_jax.errors import UserError
from gpt_jax.runs import damage, recovery
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.recovery import restore_for_reading
from gpt_jax.training.state import TrainState


def state_of(step):
    n, params = jnp.int32(step), {"w": jnp.arange(1000.0) + step}
    return TrainState(n, params, {}, jax.random.key(0), n, n)


def abstract():
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state_of(0))


def train(folder, step):
    """What a run does meanwhile. Each loss is lower than the one before it."""
    with Checkpoints.for_training(folder) as checkpoints:
        checkpoints.save(step, state_of(step), 10.0 - step)


@pytest.fixture
def folder(tmp_path):
    """The checkpoint of step 2, the best, and of step 4, which is the newest."""
    folder = tmp_path / "checkpoints"
    with Checkpoints.for_training(folder) as checkpoints:
        for step, loss in ((2, 8.5), (4, 9.0)):
            checkpoints.save(step, state_of(step), loss)
    return folder


def meanwhile(monkeypatch, owner, name, after, do):
    """Calls `do` before or after each call of `owner.name`."""
    original = getattr(owner, name)

    def function(*args):
        if not after:
            do()
        result = original(*args)
        if after:
            do()
        return result

    monkeypatch.setattr(owner, name, function)


def saving(folder, steps):
    """A function that saves the next of `steps` at each call, as long as there are any."""
    left = iter(steps)

    def save_next():
        for step in left:
            return train(folder, step)

    return save_next


MOMENTS = {
    "after the folder is listed": (recovery, "checkpoint_folders", True),
    "while descriptions are checked": (damage, "check_descriptions", True),
    "before one is chosen": (Checkpoints, "find", False),
    "after one is chosen": (Checkpoints, "find", True),
    "before its digests are read": (Checkpoints, "_expected_digests", False),
    "before its arrays are read": (Checkpoints, "_load", False),
}


@pytest.mark.parametrize("which", ["best", "latest"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_chosen_again(
    folder, monkeypatch, moment, which
):
    meanwhile(monkeypatch, *MOMENTS[moment], saving(folder, [6]))
    saved, params = restore_for_reading(folder, which, abstract())
    assert (saved.step, saved.val_loss, params["w"][0]) == (6, 4.0, 6)


def test_no_other_checkpoint_takes_the_place_of_the_best_while_that_is_deleted(folder, monkeypatch):
    """The run has saved 6, which is the best now, and deleted 2, but not yet 4."""

    def save_and_delete_one():
        if not (folder / "6").exists():
            shutil.copytree(folder / "4", folder / "kept")
            train(folder, 6)
            (folder / "kept").rename(folder / "4")

    meanwhile(monkeypatch, Checkpoints, "find", False, save_and_delete_one)
    assert restore_for_reading(folder, "best", abstract())[0].step == 6


def test_a_step_that_is_gone_is_not_called_damaged(folder, monkeypatch):
    meanwhile(monkeypatch, Checkpoints, "find", True, saving(folder, [6]))
    with pytest.raises(UserError, match="has no step '4'"):
        restore_for_reading(folder, "4", abstract())


def test_what_is_damaged_is_said_at_once(folder, monkeypatch):
    reads = []
    meanwhile(monkeypatch, Checkpoints, "find", False, lambda: reads.append(1))
    shutil.rmtree(folder / "4" / "state")
    with pytest.raises(UserError, match=r"/4 cannot be restored .*it is damaged: choose another"):
        restore_for_reading(folder, "latest", abstract())
    assert len(reads) == 1


def test_a_run_that_replaces_every_checkpoint_too_fast_is_named(folder, monkeypatch):
    monkeypatch.setattr(recovery, "READS", 2)
    meanwhile(monkeypatch, Checkpoints, "find", True, saving(folder, [6, 7]))
    with pytest.raises(UserError, match=r"replaced the checkpoints in .* 2 times while one was"):
        restore_for_reading(folder, "best", abstract())
