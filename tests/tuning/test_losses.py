"""The losses of tuning against formulas in NumPy float64, and against exact gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import GPTConfig, TuneConfig
from gpt_jax.model import GPT
from gpt_jax.tuning.losses import (
    instruction_losses,
    k3,
    log_probabilities,
    preference_losses,
    reward_losses,
)

MODEL = GPTConfig(
    vocab_size=5, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.0, matmul_dtype="float32"
)
GPT_MODEL = GPT(MODEL)
TOKENS = np.random.default_rng(0).integers(0, 5, (6, 9)).astype(np.int32)
MASK = (np.random.default_rng(1).random((6, 8)) < 0.5).astype(np.float32)
MASK[:, 0] = 1  # Every row has something to learn.


def some_params(seed: int):
    params = GPT_MODEL.init(jax.random.key(seed), TOKENS[:, :-1])["params"]
    return jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(jax.random.key(seed), p.shape), params
    )


POLICY, REFERENCE = some_params(0), some_params(1)
LOGPS = np.asarray(log_probabilities(GPT_MODEL, POLICY, TOKENS), np.float64)
REFERENCE_LOGPS = np.asarray(log_probabilities(GPT_MODEL, REFERENCE, TOKENS), np.float64)


def test_the_instruction_loss_is_the_mean_over_all_learned_targets() -> None:
    """And not the mean of the means of rows, which weighs tokens of short answers more."""
    weights = MASK * (len(MASK) / MASK.sum())
    losses, _ = instruction_losses(GPT_MODEL, POLICY, {"tokens": TOKENS, "weights": weights}, None)
    assert losses.mean() == pytest.approx(-(MASK * LOGPS).sum() / MASK.sum(), abs=1e-5)


def pairs(reference: np.ndarray) -> dict:
    shaped = {"tokens": TOKENS, "mask": MASK, "reference": reference.astype(np.float32)}
    return {name: array.reshape(3, 2, -1) for name, array in shaped.items()}


def dpo(logps: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    ratio = (MASK * (logps - reference)).sum(-1).reshape(3, 2)
    return np.log1p(np.exp(-beta * (ratio[:, 0] - ratio[:, 1])))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_preference_loss_is_dpo(beta: float) -> None:
    c = TuneConfig(beta=beta)
    losses, metrics = preference_losses(c, GPT_MODEL, POLICY, pairs(REFERENCE_LOGPS))
    np.testing.assert_allclose(losses, dpo(LOGPS, REFERENCE_LOGPS, beta), atol=1e-5)
    chosen = beta * (MASK * (LOGPS - REFERENCE_LOGPS)).sum(-1)[::2]
    np.testing.assert_allclose(metrics["rewards/chosen"], chosen, atol=1e-5)
    accuracy = metrics["rewards/chosen"] > metrics["rewards/rejected"]
    np.testing.assert_array_equal(metrics["rewards/accuracies"], accuracy)


def test_the_chosen_answers_own_loss_can_be_added() -> None:
    plain, metrics = preference_losses(TuneConfig(), GPT_MODEL, POLICY, pairs(REFERENCE_LOGPS))
    held, _ = preference_losses(
        TuneConfig(chosen_weight=0.5), GPT_MODEL, POLICY, pairs(REFERENCE_LOGPS)
    )
    own = -(MASK * LOGPS).sum(-1)[::2] / MASK.sum(-1)[::2]
    np.testing.assert_allclose(metrics["nll_loss"], own, atol=1e-5)
    np.testing.assert_allclose(held - plain, 0.5 * own, atol=1e-5)


def test_the_preference_loss_begins_at_ln_2() -> None:
    losses, _ = preference_losses(TuneConfig(), GPT_MODEL, POLICY, pairs(LOGPS))
    np.testing.assert_allclose(losses, np.log(2), atol=1e-6)


def reward_rows(old: np.ndarray, weights: np.ndarray, scores: np.ndarray, reference: np.ndarray):
    return {
        "tokens": TOKENS, "mask": MASK, "weights": weights.astype(np.float32),
        "advantages": scores.astype(np.float32), "old": old.astype(np.float32),
        "reference": reference.astype(np.float32), "metrics": {},
    }  # fmt: skip


def grpo(logps, old, weights, scores, clip) -> np.ndarray:
    ratio = np.exp(MASK * (logps - old))
    gain = np.minimum(ratio * scores[:, None], np.clip(ratio, 1 - clip, 1 + clip) * scores[:, None])
    return -(weights * gain).sum(-1)


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_the_reward_loss_is_grpo(clip: float) -> None:
    scores, weights = np.array([1.0, -1, 0.5, 0, 2, -2]), MASK / 8
    old = LOGPS + np.random.default_rng(2).normal(0, 0.2, LOGPS.shape)
    c = TuneConfig(clip=clip)
    rows = reward_rows(old, weights, scores, REFERENCE_LOGPS)
    losses, metrics = reward_losses(c, GPT_MODEL, POLICY, rows)
    expected = grpo(LOGPS, old, weights, scores, clip)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert (metrics["kl"] >= 0).all()


def through_the_model(cotangent: np.ndarray):
    """The gradient of the parameters, by what the gradient of every log p is."""
    _, pull = jax.vjp(lambda p: log_probabilities(GPT_MODEL, p, TOKENS), POLICY)
    [grads] = pull(jnp.asarray(cotangent, jnp.float32))
    return grads


def check_gradient(loss, cotangent: np.ndarray) -> None:
    """`cotangent`: of every log p, by a formula in NumPy float64."""
    found, expected = jax.grad(loss)(POLICY), through_the_model(cotangent)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-2


def test_the_gradient_of_the_instruction_loss() -> None:
    weights = MASK * (len(MASK) / MASK.sum())
    rows = {"tokens": TOKENS, "weights": weights}
    check_gradient(
        lambda p: instruction_losses(GPT_MODEL, p, rows, None)[0].mean(), -MASK / MASK.sum()
    )


def test_the_gradient_of_the_preference_loss() -> None:
    """d loss / d log p = -+ beta sigmoid(-margin)."""
    beta = 0.7
    ratio = (MASK * (LOGPS - REFERENCE_LOGPS)).sum(-1).reshape(3, 2)
    margin = beta * (ratio[:, 0] - ratio[:, 1])
    slope = beta / (1 + np.exp(margin))
    cotangent = MASK * (slope[:, None] * np.array([-1.0, 1.0])).reshape(-1, 1)
    c, rows = TuneConfig(beta=beta), pairs(REFERENCE_LOGPS)
    check_gradient(lambda p: preference_losses(c, GPT_MODEL, p, rows)[0].sum(), cotangent)


@pytest.mark.parametrize("spread", [0.01, 0.5])
def test_the_gradient_of_the_reward_loss_ends_where_a_ratio_is_clipped(spread: float) -> None:
    """d loss / d log p = -w A rho, or 0 once the gain is clipped: not if A pushes rho back."""
    scores, weights = np.array([1.0, -1, 0.5, 0, 2, -2]), MASK / 8
    old = LOGPS + np.random.default_rng(4).normal(0, spread, LOGPS.shape)
    ratio = np.exp(MASK * (LOGPS - old))
    up, down = (ratio > 1.2) & (scores > 0)[:, None], (ratio < 0.8) & (scores < 0)[:, None]
    assert (up | down).any() == (spread > 0.1)
    cotangent = -weights * scores[:, None] * ratio * ~(up | down)
    rows = reward_rows(old, weights, scores, REFERENCE_LOGPS)
    check_gradient(lambda p: reward_losses(TuneConfig(), GPT_MODEL, p, rows)[0].sum(), cotangent)


def test_torch_agrees() -> None:
    """Its cross-entropy, log-sigmoid, clamp and derivatives, in float64."""
    torch = pytest.importorskip("torch")
    logps = torch.tensor(LOGPS, requires_grad=True)
    mask, reference = torch.tensor(MASK).double(), torch.tensor(REFERENCE_LOGPS)
    scores = torch.tensor([1.0, -1, 0.5, 0, 2, -2]).double()
    old = LOGPS + np.random.default_rng(2).normal(0, 0.2, LOGPS.shape)

    ratio = (mask * (logps - reference)).sum(-1).reshape(3, 2)
    dpo_loss = -torch.nn.functional.logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).sum()
    rho = torch.exp(mask * (logps - torch.tensor(old)))
    gain = torch.minimum(rho * scores[:, None], rho.clamp(0.8, 1.2) * scores[:, None])
    grpo_loss = -(mask / 8 * gain).sum()
    sft_loss = -(mask * logps).sum() / mask.sum()

    weights = MASK * (len(MASK) / MASK.sum())
    instructed = {"tokens": TOKENS, "weights": weights}
    rewarded = reward_rows(old, MASK / 8, scores.numpy(), REFERENCE_LOGPS)
    preferred, c = pairs(REFERENCE_LOGPS), TuneConfig()
    ours = (
        (sft_loss, lambda p: instruction_losses(GPT_MODEL, p, instructed, None)[0].mean()),
        (dpo_loss, lambda p: preference_losses(c, GPT_MODEL, p, preferred)[0].sum()),
        (grpo_loss, lambda p: reward_losses(c, GPT_MODEL, p, rewarded)[0].sum()),
    )
    for theirs, loss in ours:
        assert float(loss(POLICY)) == pytest.approx(theirs.item(), abs=1e-5)
        [cotangent] = torch.autograd.grad(theirs, logps)
        check_gradient(loss, cotangent.numpy())


def test_losses_do_not_depend_on_padding() -> None:
    """Positions are rotary, so a longer window has the same parameters."""
    short = dataclasses.replace(MODEL, position="rotary")
    params = GPT(short).init(jax.random.key(0), TOKENS[:, :-1])["params"]
    scores, old = np.arange(6.0), LOGPS + 0.1

    def losses(padding: int) -> list:
        model = GPT(dataclasses.replace(short, block_size=8 + padding))
        wide = ((0, 0), (0, padding))
        filled = {"tokens": np.pad(TOKENS, wide, constant_values=3), "mask": np.pad(MASK, wide)}
        filled |= {"old": np.pad(old, wide), "reference": np.pad(REFERENCE_LOGPS, wide)}
        filled |= {"weights": filled["mask"] / 8, "advantages": scores, "metrics": {}}
        names = ("tokens", "mask", "reference")
        paired = {name: filled[name].reshape(3, 2, -1) for name in names}
        return [
            instruction_losses(model, params, filled, None)[0],
            preference_losses(TuneConfig(), model, params, paired)[0],
            reward_losses(TuneConfig(), model, params, filled)[0],
        ]

    for a, b in zip(losses(0), losses(5), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_k3_estimates_the_divergence_from_the_reference() -> None:
    """Its mean under p is KL(p, reference). With the exponent's sign reversed it is not."""
    p, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    estimate = (p * np.asarray(k3(jnp.log(p), jnp.log(reference)))).sum()
    assert estimate == pytest.approx((p * np.log(p / reference)).sum(), abs=1e-6)
