"""Whole tiny runs of every objective: what they write, and that they resume bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from soak import arrays, differences, log, samples
from tuned import (
    INSTRUCTIONS,
    REWARDS,
    instructed,
    make_config,
    pairs_file,
    pretrained,
    reward_file,
    stop_after,
    train,
)

import gpt_jax
from gpt_jax.config import Config
from gpt_jax.devices import make_mesh, start_devices
from gpt_jax.errors import UserError
from gpt_jax.runs.record import read_record
from gpt_jax.training import loop
from gpt_jax.training.reference import read_reference
from gpt_jax.training.state import abstract_state
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED, Stop

KINDS = ("instructions", "preferences", "rewards", "updates")


class Example(NamedTuple):
    """A finished run, how it was made, and what it began from. Tests must not change it."""

    config: Config
    workdir: Path
    origin: Path


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Example]:
    """A finished run of each kind, made when a test asks for it first."""
    made: dict[str, Example] = {}

    def get(kind: str) -> Example:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            kinds_origin = pretrained if kind == "instructions" else instructed
            origin = kinds_origin(tmp_path_factory)
            config = make_config(settings(kind, folder), train={"steps": 6, "eval_every": 2})
            assert train(config, folder / "run", origin, draws=True) == FINISHED
            made[kind] = Example(config, folder / "run", origin)
        return made[kind]

    return get


def settings(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "instructions":
        return INSTRUCTIONS
    if kind == "preferences":
        return {"objective": "preferences", "data": str(pairs_file(folder))}
    reward = {"reward": f"{reward_file(folder)}:score", "kl_weight": 0.1}
    return REWARDS | reward | ({"updates": 2} if kind == "updates" else {})


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    """All losses of a log, by step and name."""
    found = {(entry["step"], key): entry.get(key) for entry in log(workdir)
             for key in ("train/loss", "val/loss", "val/corpus_loss")}  # fmt: skip
    return {place: loss for place, loss in found.items() if loss is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_has_a_log_a_picture_a_sample_and_a_template(
    kind: str, example: Callable[[str], Example]
) -> None:
    config, workdir, _ = example(kind)
    assert [entry["step"] for entry in log(workdir)] == [0, 1, 2, 3, 4, 5, 6]
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    found = samples(workdir)
    assert sorted(found) == ["0.txt", "2.txt", "4.txt", "6.txt"]
    for name, sample in found.items():
        prompt, _, answer = sample.partition("=")
        assert set(prompt) <= set("+0123456789")
        longest = 8 if name == "6.txt" else 200
        assert len(answer.rstrip("\n")) <= longest and "\n" not in answer.rstrip("\n")
    record = read_record(workdir)
    assert record is not None and record.template is not None
    assert record.template["assistant"] == ["", "\n"]
    assert (workdir / "reference").exists() == (config.tune.objective in ("preferences", "rewards"))
    assert train(config, workdir) == ALREADY_FINISHED


# TRL's names; of the others only `kl` and `clip_ratio` are shortened.
DPO = {
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected", "nll_loss"),
}
GRPO = {
    *("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "clip_ratio"),
    *("completions/mean_length", "completions/clipped_ratio"),
}


@pytest.mark.parametrize(
    ("kind", "trained", "evaluated"),
    [
        ("instructions", set(), set()),
        ("preferences", DPO, set()),
        ("rewards", GRPO, {"val/reward", "val/ended"}),
    ],
)
def test_the_log_has_trls_names(
    kind: str, trained: set[str], evaluated: set[str], example: Callable[[str], Example]
) -> None:
    for entry in log(example(kind).workdir):
        expected = {"step", "train/loss", "lr", "grad_norm"}
        if entry["step"] > 0:
            expected |= trained
        if entry["step"] % 2 == 0:
            expected |= {"val/loss", "val/corpus_loss"} | evaluated
        assert set(entry) == expected
        assert all(value is not None for key, value in entry.items() if entry["step"] > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_twice_and_resumed_equals_the_straight_run_bit_for_bit(
    kind: str, example: Callable[[str], Example], tmp_path: Path
) -> None:
    """What it began from is gone by then: the reference is the run's own."""
    config, straight, origin = example(kind)
    origin = shutil.copytree(origin, tmp_path / "origin")
    broken = tmp_path / straight.name
    assert stop_after(2, config, broken, origin) == Stop("SIGTERM", 143)
    shutil.rmtree(origin)
    # Answers at hand are not saved: the run first makes all their updates.
    step = 4 if config.tune.updates == 2 else 3
    assert stop_after(3, config, broken, begun=2).step == step
    assert train(config, broken) == FINISHED
    assert differences(broken, straight) == []


