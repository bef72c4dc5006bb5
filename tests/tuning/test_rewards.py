"""The batches of rewards: whose answers they hold, their advantages, weights and metrics."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tuned import REWARDS, flat, make_config, make_parts, reward_file

from gpt_jax.errors import UserError
from gpt_jax.text import CharTokenizer
from gpt_jax.training.state import TrainState
from gpt_jax.tuning import make_maker
from gpt_jax.tuning.answers import Answer, Drawer
from gpt_jax.tuning.rewards import Rewards
from gpt_jax.tuning.tasks.sums import ALPHABET, Sums

TOKENIZER = CharTokenizer(ALPHABET)
Batch = dict[str, np.ndarray]


def make(tune: dict[str, Any], **train: Any) -> tuple[Rewards, TrainState]:
    """The objective and a state, in which some answers are likelier than others."""
    model = {"vocab_size": len(ALPHABET)}
    config = make_config(REWARDS | tune, model=model, train={"batch_size": 16} | train)
    parts, state = make_parts(config, TOKENIZER)
    objective = make_maker(config, True).make(parts)
    assert isinstance(objective, Rewards)
    return objective, state.replace(params=jax.tree.map(lambda p: 2 * p, state.params))


def batch_of(objective: Rewards, step: int, state: TrainState) -> Batch:
    batch = objective.batch(step, state)
    return flat(batch) | flat(batch["metrics"])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The user's reward, and a penalty."""
    return {"reward": f"{reward_file(tmp_path_factory.mktemp('reward'))}:score", "kl_weight": 0.3}


@pytest.fixture(scope="module")
def batch(scored: dict[str, Any]) -> Batch:
    return batch_of(*step_of(scored, 0))


def step_of(tune: dict[str, Any], step: int, **train: Any) -> tuple[Rewards, int, TrainState]:
    objective, state = make(tune, **train)
    return objective, step, state


def parts_of(batch: Batch) -> list[tuple[str, str]]:
    """Prompt and answer of every row."""
    rows = zip(batch["tokens"], batch["mask"], strict=True)
    texts = [(TOKENIZER.decode(t[: m.argmax() + 1]), TOKENIZER.decode(t[1:][m > 0]))
             for t, m in rows]  # fmt: skip
    return texts


def test_each_prompt_of_a_step_has_a_group_of_different_answers(batch: Batch) -> None:
    expected = [Sums().prompt(0, i, False).text for i in range(4)]
    found = parts_of(batch)
    assert [prompt for prompt, _ in found] == [prompt for prompt in expected for _ in range(4)]
    groups = [{answer for _, answer in found[i : i + 4]} for i in range(0, 16, 4)]
    assert all(len(group) > 1 for group in groups)


