"""The training state: everything a step changes, and its initial value."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import AbstractMesh, Mesh

from gpt_jax.config import Config
from gpt_jax.devices import tree_shardings
from gpt_jax.model import GPT, plain, stack
from gpt_jax.training.optimizer import make_optimizer


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and nothing else. All leaves are arrays.

    `step` counts finished updates, including skipped ones. `key` never changes: a step's random
    numbers come from fold_in(key, step). `average` is a tree like `params`, or empty.
    """

    step: Array
    params: Any
    opt_state: optax.OptState
    key: Array
    skipped: Array
    skipped_in_a_row: Array
    average: Any = ()

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate and to sample from: their average if there is one."""
        return self.average or self.params


def init_state(config: Config, abstract: TrainState) -> TrainState:
    """The state before the first update, created in its shards; the same bits on every mesh."""
    return jax.jit(lambda: nn.unbox(_init(config)), out_shardings=state_shardings(abstract))()


def init_state_from(config: Config, abstract: TrainState, params: Any) -> TrainState:
    """The state before the first update, with given parameters such as GPT-2's.

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
    """Shape, dtype and sharding of every array of the state. Allocates nothing."""
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
    """The initial state, with parameters in Flax's boxes, which name their axes."""
    params_key, key = _keys(config)
    tokens_BT = jnp.zeros((1, config.model.block_size), jnp.int32)
    # Scanned blocks get the numbers of unrolled ones; `nn.scan` would draw others.
    params = GPT(plain(config.model)).init(params_key, tokens_BT)["params"]
    return _state(config, stack(params) if config.model.scan_layers else params, key)


def _keys(config: Config) -> Array:
    """The key of the parameters and the key of the steps, shape (2,)."""
    return jax.random.split(jax.random.key(config.train.seed))


def _state(config: Config, params: Any, key: Array) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    opt_state = make_optimizer(config).init(params)
    average = params if config.optimizer.average_decay else ()
    return TrainState(zero, params, opt_state, key, zero, zero, average)
