"""Training steps of a small model, compiled once in a process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.device_count import start_devices
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.text.windows import train_batch
from gpt_jax.training import run
from gpt_jax.training.state import abstract_state, init_state
from gpt_jax.training.step import jit_eval_step, jit_train_step

TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint8)


def setting(config, **mesh):
    """First state, jitted step and layout of a configuration."""
    state, step, layout = compiled(config.with_values("mesh", **mesh))
    return jax.tree.map(lambda leaf: leaf.copy(), state), step, layout  # The step donates it.


@functools.cache
def compiled(config):
    devices = start_devices(config.mesh, config.train.batch_size)
    devices_mesh = make_mesh(config.mesh, devices)
    layout = make_batch_layout(config, devices_mesh)
    abstract = abstract_state(config, devices_mesh)
    step = jit_train_step(config, abstract, layout)
    return init_state(config, abstract), step, layout


def windows(config, step):
    return train_batch(TOKENS, config.model.block_size, config.train.batch_size, 0, step)


def losses(config, steps, **mesh):
    state, step, layout = setting(config, **mesh)
    found = []
    for n in range(steps):
        state, metrics = step(state, layout.place(windows(config, n)))
        found.append(float(jax.block_until_ready(metrics)["loss"]))
    return found, state


def target(shape):
    """A tree of one array to restore, on one device."""
    sharding_of_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"w": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding_of_one)}


def share_steps(monkeypatch):
    """Makes whole runs in a test share their compiled steps with runs of the same kind.

    Otherwise each call of `loop.train` traces and lowers its steps again: about a second.
    """
    monkeypatch.setattr(run, "jit_train_step", lambda *args: shared(jit_train_step, *args))
    monkeypatch.setattr(run, "jit_eval_step", lambda *args: shared(jit_eval_step, *args))


def shared(make, config, abstract, layout, *losses):
    # Not the losses themselves: some objectives make a new function for every run.
    kind = config.model, config.optimizer, config.train.steps, config.tune, len(losses)
    key = make, kind, layout
    if key not in SHARED:
        SHARED[key] = make(config, abstract, layout, *losses)
    return SHARED[key]


SHARED = {}
