"""The fourteen faults that others had when they tuned language models: a test for each.

    fault                                        test
 1  every target of a row is masked              test_rows: a_prompt_alone_has_nothing_to_learn;
                                                 test_source: rows_that_cannot_be_learned_...
 2  the mask is off by one                       test_rows: the_mask_covers_the_answer_...
 3  the end is masked where padding = end        test_rows: padding_is_never_learned_...
 4  the end of a drawn answer is lost            here, and 5, 6, 8, 10 to 14
 5  an answer that ends at once
 6  drawn from another distribution than scored
 7  k3 with the sign of its exponent reversed    test_losses: k3_estimates_the_divergence_...
 8  the divisor favours long answers             test_losses: divisors
 9  chosen log-probabilities fall: log both      test_runs: the_log_has_trls_names
10  the template is not applied
11  all answers of a group score the same        test_losses: equal_scores_...
12  only what is optimised is reported
13  the prompt is always masked                  test_rows: without_the_mask_...
14  the reference has dropout, or drifts         test_runs: the_reference_is_what_the_run_...
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import sample
from soak import log
from tuned import (
    INSTRUCTIONS,
    REWARDS,
    flat,
    instructed,
    make_config,
    make_parts,
    pairs_file,
    pretrained,
    train,
)

import gpt_jax
from gpt_jax import completion
from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.model import GPT
from gpt_jax.text import CharTokenizer
from gpt_jax.training import evaluation
from gpt_jax.tuning import make_maker
from gpt_jax.tuning.answers import Answer, Drawer
from gpt_jax.tuning.tasks.sums import ALPHABET, Sums

TOKENIZER = CharTokenizer(ALPHABET)
[END] = TOKENIZER.encode("\n")
ANSWERS = 256


class Drawn(NamedTuple):
    """A batch for rewards, and what it was made of."""

    config: Config
    params: Any
    answers: list[Answer]
    batch: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Answers of a model that is not trained; its distributions are sharper than at first."""
    rows = {"batch_size": ANSWERS, "microbatch_size": 64}
    config = make_config(REWARDS, model={"vocab_size": len(ALPHABET)}, train=rows)
    parts, state = make_parts(config, TOKENIZER)
    state = state.replace(params=jax.tree.map(lambda p: 4 * p, state.params))
    answers: list[Answer] = []

    def spy(*args: Any, **kwargs: Any) -> list[Answer]:
        answers.extend(draw(*args, **kwargs))
        return answers

    draw = Drawer.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawer, "draw", spy)
        batch = make_maker(config, False).make(parts).batch(0, state)
    return Drawn(config, state.params, answers, flat(batch), flat(batch["metrics"]))


def test_4_the_end_of_a_drawn_answer_is_scored_with_the_very_ids_that_were_drawn(
    drawn: Drawn,
) -> None:
    for answer, tokens, mask in zip(
        drawn.answers, drawn.batch["tokens"], drawn.batch["mask"], strict=True
    ):
        scored = tokens[1:][mask > 0]
        np.testing.assert_array_equal(scored, answer.ids)
        assert (scored[-1] == END) == answer.ended
    ended = np.array([answer.ended for answer in drawn.answers])
    assert 0 < ended.sum() < ANSWERS  # Both kinds are seen.
    np.testing.assert_array_equal(drawn.metrics["completions/clipped_ratio"], 1.0 - ended)


def test_5_an_answer_that_ends_at_once_is_scored_and_its_padding_is_not(drawn: Drawn) -> None:
    at_once = [i for i, answer in enumerate(drawn.answers) if len(answer.ids) == 1]
    assert len(at_once) > 3
    for i in at_once:
        assert drawn.answers[i].text == "" and drawn.answers[i].ended
        [place] = np.flatnonzero(drawn.batch["mask"][i])
        assert TOKENIZER.decode(drawn.batch["tokens"][i, place : place + 2]) == "=\n"
        assert drawn.metrics["completions/mean_length"][i] == 1
        assert drawn.batch["weights"][i].sum() == pytest.approx(1 / 6)


