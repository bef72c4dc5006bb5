"""pairs.py: preferences of a run's own answers, as JSON lines."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pairs
import pytest
from soak import log
from tuned import instructed, make_config, train

import gpt_jax
from gpt_jax.training.stopping import FINISHED
from gpt_jax.tuning.examples import read_preferences
from gpt_jax.tuning.tasks import Verdict
from gpt_jax.tuning.tasks.sums import Sums
from gpt_jax.tuning.tasks.task import Prompt

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return instructed(tmp_path_factory)


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of sums that also this small model pleases now and then."""

    def judge(self: Sums, prompt: Prompt, answer: str) -> Verdict:
        return Verdict({"sum": len(answer) == len(prompt.answer), "first": answer[:1] == "1"})

    monkeypatch.setattr(Sums, "judge", judge)


@pytest.fixture
def run(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*flags: str, workdir: Path = tuned) -> tuple[int, str, str]:
        small = ["--task=sums", "--num_prompts=30", "--num_answers=4"]
        status = pairs.main(["scripts/pairs.py", f"--workdir={workdir}", *small, *flags])
        return status, *capsys.readouterr()

    return call


def test_a_better_answer_is_chosen_over_a_worse_one(run: Run, tuned: Path, tmp_path: Path) -> None:
    status, out, err = run("--seed=3")
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert (status, out) == (0, "")
    assert err.endswith(f"{len(lines)} pairs of 30 prompts written to pairs.jsonl\n")
    assert 10 < len(lines) < 30
    prompts = {prompt.text: prompt for prompt in (Sums().prompt(3, i, False) for i in range(30))}
    model = gpt_jax.load(tuned)
    groups = model.answer_groups(list(prompts), 4, seed=3)
    drawn = {text: {a.text for a in group if a.ended}
             for text, group in zip(prompts, groups, strict=True)}  # fmt: skip
    for row in map(json.loads, lines):
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert {row["chosen"], row["rejected"]} <= drawn[row["prompt"]]
        scores = [Sums().judge(prompts[row["prompt"]], row[name]).score
                  for name in ("chosen", "rejected")]  # fmt: skip
        assert scores[0] > scores[1]


def test_the_seed_decides(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(f"--out={tmp_path / name}", f"--seed={seed}")[0] == 0
    texts = [(tmp_path / name).read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_equal_answers_make_no_pair(run: Run, tmp_path: Path) -> None:
    status, _, err = run("--temperature=0")
    assert (status, (tmp_path / "pairs.jsonl").read_text()) == (0, "")
    assert err.endswith("0 pairs of 30 prompts written to pairs.jsonl\n")


def test_the_pairs_are_what_preferences_learn_from(run: Run, tuned: Path, tmp_path: Path) -> None:
    assert run()[0] == 0
    assert read_preferences("pairs.jsonl")
    config = make_config({"objective": "preferences", "data": str(tmp_path / "pairs.jsonl")})
    assert train(config, tmp_path / "run", tuned) == FINISHED
    assert log(tmp_path / "run")[-1]["rewards/margins"] > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_answers=1"], "--num_answers=1, but a pair needs two answers or more"),
        (["--num_prompts=0"], "num_prompts = 0"),
        (["--seed=-1"], "seed = -1"),
        (["--temperature=-1"], r"sample\.temperature = -1\.0"),
        (["--task=chess"], "task.*chess.*play.*sums"),
        (["--task=play"], "is not one of the 13 characters"),
        (["--step=7"], "no step '7'"),
        (["--out=no folder/pairs.jsonl"], "--out=no folder/pairs.jsonl cannot be written"),
        (["--out=."], "--out=. cannot be written"),
        (["x"], "'x' is not a flag"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(
    flags: list[str], words: str, run: Run, tmp_path: Path
) -> None:
    status, out, err = run(*flags)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(loading .*\n)?error: [^\n]+\n", err), err
    assert re.search(words, err), err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_not_tuned_is_refused(run: Run, trained: Path) -> None:
    status, _, err = run(workdir=trained)
    assert status == 2
    assert "was not tuned to answer" in err
