"""Learning rate schedule, weight decay, parameter groups, the optax chain: gradients -> updates."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh

from gpt_jax.config import Config, OptimizerConfig
from gpt_jax.training.muon import groups, muon, names_of

DECAYED = {"kernel", "embedding"}  # Names of the parameters that weight decay applies to.


def make_schedule(config: Config) -> optax.Schedule:
    """The learning rate of each update, as a function of the number of updates before it.

    Update i of the warm-up, counted from 1, uses i / warmup_steps of the peak, so no update is
    wasted at a rate of 0. The schedule after it reaches the minimum at `train.steps`.
    """
    c = config.optimizer
    after = _after_warmup(c, max(config.train.steps - c.warmup_steps, 1), config.train.steps)
    if c.warmup_steps < 2:
        return after
    first = c.learning_rate / c.warmup_steps
    warmup = optax.linear_schedule(first, c.learning_rate, c.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [c.warmup_steps])


def _after_warmup(c: OptimizerConfig, left: int, steps: int) -> optax.Schedule:
    """The schedule of the `left` steps after the warm-up, in a run of `steps`."""
    peak, end = c.learning_rate, c.min_learning_rate
    if c.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, left, end / peak)
    if c.schedule == "linear":
        return optax.linear_schedule(peak, end, left)
    if c.schedule == "stable":
        decay = min(left, max(1, round(c.decay_fraction * steps)))
        return optax.linear_schedule(peak, end, decay, transition_begin=left - decay)
    return optax.constant_schedule(peak)


def make_optimizer(config: Config, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """Clips the gradient by its global norm, then updates at the scheduled learning rate.

    `mesh`: its devices share Muon's work.
    """
    c = config.optimizer
    clip = optax.clip_by_global_norm(c.grad_clip) if c.grad_clip else optax.identity()
    if c.name != "muon":
        return optax.chain(clip, _adam(config))
    updates = {"matrix": muon(c, make_schedule(config), mesh), "other": _adam(config)}
    return optax.chain(clip, optax.partition(updates, groups))


def _adam(config: Config) -> optax.GradientTransformation:
    c, schedule = config.optimizer, make_schedule(config)
    if c.name == "adam":
        return optax.adam(schedule, c.b1, c.b2)
    return optax.adamw(schedule, c.b1, c.b2, weight_decay=c.weight_decay, mask=is_decayed)


def is_decayed(params: Any) -> Any:
    """A tree like `params`: True for kernels and embeddings, False for biases and scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(names_of(path) & DECAYED), params)
