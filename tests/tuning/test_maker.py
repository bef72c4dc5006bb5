"""What is refused before a run begins: one sentence, exit status 2, and nothing is written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import train
from support import ROOT
from tuned import instructed, make_config, make_parts, pretrained

from gpt_jax.config import Config, TuneConfig
from gpt_jax.errors import UserError
from gpt_jax.text import ByteTokenizer, CharTokenizer, make_tokenizer, save_tokenizer
from gpt_jax.training import loop
from gpt_jax.tuning import make_maker
from gpt_jax.tuning.maker import choose_template
from gpt_jax.tuning.tasks import TASKS
from gpt_jax.tuning.template import TEMPLATES

SMALL = [
    *("--config.model.block_size=16", "--config.model.n_layer=1", "--config.model.n_head=2"),
    *("--config.model.n_embd=16", "--config.model.position=rotary"),
    *("--config.train.batch_size=8", "--config.train.steps=2", "--config.optimizer.warmup_steps=1"),
    "--config.mesh.cpu_devices=1",
]
FILES = {
    "good.jsonl": [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(9)],
    "pairs.jsonl": [{"prompt": f"{n}", "chosen": "1", "rejected": "2"} for n in range(9)],
    "letters.jsonl": [{"prompt": "Who?", "completion": "I."}] * 3,
    "long.jsonl": [{"prompt": "1" * 50, "completion": "2"}] * 3,
    "equal.jsonl": [{"prompt": "1", "chosen": "2", "rejected": "2"}] * 3,
    "empty.jsonl": [],
}


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs to begin from, made before training is forbidden."""
    return {"base": pretrained(tmp_path_factory), "tuned": instructed(tmp_path_factory)}


