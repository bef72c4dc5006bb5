"""Damaged checkpoints and failed saves: see docs/reliability.md."""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.runs import damage
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.recovery import restore_newest


def state_of(step):
    return {
        "w": jnp.sin(jnp.arange(1000.0)) + step,
        "key": jax.random.key(step),
        "n": jnp.int32(step),
    }


def abstract():
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state_of(0))


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 2, the best, and 4, the newest."""
    folder = tmp_path / "checkpoints"
    with Checkpoints.for_training(folder) as checkpoints:
        for step, loss in ((2, 1.0), (4, 2.0)):
            checkpoints.save(step, state_of(step), loss)
    return folder


def largest_file(folder):
    """The file that holds the arrays."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(folder):
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(name):
    return lambda folder: (folder / name).write_bytes(b"")


def remove(name):
    def do(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def flip_every_array(folder):
    """Flips the last bit of every data file, so the test does not depend on the format."""
    for path in folder.rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def replace(name, content):
    return lambda folder: (folder / name).write_text(content)


def change_metadata(**values):
    def do(folder):
        path = folder / "_CHECKPOINT_METADATA"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return do


def hollow(folder):
    shutil.rmtree(folder)
    folder.mkdir()


FAULTS = {
    "a bit flipped": flip_a_bit,
    "bits flipped in all data files": flip_every_array,
    "the largest file cut in half": truncate,
    "no list of arrays": remove("state/_METADATA"),
    "an empty list of arrays": empty("state/_METADATA"),
    "no description": remove("_CHECKPOINT_METADATA"),
    "an empty description": empty("_CHECKPOINT_METADATA"),
    "a description of another kind": replace("_CHECKPOINT_METADATA", "[]"),
    "a description with an unknown field": change_metadata(other=1),
    "a description with a text as time": change_metadata(commit_timestamp_nsecs="now"),
    "a description of a time that is no date": change_metadata(commit_timestamp_nsecs=10**30),
    "a description with an unknown measurement": change_metadata(performance_metrics={"x": 1.5}),
    "a description whose handlers are a list": change_metadata(item_handlers=["state"]),
    "an empty loss": empty("metrics/metrics"),
    "no manifest": remove("state/manifest.ocdbt"),
    "no arrays": remove("state"),
    "no data files": remove("state/d"),
    "not committed": remove("commit_success.txt"),
    "only an empty folder": hollow,
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(folder, capsys, fault):
    FAULTS[fault](folder / "4")
    with Checkpoints.for_training(folder) as checkpoints:
        restored = restore_newest(checkpoints, abstract())
        assert int(restored["n"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{folder / '4'} cannot be restored (" in err
        assert "set aside as damaged-4" in err
        checkpoints.save(3, state_of(3), 3.0)
        assert [saved.step for saved in checkpoints.all()] == [2, 3]
    assert {path.name for path in folder.iterdir()} == {"2", "3", "damaged-4"}


def test_the_error_names_the_changed_array(folder):
    flip_a_bit(folder / "4")
    with (
        Checkpoints.for_reading(folder) as checkpoints,
        pytest.raises(UserError, match=r"/4 cannot be restored \(w: its digest differs"),
    ):
        checkpoints.restore(4, abstract())
    assert {path.name for path in folder.iterdir()} == {"2", "4"}


def test_a_renamed_checkpoint_is_set_aside(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=one)}
    with Checkpoints.for_training(folder) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, {"step": jnp.int32(step)}, float(step))
    (folder / "2").rename(folder / "7")
    with Checkpoints.for_training(folder) as checkpoints:
        assert restore_newest(checkpoints, expected)["step"] == 4
    assert "it was renamed: it holds step 2" in capsys.readouterr().err


def test_a_stray_folder_does_not_count_as_a_checkpoint(folder, capsys):
    (folder / "99999").mkdir()
    with Checkpoints.for_training(folder) as checkpoints:
        assert checkpoints.latest_step == 4
        assert int(restore_newest(checkpoints, abstract())["n"]) == 4
        assert "set aside as damaged-99999" in capsys.readouterr().err
        checkpoints.save(5, state_of(5), 3.0)
        assert checkpoints.latest_step == 5


def test_if_all_checkpoints_are_damaged_none_is_deleted(folder, capsys):
    for step in ("2", "4"):
        flip_a_bit(folder / step)
    with (
        Checkpoints.for_training(folder) as checkpoints,
        pytest.raises(UserError, match="holds only damaged checkpoints"),
    ):
        restore_newest(checkpoints, abstract())
    assert capsys.readouterr().err.count("cannot be restored") == 2
    assert {path.name for path in folder.iterdir()} == {"damaged-2", "damaged-4"}
    with (  # The same command does not start a new run.
        Checkpoints.for_training(folder) as checkpoints,
        pytest.raises(UserError, match="holds only damaged checkpoints"),
    ):
        restore_newest(checkpoints, abstract())


def test_a_read_error_is_not_taken_for_damage(folder, monkeypatch):
    """Nothing is renamed, whether the disk fails once or always."""
    with Checkpoints.for_training(folder) as checkpoints:
        load, broken = checkpoints._checkpointer.load_checkpointables, [True]

        def load_at_the_second_attempt(*args):
            if broken.pop(0) if broken else False:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return load(*args)

        monkeypatch.setattr(
            checkpoints._checkpointer, "load_checkpointables", load_at_the_second_attempt
        )
        assert int(restore_newest(checkpoints, abstract())["n"]) == 4

        def fail(*args):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        truncate(folder / "4")
        monkeypatch.setattr(damage, "open_file", fail)
        with pytest.raises(UserError, match=r"/4 cannot be read \(Input/output error\).*nothing"):
            restore_newest(checkpoints, abstract())
    assert {path.name for path in folder.iterdir()} == {"2", "4"}


def test_a_reader_gets_the_name_of_a_checkpoint_that_hides_the_others(folder):
    empty("metrics/metrics")(folder / "2")
    with pytest.raises(UserError, match=r"/2 cannot be restored \(metrics/metrics is not valid"):
        Checkpoints.for_reading(folder)
    assert {path.name for path in folder.iterdir()} == {"2", "4"}


def test_setting_aside_overwrites_nothing(folder):
    (folder / "damaged-4").mkdir()
    flip_a_bit(folder / "4")
    with Checkpoints.for_training(folder) as checkpoints:
        restore_newest(checkpoints, abstract())
    assert (folder / "damaged-4-again" / "state").exists()
    assert not any((folder / "damaged-4").iterdir())


def test_another_dtype_is_refused_and_nothing_is_set_aside(folder):
    wanted = abstract()
    wanted["w"] = wanted["w"].update(dtype=jnp.bfloat16)
    with (
        Checkpoints.for_training(folder) as checkpoints,
        pytest.raises(UserError, match=r"w is \(1000,\) float32 there and \(1000,\) bfloat16 here"),
    ):
        restore_newest(checkpoints, wanted)
    assert {path.name for path in folder.iterdir()} == {"2", "4"}


def test_too_little_space_prints_the_sizes_and_the_third_failure_ends_the_run(
    folder, monkeypatch, capsys
):
    usage = shutil.disk_usage(folder)._replace(free=1000)
    with Checkpoints.for_training(folder) as checkpoints:
        monkeypatch.setattr("gpt_jax.runs.checkpoint_files.shutil.disk_usage", lambda path: usage)
        checkpoints.save(5, state_of(5), 0.5)
        note = capsys.readouterr().err
        assert "the checkpoint of step 5 was not saved (4,8" in note
        assert "bytes are needed" in note
        assert "1,000 are free" in note
        checkpoints.save(6, state_of(6), 0.5)
        with pytest.raises(UserError, match=r"step 7 was not saved .* 3 in a row: .* from step 4"):
            checkpoints.save(7, state_of(7), 0.5)
    assert {path.name for path in folder.iterdir()} == {"2", "4"}


def test_a_save_after_a_failed_save_succeeds(folder, monkeypatch, capsys):
    class Failing:
        def result(self):
            raise OSError("no space left on device")

    with Checkpoints.for_training(folder) as checkpoints:
        original = checkpoints._checkpointer.save_checkpointables_async
        with monkeypatch.context() as patch:
            patch.setattr(
                checkpoints._checkpointer,
                "save_checkpointables_async",
                lambda *args, **kwargs: Failing(),
            )
            checkpoints.save(5, state_of(5), 0.5)
        assert checkpoints._checkpointer.save_checkpointables_async == original
        checkpoints.save(6, state_of(6), 0.7)
        assert "step 5 was not saved (no space left on device)" in capsys.readouterr().err
        assert [saved.step for saved in checkpoints.all()] == [6]


def test_a_good_save_begins_the_count_of_failed_saves_again(folder, monkeypatch, capsys):
    """Two that fail, a good one, and two more: never three in a row."""
    full = shutil.disk_usage(folder)._replace(free=1000)
    with Checkpoints.for_training(folder) as checkpoints:
        for step in (5, 6, 7, 8, 9):
            with monkeypatch.context() as patch:
                if step != 7:
                    usage = "gpt_jax.runs.checkpoint_files.shutil.disk_usage"
                    patch.setattr(usage, lambda path: full)
                checkpoints.save(step, state_of(step), 0.5)
                checkpoints.wait()
        assert capsys.readouterr().err.count("was not saved") == 4
        assert [saved.step for saved in checkpoints.all()] == [7]


def test_a_save_holds_the_given_arrays_even_if_they_are_donated_at_once(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.arange(1_000_000.0)
    with Checkpoints.for_training(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": x}, 1.0)
        for _ in range(20):
            x = step(x)
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)}
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(1, wanted)["w"], np.arange(1e6))
