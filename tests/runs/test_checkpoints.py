"""Saving and restoring, bit for bit and on other meshes; which checkpoints are kept."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import target

from gpt_jax.devices.device_count import start_devices
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.errors import UserError
from gpt_jax.runs import checkpoint_files
from gpt_jax.runs.checkpoint_files import METRICS
from gpt_jax.runs.checkpoint_list import Saved, choose
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training.state import abstract_state, init_state


def abstract_on(config, **mesh):
    config = config.with_values("mesh", **mesh)
    devices = start_devices(config.mesh, config.train.batch_size)
    return abstract_state(config, make_mesh(config.mesh, devices))


def bits(state):
    return jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))


@pytest.mark.parametrize("mesh", [{}, {"cpu_devices": 4, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_state_is_restored_bit_for_bit_on_any_mesh(small, tmp_path, mesh):
    abstract = abstract_on(small)
    state = init_state(small, abstract)
    with Checkpoints.for_training(tmp_path) as checkpoints:
        checkpoints.save(0, state, 1.5)
    target = abstract_on(small, **mesh)
    with Checkpoints.for_training(tmp_path) as checkpoints:
        restored = checkpoints.restore(0, target)
    jax.tree.map(np.testing.assert_array_equal, bits(restored), bits(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


STATE = {"w": jnp.arange(3.0)}


def saved(folder, losses):
    """Saves a checkpoint with each of the losses. Returns those that are kept."""
    with Checkpoints.for_training(folder) as checkpoints:
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(step, STATE, loss)
        return checkpoints.all()


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([3.0, 2.0, 2.5, 2.2], [2, 4]),
        ([3.0, 2.0, 1.0], [3]),
        ([1.0, math.nan, 2.0], [1, 3]),
        ([2.0, None, math.inf, None], [1, 4]),
        ([None, None], [2]),
    ],
)
def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path, losses, kept):
    found = saved(tmp_path, losses)
    assert [checkpoint.step for checkpoint in found if math.isfinite(checkpoint.val_loss)] == [
        step for step in kept if losses[step - 1] is not None
    ]
    assert [int(path.name) for path in sorted(tmp_path.iterdir())] == kept


def test_a_resumed_run_keeps_the_best_checkpoint(tmp_path):
    saved(tmp_path, [3.0, 1.0, math.nan])
    with Checkpoints.for_training(tmp_path) as checkpoints:
        assert checkpoints.find("best") == Saved(2, 1.0)
        checkpoints.save(4, STATE, 2.0)
        checkpoints.save(5, STATE, None)
        assert [saved.step for saved in checkpoints.all()] == [2, 5]


def test_a_loss_added_later_can_make_a_checkpoint_the_best(tmp_path):
    saved(tmp_path, [2.0, None])
    with Checkpoints.for_training(tmp_path) as checkpoints:
        checkpoints.add_loss(2, 1.0)
        assert checkpoints.find("best") == Saved(2, 1.0)
        checkpoints.save(3, STATE, 3.0)
        assert [saved.step for saved in checkpoints.all()] == [2, 3]


def edited(path, **values):
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


DAMAGED_LOSSES = {
    "no file": lambda path: path.unlink(),
    "no folder": lambda path: shutil.rmtree(path.parent),
    "empty": lambda path: path.write_text(""),
    "not JSON": lambda path: path.write_bytes(b"\xff\x00{"),
    "a list": lambda path: path.write_text("[1.0]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "no loss": lambda path: path.write_text("{}"),
    "another key": lambda path: edited(path, val_loss="gone", loss=1.0),
    "another number": lambda path: edited(path, val_loss=9.0),
    "no number": lambda path: edited(path, val_loss="1.0"),
    "that of another step": lambda path: shutil.copy(path.parents[2] / "3" / METRICS, path),
    "another check": lambda path: edited(path, crc32=7),
}


@pytest.mark.parametrize("when", ["between two runs", "during one"])
@pytest.mark.parametrize("damage", DAMAGED_LOSSES)
def test_a_checkpoint_whose_loss_is_damaged_is_never_deleted(tmp_path, damage, when):
    """It could be the best. Orbax cannot list a file that is not a JSON object; it is set aside."""
    folder = tmp_path / "run" / "checkpoints"
    saved(folder, [3.0, 1.0, 2.0])
    if when == "between two runs":
        DAMAGED_LOSSES[damage](folder / "2" / METRICS)
    with Checkpoints.for_training(folder) as checkpoints:
        if when == "during one":
            DAMAGED_LOSSES[damage](folder / "2" / METRICS)
        for step in (4, 5, 6):
            checkpoints.save(step, STATE, float(step))
        checkpoints.wait()
        names = {path.name for path in folder.iterdir()}
        assert names in ({"2", "3", "6"}, {"damaged-2", "3", "6"})
        if "2" in names:
            with pytest.raises(UserError, match="the loss of step 2 cannot be read: choose latest"):
                checkpoints.find("best")
            assert checkpoints.find("2") == Saved(2, math.inf, is_known=False)
            checkpoints.restore(2, target((3,)))


@pytest.mark.parametrize("damage", DAMAGED_LOSSES)
def test_the_log_gives_a_damaged_loss_back(tmp_path, damage):
    folder = tmp_path / "run" / "checkpoints"
    saved(folder, [3.0, 1.0, 2.0])
    log = ['{"step": 1, "val/loss": 3.0}', "torn", "[]", '{"step": 2, "val/loss": 1.0}']
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([*log, '{"step": 3}']))
    DAMAGED_LOSSES[damage](folder / "2" / METRICS)
    with Checkpoints.for_training(folder) as checkpoints:
        assert checkpoints.find("best") == Saved(2, 1.0)
        checkpoints.save(4, STATE, 4.0)
        assert [saved.step for saved in checkpoints.all()] == [2, 4]


def test_a_loss_without_a_check_is_that_of_an_older_version(tmp_path):
    saved(tmp_path, [3.0, 1.0, 2.0])
    edited(tmp_path / "2" / METRICS, crc32="gone")
    with Checkpoints.for_training(tmp_path) as checkpoints:
        assert checkpoints.find("best") == Saved(2, 1.0)


def test_find_accepts_best_latest_and_the_kept_steps(tmp_path):
    saved(tmp_path / "run with space", [3.0, 2.0, 2.5])
    with Checkpoints.for_training(tmp_path / "run with space") as checkpoints:
        assert checkpoints.find("best") == Saved(2, 2.0)
        assert checkpoints.find("latest") == checkpoints.find("3") == Saved(3, 2.5)
        assert checkpoints.latest_step == 3
        with pytest.raises(UserError, match="no step '1': the steps are 2 and 3; give"):
            checkpoints.find("1")


@pytest.mark.parametrize(
    ("steps", "words"), [([60], "the only step is 60;"), ([20, 40, 60], "are 20, 40 and 60;")]
)
def test_the_error_for_a_missing_step_lists_the_steps(steps, words):
    with pytest.raises(UserError, match=words):
        choose([Saved(step, 1.0) for step in steps], "999", Path("run"))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with Checkpoints.for_training(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step == 0
        with pytest.raises(UserError, match="no checkpoint: train first"):
            checkpoints.find("best")


def test_relative_folders_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(Path("relative"), [1.0])
    with Checkpoints.for_training(Path("relative")) as checkpoints:
        assert checkpoints.latest_step == 1


@pytest.mark.parametrize(
    "name", ["a[0]b", "[!a]", "a*", "a?", "**", "a b", "a\nb", "{a}", "%2F", "~", "é", "gs:a", "'"]
)
def test_a_folder_of_any_name_that_is_utf8_and_has_no_backslash_works(tmp_path, name):
    """A name is no pattern, even if another folder matches it."""
    saved(tmp_path / "ab" / "run", [2.0])
    saved(tmp_path / name / "run", [1.0, 2.0])
    with Checkpoints.for_training(tmp_path / name / "run") as checkpoints:
        assert checkpoints.all() == [Saved(1, 1.0), Saved(2, 2.0)]
        np.testing.assert_array_equal(checkpoints.restore(1, target((3,)))["w"], STATE["w"])


def test_restoring_into_another_shape_is_refused(tmp_path):
    saved(tmp_path, [1.0])
    with (
        Checkpoints.for_training(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"\(3,\) float32 there and \(4,\) float32 here"),
    ):
        checkpoints.restore(1, target((4,)))


def test_a_checkpoint_is_flushed_before_an_older_one_is_deleted(tmp_path, monkeypatch):
    """All its files and folders, and its name; else a power cut could lose both."""
    events, flush, delete = [], checkpoint_files.flush_path, checkpoint_files.delete
    monkeypatch.setattr(checkpoint_files, "flush_path", lambda p: (events.append(p), flush(p)))
    monkeypatch.setattr(
        checkpoint_files, "delete", lambda p: (events.append(f"delete {p.name}"), delete(p))
    )
    with Checkpoints.for_training(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.ones(3)}, 1 / step)
    for step in (1, 2):
        before = events[: events.index(f"delete {step}")]
        new = tmp_path / str(step + 1)
        assert {new, tmp_path} <= {*before[before.index(new) :]}
        names = {Path(event).name for event in before if Path(event).is_relative_to(new)}
        assert {"commit_success.txt", "_CHECKPOINT_METADATA", "metrics", "state"} <= names
    assert {*(tmp_path / "3").rglob("*")} <= {*events}
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_save_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave a checkpoint with a name and empty files, which hides others."""
    early, flush, final = set(), checkpoint_files.flush_path, tmp_path / "1"

    def record(path):
        if not final.exists():
            early.add(path.relative_to(tmp_path / "1.orbax-checkpoint-tmp"))
        flush(path)

    monkeypatch.setattr(checkpoint_files, "flush_path", record)
    with Checkpoints.for_training(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)}, 1.0)
    written = [path for path in final.rglob("*") if path.is_file() and path.stat().st_size]
    assert {path.relative_to(final) for path in written} - {Path("commit_success.txt")} <= early
    assert len(early) > 5


def test_of_equal_losses_the_newest_checkpoint_is_the_best(tmp_path):
    with Checkpoints.for_training(tmp_path) as checkpoints:
        for step, loss in ((1, 1.0), (2, 1.0), (3, 2.0)):
            checkpoints.save(step, {"w": jnp.ones(3)}, loss)
        assert [saved.step for saved in checkpoints.all()] == [2, 3]


def test_the_rest_of_an_interrupted_deletion_is_removed(tmp_path):
    (tmp_path / "7.deleted.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with Checkpoints.for_training(tmp_path):
        assert not [*tmp_path.iterdir()]
