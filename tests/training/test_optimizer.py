"""Schedules, weight decay, updates against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from trees import paths_of, shapes_of

from gpt_jax.config.config import Config
from gpt_jax.training.optimizer import is_decayed, make_optimizer, make_schedule


def schedule(**values):
    values = {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_steps": 10} | values
    config = Config().with_values("optimizer", **values).with_values("train", steps=110)
    return make_schedule(config)


def test_cosine_schedule():
    rate = schedule(schedule="cosine")
    assert rate(0) == pytest.approx(0.1)
    assert rate(4) == pytest.approx(0.5)
    assert rate(9) == pytest.approx(1.0)
    assert rate(10) == pytest.approx(1.0)
    assert rate(60) == pytest.approx(0.55)
    assert rate(110) == pytest.approx(0.1)
    assert rate(1000) == pytest.approx(0.1)


def test_linear_schedule_reaches_the_minimum_at_the_last_step():
    rate = schedule(schedule="linear")
    assert [float(rate(n)) for n in (9, 10, 60, 110, 1000)] == pytest.approx([1, 1, 0.55, 0.1, 0.1])


def test_stable_schedule_decays_only_at_its_end():
    """The decay takes half of 110 steps: it starts at step 55."""
    rate = schedule(schedule="stable", decay_fraction=0.5)
    expected = [1, 1, 1, 0.55, 0.1]
    assert [float(rate(n)) for n in (9, 40, 55, 82.5, 110)] == pytest.approx(expected)


def test_a_decay_longer_than_the_remaining_steps_is_shortened():
    rate, linear = schedule(schedule="stable", decay_fraction=1.0), schedule(schedule="linear")
    steps = jnp.arange(111)
    np.testing.assert_array_equal(jax.vmap(rate)(steps), jax.vmap(linear)(steps))


def test_constant_schedule():
    rate = schedule(schedule="constant")
    assert [float(rate(n)) for n in (9, 10, 109)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("name", ["linear", "cosine", "stable", "constant"])
def test_the_longest_run_has_a_schedule(name):
    steps = 2**31 - 1
    values = {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_steps": 10, "schedule": name}
    config = Config().with_values("optimizer", **values).with_values("train", steps=steps)
    rate = make_schedule(config)
    assert rate(jnp.int32(9)) == pytest.approx(1.0)
    assert rate(jnp.int32(steps)) == pytest.approx(1.0 if name == "constant" else 0.1, rel=1e-3)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_warmup_the_first_update_uses_the_peak(warmup_steps):
    assert schedule(warmup_steps=warmup_steps)(0) == pytest.approx(1.0)


def test_a_warmup_can_be_as_long_as_the_run():
    assert schedule(warmup_steps=110)(109) == pytest.approx(1.0)


def test_weight_decay_applies_only_to_kernels_and_embeddings(small):
    boxed = shapes_of(small.with_values("model", n_layer=1, qkv_bias=True).model)
    for params in (boxed, nn.unbox(boxed)):
        mask = paths_of(nn.unbox(is_decayed(params)))
        decayed = {name for name, leaf in mask.items() if leaf}
        assert decayed == {
            "wte/embedding",
            "wpe/embedding",
            "h_0/attn/q/kernel",
            "h_0/attn/k/kernel",
            "h_0/attn/v/kernel",
            "h_0/attn/c_proj/kernel",
            "h_0/mlp/c_fc/kernel",
            "h_0/mlp/c_proj/kernel",
            "lm_head/kernel",
        }
        assert len(mask) == 21


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.5)])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_two_updates_match_numpy(name, decay, scale):
    """With gradients below and far above the clipping norm of 1."""
    values = {"name": name, "weight_decay": decay, "warmup_steps": 4, "b1": 0.8, "b2": 0.9}
    config = Config().with_values("optimizer", **values)
    optimizer, rng = make_optimizer(config), np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    params = {k: v.astype(np.float32) for k, v in params.items()}
    expected = {k: v.astype(np.float64) for k, v in params.items()}
    mean = dict.fromkeys(params, 0.0)
    square = dict.fromkeys(params, 0.0)
    state = optimizer.init(params)
    for step in (1, 2):
        grads = {k: scale * rng.normal(size=v.shape) for k, v in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for k, g in grads.items():
            g = g / max(norm, 1.0)
            mean[k] = 0.8 * mean[k] + 0.2 * g
            square[k] = 0.9 * square[k] + 0.1 * g**2
            update = mean[k] / (1 - 0.8**step) / (np.sqrt(square[k] / (1 - 0.9**step)) + 1e-8)
            if k == "kernel":
                update = update + decay * expected[k]
            expected[k] = expected[k] - 3e-3 * step / 4 * update
        for k in params:
            np.testing.assert_allclose(params[k], expected[k], rtol=1e-5)


def test_without_clipping_the_gradient_is_not_scaled():
    config = Config().with_values("optimizer", grad_clip=0.0, b1=0.0, b2=0.0)
    clipped = Config().with_values("optimizer", grad_clip=1e-9, b1=0.0, b2=0.0)
    params = {"kernel": jnp.ones(3)}
    grads = {"kernel": jnp.full(3, 5.0)}
    plain, tiny = (
        make_optimizer(c).update(grads, make_optimizer(c).init(params), params)[0]["kernel"]
        for c in (config, clipped)
    )
    np.testing.assert_allclose(plain, -3e-5, rtol=1e-5)
    assert (np.abs(tiny) < np.abs(plain)).all()