@pytest.fixture
def folder(origins: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files for tuning, in the folder in which the command runs. Training fails the test."""
    for name, rows in FILES.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "template.json").write_text('{"user": ["", ""]}')
    (tmp_path / "no template.json").write_text("3")
    (tmp_path / "my_reward.py").write_text("x = 1\n\ndef score(prompt, answer):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.Loop, "finish_run", lambda *_: pytest.fail("it trains"))
    return tmp_path


SUMS, DATA = "--config.tune.task=sums", "--config.tune.data=good.jsonl"
PAIRS, LINE = "--config.tune.data=pairs.jsonl", "--config.tune.template=line"
BASE, TUNED = "--init_from={base}", "--init_from={tuned}"


@pytest.mark.parametrize(
    ("objective", "flags", "words"),
    [
        ("reward", [], r"tune\.objective = 'reward'.*language, instructions, preferences, rewards"),
        ("instructions", ["--config.tune.task=sum"], r"tune\.task = 'sum'.*play, sums"),
        ("instructions", [], "needs either a task or data"),
        ("instructions", [SUMS, DATA], "needs either a task or data"),
        ("instructions", [DATA], r"with tune\.data begins from a run: give --init_from="),
        ("instructions", [SUMS, "--config.tune.template=x"], "'x' is neither one of play, .* nor"),
        ("instructions", [SUMS, "--config.tune.template=template.json"], "is no template"),
        (
            "instructions",
            [SUMS, "--config.tune.template=no template.json"],
            r"no template\.json is no template \(.*\): give one such as \{",
        ),
        ("instructions", [SUMS, "--config.tune.template=play"], r"character 'P' \(U\+0050\)"),
        ("instructions", [SUMS, "--config.model.block_size=8"], "longer than the 9 tokens of a"),
        ("instructions", [BASE, "--config.tune.task=play"], "is not one of the 13 characters"),
        (
            "instructions",
            [BASE, DATA],
            r"lacks a character of 'PROMPTER:.* give --config\.tune\.template=",
        ),
        ("instructions", [BASE, LINE, "--config.tune.data=nothing.jsonl"], "names no file"),
        ("instructions", [BASE, LINE, "--config.tune.data=empty.jsonl"], "has no line"),
        ("instructions", [BASE, LINE, "--config.tune.data=long.jsonl"], r"has 0 usable row\(s\)"),
        (
            "instructions",
            [BASE, LINE, "--config.tune.data=pairs.jsonl"],
            r"line 1 of \S*/pairs\.jsonl has the",
        ),
        ("instructions", [BASE, LINE, "--config.tune.data=letters.jsonl"], "character 'W'"),
        (
            "instructions",
            [BASE, SUMS, "--config.data.tokenizer=other/tokenizer.json"],
            "character '9' .* is not one of the 13 characters",
        ),
        ("instructions", [BASE, SUMS, "--config.data.tokenizer=byte"], "tokenizer"),
        ("preferences", [TUNED, SUMS], r"needs --config\.tune\.data=FILE: make pairs .*pairs\.py"),
        ("preferences", [PAIRS], "begins from a run: give --init_from="),
        (
            "preferences",
            [TUNED, DATA],
            r"line 1 of \S*/good\.jsonl has the fields 'prompt', 'completion'",
        ),
        (
            "preferences",
            [TUNED, "--config.tune.data=equal.jsonl"],
            r"line 1 of \S*/equal\.jsonl prefers an answer to itself",
        ),
        ("preferences", [TUNED, PAIRS, "--config.tune.beta=0"], r"tune\.beta = 0\.0 .*above 0"),
        ("preferences", [TUNED, PAIRS, "--config.tune.beta=-1"], r"tune\.beta = -1\.0"),
        (
            "rewards",
            [TUNED, DATA],
            r"has no judge: give --config\.tune\.reward=my_reward\.py:score",
        ),
        (
            "rewards",
            [TUNED, SUMS, "--config.tune.group_size=1"],
            r"tune\.group_size = 1 .*2 or more",
        ),
        (
            "rewards",
            [TUNED, SUMS, "--config.tune.group_size=3"],
            r"train\.batch_size = 8 .*tune\.group_size = 3",
        ),
        (
            "rewards",
            [TUNED, SUMS, "--config.tune.answer_tokens=16"],
            r"tune\.answer_tokens = 16",
        ),
        ("rewards", [TUNED, SUMS, "--config.tune.answer_tokens=9"], r"tune\.answer_tokens"),
        ("rewards", [TUNED, SUMS, "--config.tune.updates=4"], r"train\.steps = 2 .*updates = 4"),
        (
            "rewards",
            [TUNED, SUMS, "--config.tune.updates=2", "--config.train.eval_every=3"],
            r"train\.eval_every = 3 .*tune\.updates = 2",
        ),
        ("rewards", [TUNED, SUMS, "--config.tune.clip=1.5"], r"tune\.clip = 1\.5"),
        ("rewards", [TUNED, SUMS, "--config.tune.kl_weight=-1"], r"tune\.kl_weight = -1"),
        ("rewards", [TUNED, SUMS, "--config.tune.divisor=longest"], "constant, tokens, sequence"),
        ("rewards", [TUNED, SUMS, "--config.tune.reward=my_reward.py:x"], "has no function 'x'"),
        (
            "rewards",
            [TUNED, SUMS, "--config.tune.reward=your.py:x"],
            "names no file 'your.py': giv",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2_and_nothing_is_written(
    objective: str,
    flags: list[str],
    words: str,
    folder: Path,
    origins: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = CharTokenizer("\n+012345678=x")  # As many characters, but others.
    (folder / "other").mkdir()
    save_tokenizer(other, folder / "other" / "tokenizer.json")
    before = sorted(folder.rglob("*"))
    flags = [flag.format(**origins) for flag in flags]
    sizes = ["--config.tune.group_size=4", "--config.tune.answer_tokens=6"]
    flags = [f"--config.tune.objective={objective}", *sizes, *flags, "--workdir=run"]
    recipe = f"--config={ROOT / 'configs' / 'tiny.py'}"
    assert train.main(["scripts/train.py", recipe, *SMALL, *flags]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"(note: [^\n]+\n)*error: [^\n]+\n", err), err
    assert re.search(words, err), err
    assert sorted(folder.rglob("*")) == before


def template_of(name: str, task: str = "", tokenizer: Any = None, **values: Any) -> Any:
    tokenizer = tokenizer or ByteTokenizer()
    config = make_config({}, model={"vocab_size": tokenizer.vocab_size})
    parts, _ = make_parts(config, tokenizer, **values)
    return choose_template(name, TASKS[task]() if task else None, parts)


def test_a_template_is_the_runs_or_the_named_one_or_its_origins_or_the_tasks(
    tmp_path: Path,
) -> None:
    """Or else one for the tokenizer."""
    own, of_origin = TEMPLATES["paragraph"].to_dict(), TEMPLATES["alpaca"].to_dict()
    begun: dict[str, Any] = {"template": own, "origin_template": of_origin}
    assert template_of("chatml", "sums", **begun) == TEMPLATES["paragraph"]
    assert template_of("chatml", "sums", origin_template=of_origin) == TEMPLATES["chatml"]
    assert template_of("", "sums", origin_template=of_origin) == TEMPLATES["alpaca"]
    assert template_of("", "sums") == TEMPLATES["line"]
    assert template_of("") == TEMPLATES["play"]
    pairs = make_tokenizer("bpe", ["the cat sat on the mat " * 9], 260)
    assert template_of("", tokenizer=pairs) == TEMPLATES["chatml"]
    mine = {"system": ["", ""], "user": ["Q: ", "\n"], "assistant": ["A: ", "\n\n"]}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    assert template_of(str(tmp_path / "mine.json")).to_dict() == mine


def test_only_a_new_run_without_an_origin_gets_the_tokenizer_of_its_task() -> None:
    c = Config(tune=TuneConfig(objective="instructions", task="sums"))
    tokenizer = make_maker(c, has_origin=False).tokenizer
    assert tokenizer is not None and tokenizer.vocab_size == 13
    assert make_maker(c, has_origin=True).tokenizer is None
    assert make_maker(Config(), has_origin=False).tokenizer is None


def test_unknown_names_are_refused_in_python_too() -> None:
    for values in ({"objective": "dpo"}, {"task": "chess"}, {"beta": 0.0}, {"group_size": 1}):
        with pytest.raises(UserError, match=r"tune\."):
            TuneConfig(**values)
