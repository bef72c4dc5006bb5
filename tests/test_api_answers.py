"""Answers in Python: one, many and groups of them; and a model with byte pairs, end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import GPT2_TINY
from tuned import instructed, train

import gpt_jax
from gpt_jax.api import TrainedModel
from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.runs.record import read_record
from gpt_jax.training.stopping import FINISHED
from gpt_jax.tuning.tasks.sums import Sums

ASKED = [Sums().prompt(0, i, True).text for i in range(9)]
# Many answers then never end, and are cut off where the window is full.
WILD: dict[str, Any] = {"temperature": 3.0, "top_k": 0, "max_new_tokens": 100}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return gpt_jax.load(instructed(tmp_path_factory))


def test_an_answer_ends_before_its_end_and_has_no_prompt(model: TrainedModel) -> None:
    answers = [model.answer(text) for text in ASKED]
    assert all("\n" not in answer and "=" not in answer[:1] for answer in answers)
    ended = [answer for answer in answers if len(answer) < 8]
    assert len(ended) > 4
    assert len(set(answers)) > 1


@pytest.mark.parametrize("options", [{}, WILD, {"top_p": 0.5, "top_k": 5}])
@pytest.mark.parametrize("instruction", [ASKED[0], "12"])
def test_the_first_of_many_answers_equals_the_answer_alone(
    instruction: str, options: dict[str, Any], model: TrainedModel
) -> None:
    """Whatever the other instructions are, and however long."""
    for seed in (0, 5):
        alone = model.answer(instruction, seed=seed, **options)
        for others in ([], ASKED[1:3], ["1"]):
            many = model.answers([instruction, *others], seed=seed, **options)
            assert (len(many), many[0]) == (1 + len(others), alone)
        [group] = model.answer_groups([instruction], 3, seed=seed, **options)
        assert group[0].text == alone


def test_a_streamed_answer_is_the_same_answer(model: TrainedModel) -> None:
    for piece in (0, 1, 3):
        pieces = list(model.stream_answer(ASKED[0], seed=3, piece=piece))
        assert "".join(pieces) == model.answer(ASKED[0], seed=3)


def test_seeds_and_members_of_a_group_differ(model: TrainedModel) -> None:
    assert len({model.answer(ASKED[0], seed=seed, **WILD) for seed in range(5)}) > 3
    groups = model.answer_groups(ASKED[:2], 4, **WILD)
    assert [len(group) for group in groups] == [4, 4]
    assert len({answer.text for group in groups for answer in group}) > 6


def test_a_group_knows_which_answers_ended(model: TrainedModel) -> None:
    groups = model.answer_groups(ASKED, 4, **WILD | {"max_new_tokens": 3})
    answers = [answer for group in groups for answer in group]
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert len(answer.text) == 3 - (answer.ended and 3 - len(answer.text))
        assert len(answer.ids) == len(answer.text) + answer.ended


def test_no_instructions_have_no_answers(model: TrainedModel) -> None:
    assert model.answers([]) == []
    assert model.answer_groups([], 3) == []


@pytest.mark.parametrize(
    ("instruction", "options", "words"),
    [
        ("1 + 1", {}, r"character ' ' \(U\+0020\)"),
        ("1" * 16, {}, "has 16 tokens, which leaves no room .* of 16: give a shorter one"),
        ("1=", {"temperature": -1.0}, "sample.temperature = -1.0"),
        ("1=", {"max_new_tokens": 0}, "max_new_tokens = 0"),
        ("1=", {"seed": -1}, "seed = -1"),
        ("1=", {"warmth": 1}, "sample.warmth does not exist"),
        (3, {}, "instruction = 3"),
        ("", {}, "empty"),
    ],
)
def test_bad_instructions_and_options_are_refused(
    instruction: Any, options: dict[str, Any], words: str, model: TrainedModel
) -> None:
    for call in (model.answer, lambda text, **rest: model.answers([text], **rest)):
        with pytest.raises(UserError, match=words):
            call(instruction, **options)


ALPACA = [
    {"instruction": "Say yes.", "input": "", "output": "Yes."},
    {"instruction": "Say no.", "input": "", "output": "No."},
    {"instruction": "Translate.", "input": "oui", "output": "yes"},
    {"instruction": "Translate.", "input": "non", "output": "no"},
    {"instruction": "Count.", "input": "", "output": "1 2 3"},
    {"instruction": "Stop.", "input": "", "output": ""},
]


def longer_gpt2(folder: Path) -> Path:
    """The weights of gpt2_tiny with 128 positions in place of 24, so that an instruction fits."""
    shutil.copytree(GPT2_TINY, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"n_positions": 128}))
    tensors = load_file(folder / "model.safetensors")
    positions = tensors["transformer.wpe.weight"]
    tensors["transformer.wpe.weight"] = np.resize(positions, (128, positions.shape[1]))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=["alpaca", "chatml"])
def gpt2(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's weights tuned on six lines of an Alpaca file until it knows them."""
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "alpaca.jsonl"
    path.write_text("\n".join(map(json.dumps, ALPACA)), encoding="utf-8")
    (folder / "corpus.txt").write_text("Yes. No. 1 2 3 " * 200, encoding="utf-8")
    values = {
        "model": {"dropout": 0.0, "matmul_dtype": "float32"},
        "data": {"corpus": str(folder / "corpus.txt")},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 10},
        "train": {"steps": 200, "batch_size": 5, "eval_every": 200, "checkpoint_every": 200},
        "tune": {"objective": "instructions", "data": str(path), "template": request.param},
        "sample": {"max_new_tokens": 8},
        "mesh": {"cpu_devices": 1},
    }
    origin = longer_gpt2(folder / "gpt2")
    assert train(Config.from_dict(values), folder / "run", origin) == FINISHED
    return folder / "run"


def test_gpt2s_weights_are_tuned_on_an_alpaca_file_and_the_end_token_stops(gpt2: Path) -> None:
    model = gpt_jax.load(gpt2, "latest")
    ids = model.tokenizer.encode("<|endoftext|>")
    assert len(ids) == 1
    asked = ["Say yes.", "Say no.", "Translate.\noui", "Translate.\nnon", "Count."]
    groups = model.answer_groups(asked, 1, temperature=0.0)
    for [answer], row in zip(groups, ALPACA, strict=False):
        assert answer.text == row["output"]
        assert answer.ended and answer.ids[-1] == ids[0]
    assert model.answers(asked, temperature=0.0) == [row["output"] for row in ALPACA[:5]]
    assert model.answer("Count.", temperature=0.0) == "1 2 3"
    record = read_record(gpt2)
    assert record is not None and record.template is not None
    assert record.template["assistant"][1] == "<|endoftext|>"
    assert record.init_from == str(gpt2.parent / "gpt2")


def test_a_run_answers_from_its_folder_alone(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """The template is in its record."""
    workdir = instructed(tmp_path_factory)
    copy = shutil.copytree(workdir, tmp_path / "copy")
    moved, model = gpt_jax.load(copy), gpt_jax.load(workdir)
    assert moved.template == model.template
    assert moved.answer(ASKED[0]) == model.answer(ASKED[0])
    jax.tree.map(np.testing.assert_array_equal, moved.params, model.params)


@pytest.mark.parametrize("damage", [{"assistant": ["", ""]}, {"user": 3}, {"system": ["a"]}])
def test_a_record_with_a_damaged_template_is_refused(
    damage: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    copy = shutil.copytree(instructed(tmp_path_factory), tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    content["template"] |= damage
    content.pop("digests", None)  # Otherwise every edit is refused.
    (copy / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="template"):
        gpt_jax.load(copy)
