"""A user's own reward: how it is named, what it may return, and what an error of it says."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from soak import arrays, log
from tuned import REWARDS, instructed, make_config, reward_file, train

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training import evaluation
from gpt_jax.training.stopping import FINISHED
from gpt_jax.tuning.reward import load_reward

RESUMES = "the same command resumes from the last checkpoint"


def write(folder: Path, *lines: str) -> str:
    """A file with these lines; the name of the function `score` in it."""
    (folder / "mine.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{folder / 'mine.py'}:score"


def returning(folder: Path, value: str) -> str:
    return write(folder, "import math", "import numpy as np", "def score(prompt, answer):",
                 f"    return {value}")  # fmt: skip


@pytest.mark.parametrize(
    ("value", "score"),
    [
        ("len(prompt) + 10 * len(answer)", 31.0),
        ("True", 1.0),
        ("np.float32(0.5)", 0.5),
        ("np.int64(-3)", -3.0),
        ("-0.25", -0.25),
    ],
)
def test_a_number_is_a_score(value: str, score: float, tmp_path: Path) -> None:
    found = load_reward(returning(tmp_path, value))("a", "bcd")
    assert found == score
    assert type(found) is float


@pytest.mark.parametrize(
    "value", ["None", "'1'", "[1.0]", "math.nan", "-math.inf", "1j", "10**400", "1e300"]
)
def test_what_is_no_finite_number_is_refused_with_the_prompt(value: str, tmp_path: Path) -> None:
    """1e300 is infinite in float32."""
    reward = load_reward(returning(tmp_path, value))
    with pytest.raises(UserError) as error:
        reward("Who\n?", "I.")
    words = r"mine\.py scores .* for the prompt 'Who\\n\?': return a number, finite in float32; "
    assert re.search(words + RESUMES, str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("is_absolute", [True, False])
def test_an_error_names_the_line_of_the_users_file_and_the_prompt(
    is_absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write(tmp_path, "import json", "def score(prompt, answer):",
                 "    return json.loads(answer)['x']")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    reward = load_reward(name if is_absolute else "mine.py:score")
    with pytest.raises(UserError) as error:
        reward("Who?", "not JSON")
    message = str(error.value)
    assert re.match(r"line 3 of \S*mine\.py fails for the prompt 'Who\?' \(JSONDecodeErr", message)
    assert message.endswith(f"correct the file; {RESUMES}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.py", "names no file '': give --config.tune.reward=my_reward.py:score"),
        ("mine.py:", "has no function ''"),
        (":score", "names no file ''"),
        ("no.py:score", "names no file 'no.py': give --config.tune.reward=my_reward.py:score"),
        ("mine.py:x", "has no function 'x': give"),
        ("mine.py:points", "has no function 'points': give"),
        ("folder:score", "names no file 'folder'"),
        ("data.json:score", "data.json is no Python file: give"),
        ("raises.py:score", r"line 2 of .*raises\.py fails \(ZeroDivisionError.*correct the file"),
        ("syntax.py:score", r"syntax\.py.* fails \(SyntaxError.*: correct the file"),
        ("exits.py:score", r"line 1 of .*exits\.py fails \(SystemExit.*: correct the file"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "points = 3", "def score(prompt, answer):", "    return 1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "raises.py").write_text("x = 0\ny = 1 / x\n")
    (tmp_path / "syntax.py").write_text("def score(:\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        load_reward(name)


def test_a_file_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returning(tmp_path, "2")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_reward("~/mine.py:score")("a", "b") == 2


def test_a_run_whose_reward_fails_keeps_its_last_checkpoint_and_resumes_from_it(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Bit for bit as if it had never failed."""
    origin = instructed(tmp_path_factory)
    good = reward_file(tmp_path).read_text()
    name = f"{tmp_path / 'my_reward.py'}:score"
    config = make_config(REWARDS | {"reward": name}, train={"steps": 4})
    assert train(config, tmp_path / "straight", origin) == FINISHED
    # Training draws 8 answers a step, each evaluation 128: it fails while it draws for step 3.
    count = 128 + 2 * 8 + 128 + 3
    bad = f"calls = []\n{good}    \n".replace("    return", "    calls.append(0)\n    return", 1)
    bad = bad.replace("    return", f"    assert len(calls) < {count}, 'enough'\n    return", 1)
    (tmp_path / "my_reward.py").write_text(bad)
    with pytest.raises(
        UserError, match=rf"line 4 of .*my_reward\.py fails for .*enough.*{RESUMES}"
    ):
        train(config, tmp_path / "run", origin)
    with Checkpoints.for_reading(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 2
    (tmp_path / "my_reward.py").write_text(good)
    assert train(config, tmp_path / "run") == FINISHED
    assert arrays(tmp_path / "run") == arrays(tmp_path / "straight")
    assert log(tmp_path / "run") == log(tmp_path / "straight")


def test_a_reward_runs_only_if_the_command_names_it_and_never_from_a_record(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    origin = instructed(tmp_path_factory)
    name = f"{reward_file(tmp_path)}:score"
    config = make_config(REWARDS | {"reward": name}, train={"steps": 2})
    train(config, tmp_path / "run", origin)
    (tmp_path / "my_reward.py").write_text("raise RuntimeError('it runs')\n")
    run = gpt_jax.load(tmp_path / "run")
    assert len(run.answers(["123+456="])) == 1
    assert math.isfinite(evaluation.evaluate(tmp_path / "run", "best").loss)
    instructions = {"objective": "instructions", "task": "sums"}
    assert train(make_config(instructions), tmp_path / "next", tmp_path / "run") == FINISHED
    without = make_config(REWARDS, train={"steps": 3})
    with pytest.raises(UserError, match=r"tune\.reward was .* and is now ''"):
        train(without, tmp_path / "run")
    with pytest.raises(UserError, match="it runs"):
        train(config.with_values("train", steps=3), tmp_path / "run")
    assert np.isfinite(
        [entry["reward"] for entry in log(tmp_path / "run") if "reward" in entry]
    ).all()
