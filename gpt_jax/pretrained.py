"""How a run begins from GPT-2's weights: its configuration follows theirs, its first parameters are
they."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import gpt2
from gpt_jax.config import Config, GPTConfig
from gpt_jax.run_folder import Record
from gpt_jax.setting import UserError
from gpt_jax.train_step import TrainState

# What a model of given weights can choose freely.
NOT_OF_SHAPE = {"dropout", "zero_init", "matmul_dtype", "attention", "remat", "scan_layers"}
SHAPE = [f.name for f in dataclasses.fields(GPTConfig) if f.name not in NOT_OF_SHAPE]


def configured(config: Config, init_from: str, record: Record | None, workdir: Path) -> Config:
    """`config` with the shape of the weights that a run begins or began from, and their tokenizer.

    What stands at its default follows the weights; what does not must agree with them. (The
    tokenizer need not: the same one may lie elsewhere.)

    Args:
      init_from: folder of the weights, absolute; empty = none are named.
      record: of a run that goes on; then the folder is not read.

    Raises:
      UserError: for a folder that cannot serve, for fields that contradict it, or where the run
        began from something else.
    """
    if record is None:
        if not init_from:
            return config
        return _following(config, gpt2.open_folder(Path(init_from)).config, init_from, init_from)
    if init_from not in ("", record.init_from):
        raise UserError(
            f"{workdir} holds a run that began from {record.init_from or 'random numbers'}, not "
            f"from {init_from}: leave out --init_from to go on, or use another --workdir"
        )
    if not record.init_from:
        return config
    old = record.config
    return _following(config, old.model, old.data.tokenizer, record.init_from)


def _following(config: Config, shape: GPTConfig, tokenizer: str, source: str) -> Config:
    default = Config()
    of_weights = {name: getattr(shape, name) for name in SHAPE}
    unlike = [
        f"model.{name} = {given!r}, there {value!r}"
        for name, value in of_weights.items()
        if (given := getattr(config.model, name)) not in (value, getattr(default.model, name))
    ]
    if unlike:
        raise UserError(
            f"the configuration contradicts the weights of {source} ({'; '.join(unlike)}): leave "
            "these fields at their defaults, and they follow the weights"
        )
    if config.data.tokenizer == default.data.tokenizer:
        config = config.with_values("data", tokenizer=tokenizer)
    return config.with_values("model", **of_weights)


def with_weights(state: TrainState, source: str) -> TrainState:
    """A new state with the parameters of the folder `source`, read one by one, each in its shards.

    Its own parameters are given up, so that memory holds no more than a run needs.

    Raises:
      UserError: as `gpt2.open_folder`.
    """
    folder = gpt2.open_folder(Path(source))
    jax.tree.map(lambda old: old.delete(), state.average)

    def read(path: tuple[Any, ...], old: jax.Array) -> jax.Array:
        shape, place = old.shape, old.sharding
        old.delete()
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        whole = _read(folder, name, shape)
        return jax.make_array_from_callback(shape, place, lambda index: whole[index])

    params = jax.tree_util.tree_map_with_path(read, state.params)
    average = jax.tree.map(jnp.copy, params) if state.average else ()
    return state.replace(params=params, average=average)


def _read(folder: gpt2.Folder, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """One of our parameters; of stacked blocks (stacking.py), one block after another."""
    if not path.startswith("h/"):
        return folder.read(path, shape)
    stacked = np.empty(shape, np.float32)
    for layer, place in enumerate(stacked):
        place[...] = folder.read(f"h_{layer}{path.removeprefix('h')}", place.shape)
    return stacked
