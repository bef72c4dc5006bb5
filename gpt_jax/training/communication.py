"""What the devices of a mesh must tell one another in a step, by formulas.

    data     each device's gradients are summed                                    2 G (d-1)/d
    fsdp     parameters are fetched forward and again backward, their gradients
             summed where they lie (ZeRO: Rajbhandari et al., 2020, section 7)     3 P (f-1)/f
    tensor   activations are summed after attention and after the MLP, their
             gradients before (Megatron-LM: Shoeybi et al., 2019, section 3)       8 L X (t-1)/t

Bytes that a device sends, and receives, where devices stand in a ring (Patarasuk and Yuan, 2009):
n bytes are gathered, or summed and scattered, by n (p-1)/p, and summed for all by twice as many.
G, P: of gradients and parameters, as far as a device has them; X: of one activation of L blocks.
"""

import math
from typing import Any, cast

import jax
from jax.sharding import NamedSharding

from gpt_jax.config import GPTConfig
from gpt_jax.devices import BatchLayout
from gpt_jax.training.state import TrainState

SIZE = 4  # Parameters, gradients and the residual stream are float32.


def gathered(size: float, ways: int) -> float:
    """Bytes a device sends until all `ways` devices have all `size` bytes, or a sum's share."""
    return size * (ways - 1) / ways


def communication(abstract: TrainState, layout: BatchLayout, config: GPTConfig) -> dict[str, float]:
    """Bytes that each device sends in a step along each axis of the mesh.

    Args:
      abstract: of `train_step.abstract_state`.

    Returns: bytes by the name of the axis; 0 for an axis of one device.
    """
    mesh = layout.sharding.mesh.shape
    # Where not every device has all parameters, gradients are summed after each microbatch.
    times = 1 if mesh["data"] == math.prod(mesh.values()) else layout.microbatches
    leaves = jax.tree.leaves(abstract.params)
    return {
        "data": times * sum(2 * gathered(_share(leaf), mesh["data"]) for leaf in leaves),
        "fsdp": times * sum(_over_fsdp(leaf, mesh["fsdp"]) for leaf in leaves),
        "tensor": _over_tensor(abstract.params, layout, config, mesh["tensor"]),
    }


def _share(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of a parameter that one device has."""
    assert leaf.sharding is not None
    return SIZE * math.prod(leaf.sharding.shard_shape(leaf.shape))


def _is_shared(leaf: jax.ShapeDtypeStruct, axis: str) -> bool:
    """Whether the devices along a mesh axis share a parameter."""
    return any(axis in (names or ()) for names in cast(NamedSharding, leaf.sharding).spec)


def _over_fsdp(leaf: jax.ShapeDtypeStruct, ways: int) -> float:
    if _is_shared(leaf, "fsdp"):
        return 3 * gathered(_share(leaf) * ways, ways)
    return 2 * gathered(_share(leaf), ways)


def _over_tensor(params: Any, layout: BatchLayout, config: GPTConfig, ways: int) -> float:
    """Two sums for each part of a block that is shared (with remat a third), one for each table."""
    windows = layout.microbatches * layout.rows_per_device
    activation = SIZE * windows * config.block_size * config.n_embd
    block, head = (
        params.get("h_0", params.get("h")),
        params.get("lm_head", {"kernel": params["wte"]["embedding"]}),
    )
    parts = block["attn"]["q"]["kernel"], block["mlp"]["c_fc"]["kernel"]
    sums = (
        (3 if config.remat else 2)
        * config.n_layer
        * sum(_is_shared(part, "tensor") for part in parts)
    )
    tables = params["wte"]["embedding"], head["kernel"]
    sums += sum(_is_shared(table, "tensor") for table in tables)
    return sums * 2 * gathered(activation, ways)