def test_6_answers_are_drawn_from_the_distribution_with_which_they_are_scored(
    drawn: Drawn,
) -> None:
    """Then the mean of log p over drawn tokens is minus the entropy, within 4 standard errors.

    At temperature 0.8 it would be more than 6 of them away.
    """
    tokens, mask, old = (drawn.batch[name] for name in ("tokens", "mask", "old"))
    logits = jax.jit(GPT(drawn.config.model).apply)({"params": drawn.params}, tokens[:, :-1])
    logps_BTV = np.asarray(jax.nn.log_softmax(logits), np.float64)
    p_BTV = np.exp(logps_BTV)
    entropy = -(p_BTV * logps_BTV).sum(-1)[mask > 0]
    variance = (p_BTV * logps_BTV**2).sum(-1)[mask > 0] - entropy**2
    scored = np.take_along_axis(logps_BTV, tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose((mask * old), mask * scored, atol=1e-4)
    standard_error = math.sqrt(variance.sum()) / len(entropy)
    assert abs(scored[mask > 0].mean() + entropy.mean()) < 4 * standard_error
    colder = p_BTV**1.25 / (p_BTV**1.25).sum(-1, keepdims=True)
    colder_mean = (colder * logps_BTV).sum(-1)[mask > 0].mean()
    assert abs(colder_mean + entropy.mean()) > 6 * standard_error


def test_8_a_token_weighs_the_same_in_a_short_and_in_a_long_answer(drawn: Drawn) -> None:
    lengths = drawn.batch["mask"].sum(-1)
    assert lengths.min() == 1 and lengths.max() == 6
    np.testing.assert_allclose(drawn.batch["weights"], drawn.batch["mask"] / 6, rtol=1e-6)


def test_10_a_run_that_was_not_tuned_refuses_to_answer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = gpt_jax.load(pretrained(tmp_path_factory))
    for refused in (run.answer, lambda text: run.answers([text])):
        with pytest.raises(UserError, match="was not tuned to answer: use a tuned run"):
            refused("1+1=")


def test_10_an_instruction_is_written_as_in_the_rows_that_the_run_learned(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Sums().prompt(0, 0, False)
    config = make_config(INSTRUCTIONS, model={"vocab_size": len(ALPHABET)})
    parts, state = make_parts(config, TOKENIZER)
    batch = flat(make_maker(config, False).make(parts).batch(0, state))
    seen: list[np.ndarray] = []
    stream = completion.stream

    def spy(model: Any, params: Any, ids: np.ndarray, *rest: Any) -> Any:
        seen.append(ids)
        return stream(model, params, ids, *rest)

    monkeypatch.setattr(completion, "stream", spy)
    workdir = instructed(tmp_path_factory)
    flags = [f"--workdir={workdir}", f"--instruction={prompt.text}"]
    assert sample.main(["scripts/sample.py", *flags]) == 0
    [ids] = seen
    np.testing.assert_array_equal(batch["tokens"][0, : len(ids)], ids)
    learned = np.flatnonzero(batch["weights"][0])
    assert learned[0] == len(ids) - 1  # The first target is the answer's first token.


def test_11_equal_scores_change_nothing_and_are_counted(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    (tmp_path / "same.py").write_text("def score(prompt, answer):\n    return 3\n")
    origin = instructed(tmp_path_factory)
    config = make_config(REWARDS | {"reward": f"{tmp_path / 'same.py'}:score"}, train={"steps": 2})
    train(config, tmp_path / "run", origin)
    for entry in log(tmp_path / "run")[1:]:
        assert entry["frac_reward_zero_std"] == 1
        assert (entry["reward"], entry["reward_std"], entry["grad_norm"]) == (3, 0, 0)
        assert entry["train/loss"] == 0
    ours, theirs = gpt_jax.load(tmp_path / "run", "latest"), gpt_jax.load(origin)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_12_a_tuned_run_also_logs_the_loss_on_its_corpus_which_it_does_not_optimise(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    workdir = instructed(tmp_path_factory)
    logged = {entry["step"]: entry["val/corpus_loss"] for entry in log(workdir)
              if "val/loss" in entry}  # fmt: skip
    assert sorted(logged) == [0, 20, 40]
    found = evaluation.evaluate(workdir, "latest")
    assert found.loss == pytest.approx(logged[40], rel=1e-5)
    base = evaluation.evaluate(pretrained(tmp_path_factory), "best")
    assert base.loss == pytest.approx(logged[0], rel=1e-5)


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_13_whether_prompts_are_learned_is_a_setting(mask_prompt: bool) -> None:
    tune = INSTRUCTIONS | {"mask_prompt": mask_prompt}
    config = make_config(tune, model={"vocab_size": len(ALPHABET)})
    parts, state = make_parts(config, TOKENIZER)
    batch = flat(make_maker(config, False).make(parts).batch(0, state))
    for tokens, weights in zip(batch["tokens"], batch["weights"], strict=True):
        learned = TOKENIZER.decode(tokens[1:][weights > 0])
        assert learned.endswith("\n")
        assert ("=" in learned) != mask_prompt
    assert batch["weights"].sum() == pytest.approx(len(batch["weights"]))


def test_14_the_preference_loss_begins_at_ln_2_whatever_the_dropout(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    tune = {"objective": "preferences", "data": str(pairs_file(tmp_path))}
    config = make_config(tune, model={"dropout": 0.5}, train={"steps": 2})
    train(config, tmp_path / "run", instructed(tmp_path_factory))
    beginning, first, second = log(tmp_path / "run")
    assert beginning["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["train/loss"] < first["train/loss"]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[name] == pytest.approx(0, abs=1e-6)
        assert second[name] != 0
