"""Runs the blocks of a model in order, unrolled or scanned, and converts their parameters.

    unrolled   h_0/attn/q/kernel (C, H, D), h_1/attn/q/kernel (C, H, D), ...
    scanned    h/attn/q/kernel (L, C, H, D)

Training uses either form; decoding and export use the unrolled one.

Shapes (the suffix of a name): B rows, T time, C width, L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gpt_jax.config import GPTConfig

AXIS = {nn.PARTITION_NAME: "layers"}  # Logical name of a stacked parameter's first axis.
Run = Callable[[Any, Array, Array | int], Array]


def run_blocks(config: GPTConfig, blocks: Any, run: Run, x_BTC: Array) -> Array:
    """x after `run(block, x, layer)` for every layer.

    Args:
      blocks: n_layer modules or, with `config.scan_layers`, one module with stacked parameters.
      run: may call the block once. With `config.remat`, the backward pass calls `run` again.
    """
    if config.remat:
        # No policy: only a block's input is saved. Saving products too would spare their work, but
        # they are most of the memory. prevent_cse=False is safe in a scan, where the compiler does
        # not see both passes at once and so cannot undo remat by merging them.
        run = nn.remat(run, prevent_cse=not config.scan_layers)
    if not config.scan_layers:
        # Traced once for all blocks, so that a second start takes 4 s instead of 5. Not while they
        # are initialized: with `nn.jit` a seed would give other parameters.
        run = run if blocks[0].is_initializing() else nn.jit(run)
        for layer, block in enumerate(blocks):
            x_BTC = run(block, x_BTC, jnp.asarray(layer))
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
    """The same model, unrolled and without options that only training needs: runs anywhere."""
    return dataclasses.replace(config, attention="xla", remat=False, scan_layers=False)


def unrolled(config: GPTConfig, params: Any) -> tuple[GPTConfig, Any]:
    """The `plain` config and unrolled parameters of a model: what decoding and export use."""
    return plain(config), unstack(params) if config.scan_layers else params


def stack(params: Any) -> Any:
    """Unrolled parameters -> scanned ones, with or without Flax's boxes of axis names."""
    layers = sum(name.startswith("h_") for name in params)
    rest = {name: value for name, value in params.items() if not name.startswith("h_")}
    blocks = [params[f"h_{layer}"] for layer in range(layers)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return rest | {"h": nn.meta.add_axis(stacked, 0, AXIS)}


def unstack(params: Any) -> Any:
    """Scanned parameters -> unrolled ones."""
    rest = {name: value for name, value in params.items() if name != "h"}
    layers = len(jax.tree.leaves(params["h"])[0])
    blocks = {
        f"h_{layer}": jax.tree.map(lambda leaf, at=layer: leaf[at], params["h"])
        for layer in range(layers)
    }
    return rest | blocks
