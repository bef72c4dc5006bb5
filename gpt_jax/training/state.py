"""The state of training: what a step changes, and its first value."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import AbstractMesh, Mesh

from gpt_jax.config import Config, GPTConfig
from gpt_jax.devices import tree_shardings
from gpt_jax.model import GPT, plain, stack
from gpt_jax.training.optimizer import make_optimizer


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and nothing else: arrays only.

    `step` counts finished updates, skipped ones included. `key` never changes: the random numbers
    of a step come from fold_in(key, step). `average` is a tree like `params`, or empty.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    key: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    average: Any = ()

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate and to sample from: their average, if there is one."""
        return self.average or self.params


def init_state(config: Config, abstract: TrainState) -> TrainState:
    """The state before the first update, made directly in its shards: the same on every mesh."""
    make = jax.jit(lambda: nn.unbox(_init(config)), out_shardings=state_shardings(abstract))
    return make()


def init_state_from(config: Config, abstract: TrainState, params: Any) -> TrainState:
    """The state before the first update of given parameters, such as GPT-2's.

    Args:
      params: a tree like `abstract.params`, in the same shards.
    """

    def make(params: Any) -> TrainState:
        return _state(config, params, _keys(config)[1]).replace(params=(), average=())

    shardings = state_shardings(abstract).replace(params=(), average=())
    state = jax.jit(make, out_shardings=shardings)(params)
    average = jax.tree.map(jnp.copy, params) if abstract.average else ()
    return state.replace(params=params, average=average)


def abstract_state(config: Config, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shape, dtype and sharding of every array of the state; allocates nothing."""
    boxed = jax.eval_shape(lambda: _init(config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        tree_shardings(boxed, mesh),
    )


def state_shardings(abstract: TrainState) -> TrainState:
    """The shardings in a tree from `abstract_state`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _init(config: Config) -> TrainState:
    """The first state; parameters are boxed with the logical names of their axes."""
    params_key, key = _keys(config)
    return _state(config, _init_params(config.model, params_key), key)


def _keys(config: Config) -> jax.Array:
    """The key of the parameters and the key of the steps, shape (2,)."""
    return jax.random.split(jax.random.key(config.train.seed))


def _state(config: Config, params: Any, key: jax.Array) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    opt_state = make_optimizer(config).init(params)
    average = params if config.optimizer.average_decay else ()
    return TrainState(zero, params, opt_state, key, zero, zero, average)


def _init_params(config: GPTConfig, key: jax.Array) -> Any:
    """Boxed parameters. Stacked blocks get the numbers of unrolled ones: `nn.scan` would draw
    others."""
    tokens_BT = jnp.zeros((1, config.block_size), jnp.int32)
    params = GPT(plain(config)).init(key, tokens_BT)["params"]
    return stack(params) if config.scan_layers else params
