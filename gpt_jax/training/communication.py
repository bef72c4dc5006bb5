"""What the devices of a mesh send one another in a step, by formulas.

    data     gradients are summed over the devices                                 2 G (d-1)/d
             Muon: a device makes its share of the updates of M bytes of matrices,
             if every device has all parameters, and the others gather it (twice as
             much if the matrices of one shape cannot be divided evenly)             M (d-1)/d
    fsdp     parameters are gathered, forward and again backward; their gradients
             are summed and scattered (ZeRO: Rajbhandari et al., 2020, section 7)  3 P (f-1)/f
    tensor   activations are summed after attention and after the MLP, their
             gradients before them (Megatron-LM: Shoeybi et al., 2019, section 3)  8 L X (t-1)/t

These are the bytes that each device sends, and receives, in a ring of p devices (Patarasuk and
Yuan, 2009). Gathering n bytes, or summing and scattering them, sends n (p-1)/p; summing them for
all devices sends twice as much. G, P: bytes of gradients and parameters on a device; X: bytes of
one activation, in L blocks; d, f, t: devices along each axis.
"""

import math
from typing import Any, cast

import jax
from jax.sharding import NamedSharding

from gpt_jax.config import Config, GPTConfig
from gpt_jax.devices import BatchLayout
from gpt_jax.training.muon import groups
from gpt_jax.training.state import TrainState

SIZE = 4  # Parameters, gradients and the residual stream are float32.


def gather_bytes(size: float, ways: int) -> float:
    """Bytes a device sends to gather, or to sum and scatter, `size` bytes over `ways` devices."""
    return size * (ways - 1) / ways


def communication(abstract: TrainState, layout: BatchLayout, config: Config) -> dict[str, float]:
    """Bytes that each device sends in a step, by axis of the mesh; 0 for an axis of one device."""
    mesh = layout.sharding.mesh.shape
    # Gradients are summed after each microbatch unless every device has all parameters.
    is_whole = mesh["data"] == math.prod(mesh.values())
    times = 1 if is_whole else layout.microbatches
    leaves = jax.tree.leaves(abstract.params)
    data = times * sum(2 * gather_bytes(_local_bytes(leaf), mesh["data"]) for leaf in leaves)
    if is_whole and config.optimizer.name == "muon":
        data += gather_bytes(_matrix_bytes(abstract.params), mesh["data"])
    return {
        "data": data,
        "fsdp": times * sum(_over_fsdp(leaf, mesh["fsdp"]) for leaf in leaves),
        "tensor": _over_tensor(abstract.params, layout, config.model, mesh["tensor"]),
    }


def _matrix_bytes(params: Any) -> int:
    """Bytes of the matrices that Muon updates."""
    leaves, kinds = jax.tree.leaves(params), jax.tree.leaves(groups(params))
    kept = zip(leaves, kinds, strict=True)
    return sum(_local_bytes(leaf) for leaf, kind in kept if kind == "matrix")


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return SIZE * math.prod(leaf.sharding.shard_shape(leaf.shape))


def _is_sharded(leaf: jax.ShapeDtypeStruct, axis: str) -> bool:
    return any(axis in (names or ()) for names in cast(NamedSharding, leaf.sharding).spec)


def _over_fsdp(leaf: jax.ShapeDtypeStruct, ways: int) -> float:
    if _is_sharded(leaf, "fsdp"):
        return 3 * gather_bytes(_local_bytes(leaf) * ways, ways)
    return 2 * gather_bytes(_local_bytes(leaf), ways)


def _over_tensor(params: Any, layout: BatchLayout, config: GPTConfig, ways: int) -> float:
    """Two sums per sharded part of a block (three with remat), one per sharded table."""
    windows = layout.microbatches * layout.rows_per_device
    activation = SIZE * windows * config.block_size * config.n_embd
    block, table = params.get("h_0", params.get("h")), params["wte"]["embedding"]
    parts = block["attn"]["q"]["kernel"], block["mlp"]["c_fc"]["kernel"]
    tables = table, params.get("lm_head", {"kernel": table})["kernel"]
    per_part = (3 if config.remat else 2) * config.n_layer
    sums = per_part * sum(_is_sharded(part, "tensor") for part in parts)
    sums += sum(_is_sharded(table, "tensor") for table in tables)
    return sums * 2 * gather_bytes(activation, ways)