def test_steps_draw_other_prompts_with_other_random_numbers_and_always_the_same(
    scored: dict[str, Any], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, state = make(scored)
    draw, keys = Drawer.draw, []

    def spy(self: Drawer, params: Any, prompts: Any, given: Any, *options: Any) -> list[Answer]:
        keys.append(np.asarray(jax.random.key_data(given)))
        return draw(self, params, prompts, given, *options)

    monkeypatch.setattr(Drawer, "draw", spy)
    second = batch_of(objective, 1, state)
    assert parts_of(second)[0][0] == Sums().prompt(0, 4, False).text
    again = batch_of(objective, 0, state)
    for name, array in batch.items():
        np.testing.assert_array_equal(again[name], array)
    assert len(np.unique(np.concatenate(keys), axis=0)) == 32  # No key is used twice.


def test_the_seed_changes_prompts_and_answers(scored: dict[str, Any], batch: Batch) -> None:
    other = batch_of(*step_of(scored, 0, seed=1))
    assert {p for p, _ in parts_of(other)}.isdisjoint(p for p, _ in parts_of(batch))


def test_advantages_are_rewards_less_the_penalty_and_the_mean_of_their_group(batch: Batch) -> None:
    answers = [answer.removesuffix("\n") for _, answer in parts_of(batch)]
    rewards = np.array([answer.count("1") - 0.1 * len(answer) for answer in answers])
    np.testing.assert_allclose(batch["reward"], rewards, atol=1e-6)
    # The reference is the model before its parameters were doubled.
    ratio = (batch["mask"] * (batch["old"] - batch["reference"])).sum(-1)
    assert np.abs(ratio).max() > 0.1
    kept = (rewards - 0.3 * ratio).reshape(4, 4)
    expected = (kept - kept.mean(-1, keepdims=True)).reshape(-1)
    np.testing.assert_allclose(batch["advantages"], expected, atol=1e-5)
    spread = np.repeat(rewards.reshape(4, 4).std(-1), 4)
    np.testing.assert_allclose(batch["reward_std"], spread, atol=1e-6)


@pytest.mark.parametrize("divisor", ["constant", "tokens", "sequence"])
def test_the_divisor_is_chosen_by_a_setting(divisor: str, scored: dict[str, Any]) -> None:
    batch = batch_of(*step_of(scored | {"divisor": divisor}, 0))
    lengths = batch["mask"].sum(-1)
    expected = {"constant": 6, "tokens": lengths.mean(), "sequence": lengths}[divisor]
    np.testing.assert_allclose(batch["weights"].sum(-1), lengths / expected, rtol=1e-6)


def test_standardized_advantages_have_a_deviation_of_1(scored: dict[str, Any]) -> None:
    batch = batch_of(*step_of(scored | {"standardize": True, "kl_weight": 0.0}, 0))
    spread = batch["advantages"].reshape(4, 4).std(-1)
    equal = batch["frac_reward_zero_std"].reshape(4, 4)[:, 0] > 0
    np.testing.assert_allclose(spread[~equal], 1, atol=1e-3)
    assert not spread[equal].any()


def test_answers_are_drawn_and_weighed_at_the_temperature(scored: dict[str, Any]) -> None:
    """Near 0, all answers to a prompt are the likeliest one, which then has a probability of 1."""
    batch = batch_of(*step_of(scored | {"temperature": 0.001}, 0))
    for answers in np.split(np.array([answer for _, answer in parts_of(batch)]), 4):
        assert len(set(answers)) == 1
    np.testing.assert_allclose(batch["mask"] * batch["old"], 0, atol=1e-3)


def test_answers_are_used_for_all_their_updates(scored: dict[str, Any]) -> None:
    objective, state = make(scored | {"updates": 3}, steps=6, eval_every=3, checkpoint_every=3)
    first = objective.batch(0, state)
    changed = state.replace(params=jax.tree.map(lambda p: 0.5 * p, state.params))
    assert objective.batch(1, changed) is first and objective.batch(2, changed) is first
    assert objective.batch(3, changed) is not first
    assert [objective.may_stop(step) for step in range(5)] == [True, False, False, True, False]


def test_a_task_gives_nothing_to_an_answer_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def right(
        self: Drawer, params: Any, prompts: list[Any], keys: Any, temperature: float
    ) -> list[Answer]:
        made = []
        for n, ids in enumerate(prompts):
            a, b = TOKENIZER.decode(ids).removesuffix("=").split("+")
            text = f"{int(a) + int(b)}"[::-1]
            made.append(Answer(TOKENIZER.encode(text + "\n" * (n % 2)), text, n % 2 == 1))
        return made

    objective, state = make({})
    monkeypatch.setattr(Drawer, "draw", right)
    batch = batch_of(objective, 0, state)
    np.testing.assert_array_equal(batch["reward"], [0, 1] * 8)
    figures = objective.evaluate(state.params, lambda: None)
    assert figures == {"loss": -0.5, "reward": 0.5, "ended": 0.5}


def from_lines(folder: Path, prompts: list[str], scored: dict[str, Any]) -> Any:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return make(scored | {"task": "", "data": str(path), "template": "line"})


def test_prompts_of_json_lines_are_used_one_epoch_after_another(
    scored: dict[str, Any], tmp_path: Path
) -> None:
    objective, state = from_lines(tmp_path, [f"{n}+1=" for n in range(9)], scored)
    batches = [batch_of(objective, step, state) for step in (0, 1)]
    used = {prompt for batch in batches for prompt, _ in parts_of(batch)}
    assert used == {f"{n}+1=" for n in range(8)}  # The last one is for validation.


def test_prompts_without_room_for_an_answer_are_left_out_counted_and_told(
    scored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A window of 16 with answers of 6 has room for 10."""
    prompts = ["1" * 11, "2=", "3" * 10, "4" * 40, "5="]
    objective, state = from_lines(tmp_path, prompts, scored)
    assert "note: 2 row(s) of" in capsys.readouterr().err
    used = {prompt for prompt, _ in parts_of(batch_of(objective, 0, state))}
    assert used == {"2=", "3" * 10}


@pytest.mark.parametrize("bad", ["1 + 1", "東", ""])
def test_a_bad_prompt_is_refused_before_anything_is_drawn(
    bad: str, scored: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"(line|row) 2 of .*prompts\.jsonl"):
        from_lines(tmp_path, ["1=", bad, "2=", "3="], scored)
