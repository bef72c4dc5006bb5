"""Learning-rate schedules and the optax chain: gradients -> updates."""

from typing import Any

import jax
import optax

from gpt_jax.config import Config, OptimizerConfig

DECAYED = ("kernel", "embedding")


def make_schedule(config: Config) -> optax.Schedule:
    """The learning rate of each update, as a function of the updates already made.

    Update i of the warm-up (counted from 1) uses i / warmup_steps of the peak, so none is wasted at
    a rate of 0. Then the rate stays, or follows half a cosine down to the minimum at `train.steps`.
    """
    c = config.optimizer
    after = _after_warmup(c, max(config.train.steps - c.warmup_steps, 1))
    if c.warmup_steps < 2:
        return after
    first = c.learning_rate / c.warmup_steps
    warmup = optax.linear_schedule(first, c.learning_rate, c.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [c.warmup_steps])


def _after_warmup(c: OptimizerConfig, steps: int) -> optax.Schedule:
    if c.schedule == "constant":
        return optax.constant_schedule(c.learning_rate)
    return optax.cosine_decay_schedule(
        c.learning_rate, steps, c.min_learning_rate / c.learning_rate
    )


def is_decayed(params: Any) -> Any:
    """The tree of `params` with True at matrices and tables, False at biases and scales."""

    def by_name(path: tuple[Any, ...], leaf: Any) -> bool:
        return any(getattr(entry, "key", None) in DECAYED for entry in path)

    return jax.tree_util.tree_map_with_path(by_name, params)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clips the gradient by its global norm, then Adam or AdamW at the scheduled learning rate."""
    c, schedule = config.optimizer, make_schedule(config)
    clip = optax.clip_by_global_norm(c.grad_clip) if c.grad_clip else optax.identity()
    if c.name == "adamw":
        adam = optax.adamw(schedule, c.b1, c.b2, weight_decay=c.weight_decay, mask=is_decayed)
    else:
        adam = optax.adam(schedule, c.b1, c.b2)
    return optax.chain(clip, adam)
