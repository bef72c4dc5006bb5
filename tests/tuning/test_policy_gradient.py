"""Rewards: the gradient in expectation, the optimum under a penalty, advantages and divisors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax.config import Config, GPTConfig, TuneConfig
from gpt_jax.model import GPT
from gpt_jax.tuning.losses import log_probabilities, reward_losses
from gpt_jax.tuning.rewards import advantages, divisors, penalized

# A vocabulary of three, answers of two tokens: all 9 answers can be enumerated.
SMALL = GPTConfig(
    vocab_size=3, block_size=3, n_layer=1, n_head=1, n_embd=8, dropout=0.0, matmul_dtype="float32"
)
ANSWERS = np.array([(0, *answer, 0) for answer in itertools.product(range(3), repeat=2)], np.int32)
SCORES = np.random.default_rng(3).normal(0, 1, len(ANSWERS))
ANSWER_MASK = np.tile(np.array([1, 1, 0], np.float32), (len(ANSWERS), 1))


def answer_probabilities(params, temperature=1.0):
    logps = log_probabilities(GPT(SMALL), params, ANSWERS, temperature)
    return jnp.exp((ANSWER_MASK * logps).sum(-1))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_reward_gradient_is_the_gradient_of_the_expected_reward(temperature: float) -> None:
    """Averaged over all answers, each as often as the policy draws it at that temperature."""
    c = TuneConfig(temperature=temperature)
    params = GPT(SMALL).init(jax.random.key(0), ANSWERS[:, :-1])["params"]
    exact = jax.grad(lambda p: -(answer_probabilities(p, temperature) * SCORES).sum())(params)
    p = answer_probabilities(params, temperature)
    mean = float((p * SCORES).sum())
    old = log_probabilities(GPT(SMALL), params, ANSWERS, temperature)

    def loss(params):
        rows = {
            "tokens": ANSWERS, "mask": ANSWER_MASK, "weights": ANSWER_MASK, "metrics": {},
            "advantages": jnp.asarray(SCORES - mean, jnp.float32), "old": old, "reference": old,
        }  # fmt: skip
        return (p * reward_losses(c, GPT(SMALL), params, rows)[0]).sum()

    found = jax.grad(loss)(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_with_a_penalty_the_policy_reaches_the_known_optimum() -> None:
    """The maximum of E[r] - beta KL is p_reference exp(r / beta), normalised."""
    beta, model = 0.5, GPT(SMALL)
    params = model.init(jax.random.key(0), ANSWERS[:, :-1])["params"]
    reference = np.asarray(log_probabilities(model, params, ANSWERS))
    optimum = np.asarray(answer_probabilities(params)) * np.exp(SCORES / beta)
    optimum /= optimum.sum()
    optimizer = optax.adam(0.01)

    @jax.jit
    def measured(params):
        return answer_probabilities(params), log_probabilities(model, params, ANSWERS)

    @jax.jit
    def step(params, opt_state, rows, p):
        def loss(params):
            return (p * reward_losses(TuneConfig(), model, params, rows)[0]).sum()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(600):
        p, old = measured(params)
        rewards = penalized(SCORES, np.asarray(old), reference, ANSWER_MASK, beta)
        scores = jnp.asarray(rewards - (np.asarray(p) * rewards).sum(), jnp.float32)
        rows = {
            "tokens": ANSWERS, "mask": ANSWER_MASK, "weights": ANSWER_MASK, "metrics": {},
            "advantages": scores, "old": old, "reference": reference,
        }  # fmt: skip
        params, opt_state = step(params, opt_state, rows, p)
    p = np.asarray(answer_probabilities(params))
    assert (p * np.log(p / optimum)).sum() < 0.01


def test_equal_scores_give_no_advantage_and_no_nan() -> None:
    scores = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], np.float32)
    for standardize in (False, True):
        found = advantages(scores, 3, standardize).reshape(2, 3)
        np.testing.assert_array_equal(found[0], 0)
        assert np.isfinite(found).all()
    np.testing.assert_allclose(advantages(scores, 3, True)[3:], [-1.2247, 0, 1.2247], atol=1e-3)


def test_divisors() -> None:
    lengths = np.array([2.0, 6.0], np.float32)
    np.testing.assert_array_equal(divisors("constant", lengths, 8), [8, 8])
    np.testing.assert_array_equal(divisors("tokens", lengths, 8), [4, 4])
    np.testing.assert_array_equal(divisors("sequence", lengths, 8), [2, 6])
    assert Config().tune.divisor == "constant"  # It favours no length.
