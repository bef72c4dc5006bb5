"""The blocks of a model in their order, unrolled or scanned, and the parameters of either.

    unrolled   h_0/attn/q/kernel (C, H, D), h_1/attn/q/kernel (C, H, D), ...
    scanned    h/attn/q/kernel (L, C, H, D)

Shapes (the suffix of a name): B rows, T time, C width, L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax.config import GPTConfig

AXIS = {nn.PARTITION_NAME: "layers"}  # The logical name of a stacked parameter's first axis.
Run = Callable[[Any, jax.Array, jax.Array | int], jax.Array]


def run_blocks(config: GPTConfig, blocks: Any, run: Run, x_BTC: jax.Array) -> jax.Array:
    """x after `run(block, x, layer)` of every layer.

    Args:
      blocks: n_layer modules or, with `config.scan_layers`, the one that has stacked parameters.
      run: may call the block once; with `config.remat` it is called again in the backward pass.
    """
    if config.remat:
        # No policy: what a block keeps is its input alone. Keeping products, too, would spare
        # their work, but they are most of the memory that this is meant to save. In a scan the
        # compiler cannot see both passes at once, and so cannot undo it by sharing their work.
        run = nn.remat(run, prevent_cse=not config.scan_layers)
    if not config.scan_layers:
        for layer, block in enumerate(blocks):
            x_BTC = run(block, x_BTC, layer)
        return x_BTC
    scan = nn.scan(
        lambda block, x_BTC, layer: (run(block, x_BTC, layer), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        metadata_params=AXIS,
    )
    x_BTC, _ = scan(blocks, x_BTC, jnp.arange(config.n_layer))
    return x_BTC


def plain(config: GPTConfig) -> GPTConfig:
    """The same model, unrolled and without what serves training alone: for every machine."""
    return dataclasses.replace(config, attention="xla", remat=False, scan_layers=False)


def unrolled(config: GPTConfig, params: Any) -> tuple[GPTConfig, Any]:
    """The model as decoding and export know it: its `plain` configuration and parameters."""
    return plain(config), unstack(params) if config.scan_layers else params


def stack(params: Any) -> Any:
    """The parameters of the scanned model from those of the unrolled one, boxed or not."""
    layers = sum(name.startswith("h_") for name in params)
    rest = {name: value for name, value in params.items() if not name.startswith("h_")}
    blocks = [params[f"h_{layer}"] for layer in range(layers)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return rest | {"h": nn.meta.add_axis(stacked, 0, AXIS)}


def unstack(params: Any) -> Any:
    """The parameters of the unrolled model from those of the scanned one."""
    rest = {name: value for name, value in params.items() if name != "h"}
    layers = len(jax.tree.leaves(params["h"])[0])
    blocks = {
        f"h_{layer}": jax.tree.map(lambda leaf, at=layer: leaf[at], params["h"])
        for layer in range(layers)
    }
    return rest | blocks