@pytest.mark.parametrize("kind", ("preferences", "updates"))
def test_a_killed_run_draws_the_same_answers_again(
    kind: str, example: Callable[[str], Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after step 4, before that is saved, and resumes from step 2."""
    config, straight, origin = example(kind)
    save = loop.Checkpoints.save

    def killed(self: Any, step: int, *rest: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        save(self, step, *rest)

    monkeypatch.setattr(loop.Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", origin)
    monkeypatch.undo()
    assert log(tmp_path / "run")[-1]["step"] == 4
    assert train(config, tmp_path / "run") == FINISHED
    assert differences(tmp_path / "run", straight) == []


@pytest.mark.parametrize("kind", ("instructions", "preferences", "rewards"))
@pytest.mark.parametrize(
    ("devices", "microbatch_size"), [(2, 4), (4, 2)], ids=("2 devices", "4 devices")
)
def test_losses_depend_on_neither_devices_nor_microbatches(
    kind: str,
    devices: int,
    microbatch_size: int,
    example: Callable[[str], Example],
    tmp_path: Path,
) -> None:
    """Here each device has one microbatch of a batch; the straight run has two."""
    config, straight, origin = example(kind)
    rare = {"eval_every": 6, "checkpoint_every": 6}
    config = config.with_values("train", microbatch_size=microbatch_size, **rare)
    train(config.with_values("mesh", cpu_devices=devices), tmp_path / "run", origin)
    found, expected = losses(tmp_path / "run"), losses(straight)
    assert {step for step, _ in found} == {0, 1, 2, 3, 4, 5, 6}
    for place, loss in found.items():
        assert loss == pytest.approx(expected[place], rel=1e-5, abs=1e-6)


def test_the_reference_is_what_the_run_began_with_and_stays(
    example: Callable[[str], Example],
) -> None:
    for kind in ("preferences", "rewards"):
        _, workdir, origin = example(kind)
        began, now = gpt_jax.load(origin).params, gpt_jax.load(workdir, "latest")
        np.testing.assert_array_equal(arrays_of_reference(workdir), flattened(began))
        assert not np.array_equal(flattened(now.params), flattened(began))


def arrays_of_reference(workdir: Path) -> np.ndarray:
    record = read_record(workdir)
    assert record is not None
    mesh = make_mesh(record.config.mesh, start_devices(record.config.mesh, 8))
    return flattened(read_reference(workdir, abstract_state(record.config, mesh)))


def flattened(params: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(params)])


def test_a_run_whose_reference_is_gone_says_so(
    example: Callable[[str], Example], tmp_path: Path
) -> None:
    config, _, origin = example("preferences")
    stop_after(2, config, tmp_path / "run", origin)
    shutil.rmtree(tmp_path / "run" / "reference")
    with pytest.raises(UserError, match="reference"):
        train(config, tmp_path / "run")


def test_another_objective_or_other_data_is_refused_on_resume(
    example: Callable[[str], Example],
) -> None:
    config, workdir, _ = example("preferences")
    for values, words in (
        ({"objective": "instructions"}, "tune.objective was 'preferences' and is now"),
        ({"data": "other.jsonl"}, "tune.data was .* and is now .*other.jsonl'"),
        ({"template": "play"}, "tune.template was '' and is now 'play'"),
    ):
        with pytest.raises(UserError, match=words):
            train(config.with_values("tune", **values), workdir)


def test_data_may_move_but_not_change(example: Callable[[str], Example], tmp_path: Path) -> None:
    config, straight, origin = example("preferences")
    data, moved = tmp_path / "pairs.jsonl", tmp_path / "moved.jsonl"
    shutil.copy(config.tune.data, data)
    config = config.with_values("tune", data=str(data))
    stop_after(2, config, tmp_path / "run", origin)
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(reversed(lines)), encoding="utf-8")
    with pytest.raises(UserError, match=r"pairs\.jsonl is not what the run in"):
        train(config, tmp_path / "run")
    data.unlink()
    moved.write_text("".join(lines), encoding="utf-8")
    config = config.with_values("tune", data=str(moved))
    assert train(config, tmp_path / "run", resume_allow=["tune.data"]) == FINISHED
    assert arrays(tmp_path / "run") == arrays(straight)


def test_a_run_resumes_with_the_template_of_its_record(tmp_path: Path) -> None:
    """Whatever has become of the file that it was read from."""
    own = {"system": ["", ""], "user": ["", ""], "assistant": ["0", "\n"]}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own), encoding="utf-8")
    config = make_config(INSTRUCTIONS | {"template": str(path)})
    assert train(config, tmp_path / "straight") == FINISHED
    for name in ("edited", "gone"):
        path.write_text(json.dumps(own), encoding="utf-8")
        stop_after(2, config, tmp_path / name)
        path.write_text(json.dumps(own | {"assistant": ["", "99"]}), encoding="utf-8")
        if name == "gone":
            path.unlink()
        assert train(config, tmp_path / name) == FINISHED
        assert arrays(tmp_path / name) == arrays(tmp_path / "straight")
