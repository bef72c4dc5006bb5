"""The losses of tuning: instructions, preferences, rewards. Pure functions of a microbatch.

Each returns the loss of every row, and metrics of every row. The step takes the mean over all rows
of the batch; so what a loss divides by is made on the host for the whole batch, and
microbatches change nothing.

Shapes: M rows of a microbatch, T targets of a window, W = T + 1; P = 2, chosen and rejected.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gpt_jax.config import TuneConfig
from gpt_jax.model import GPT
from gpt_jax.training.step import token_losses

Rows = dict[str, Array]
Losses = tuple[Array, dict[str, Array]]


def log_probabilities(model: GPT, params: Any, tokens_MW: Array, temperature: float = 1.0) -> Array:
    """log p of every target in nats, shape (M, T), without dropout; p as drawn at a temperature."""
    logits_MTV = cast(Array, model.apply({"params": params}, tokens_MW[:, :-1]))
    targets_MT = tokens_MW[:, 1:]
    return -optax.softmax_cross_entropy_with_integer_labels(logits_MTV / temperature, targets_MT)


def instruction_losses(model: GPT, params: Any, rows: Rows, keys_M: Array | None) -> Losses:
    """Supervised fine-tuning: -sum w log p over the targets of a row.

    Rows: `tokens` (M, W); `weights` (M, T), the mask divided by the mean number of learned targets
    of a row of the batch. Then the mean over rows is the mean over all learned targets.
    """
    losses_MT = token_losses(model, params, rows["tokens"], keys_M)
    return (rows["weights"] * losses_MT).sum(-1), {}


def preference_losses(c: TuneConfig, model: GPT, params: Any, rows: Rows) -> Losses:
    """DPO (Rafailov et al., 2023): -log sigmoid(beta [r(chosen) - r(rejected)]), where
    r = log p(answer) - log p_reference(answer), summed over the answer. ln 2 at the beginning.

    With `tune.chosen_weight`, plus that weight times the chosen answer's mean -log p of a token: it
    keeps the chosen answer likely while the margin grows (Pang et al., 2024, "Iterative reasoning
    preference optimization").

    Rows: `tokens` (M, P, W), `mask` (M, P, T), `reference` (M, P, T): the reference's log p.
    """
    tokens_MPW, mask_MPT = rows["tokens"], rows["mask"]
    flat = tokens_MPW.reshape(-1, tokens_MPW.shape[-1])
    logps_MPT = log_probabilities(model, params, flat).reshape(mask_MPT.shape)
    logps_MP = (mask_MPT * logps_MPT).sum(-1)
    rewards_MP = c.beta * (mask_MPT * (logps_MPT - rows["reference"])).sum(-1)
    margins_M = rewards_MP[:, 0] - rewards_MP[:, 1]
    metrics = {
        "rewards/chosen": rewards_MP[:, 0],
        "rewards/rejected": rewards_MP[:, 1],
        "rewards/margins": margins_M,
        "rewards/accuracies": (margins_M > 0).astype(jnp.float32),
        "logps/chosen": logps_MP[:, 0],
        "logps/rejected": logps_MP[:, 1],
        "nll_loss": -logps_MP[:, 0] / mask_MPT[:, 0].sum(-1),
    }
    return -jax.nn.log_sigmoid(margins_M) + c.chosen_weight * metrics["nll_loss"], metrics


def reward_losses(c: TuneConfig, model: GPT, params: Any, rows: Rows) -> Losses:
    """Group-relative policy gradient (GRPO: Shao et al., 2024), for every answer

        -sum w min(rho A, clip(rho, 1 - eps, 1 + eps) A)

    with rho = p / p_old of a token, both at `tune.temperature`, at which answers are drawn, and A
    the advantage of its answer (rewards.py).

    Rows: `tokens` (M, W), `mask` and `weights` (M, T), `advantages` (M,), `old` and `reference`
    (M, T): log p of the policy that drew the answers, and of the reference; `metrics`, passed on.
    """
    logps_MT = log_probabilities(model, params, rows["tokens"], c.temperature)
    ratio_MT = jnp.exp(rows["mask"] * (logps_MT - rows["old"]))
    clipped_MT = jnp.clip(ratio_MT, 1 - c.clip, 1 + c.clip)
    advantages_M1 = rows["advantages"][:, None]
    gain_MT = jnp.minimum(ratio_MT * advantages_M1, clipped_MT * advantages_M1)
    mask_MT, length_M = rows["mask"], rows["mask"].sum(-1)
    metrics = {
        **cast(dict[str, Array], rows["metrics"]),
        "kl": k3(mask_MT * logps_MT, mask_MT * rows["reference"]).sum(-1) / length_M,
        "entropy": -(mask_MT * logps_MT).sum(-1) / length_M,
        "clip_ratio": (mask_MT * (ratio_MT != clipped_MT)).sum(-1) / length_M,
    }
    return -(rows["weights"] * gain_MT).sum(-1), metrics


def k3(logps: Array, reference: Array) -> Array:
    """An estimate of KL(p, p_reference) from tokens that p drew, never negative (Schulman, 2020):
    exp(log p_reference - log p) - (log p_reference - log p) - 1."""
    return jnp.expm1(reference - logps) - (reference - logps)
