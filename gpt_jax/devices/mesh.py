"""The mesh of devices (data, fsdp, tensor)."""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from gpt_jax.config import MeshConfig
from gpt_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


BATCH_AXES = ("data", "fsdp")


MOST_PLANNED = 1024


def make_mesh(config: MeshConfig, devices: list[jax.Device]) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices`.

    Raises:
      UserError: when the sizes do not multiply to the number of devices.
    """
    shared = config.fsdp * config.tensor
    data = len(devices) // shared if config.data == -1 else config.data
    if data * shared != len(devices):
        raise UserError(
            f"mesh.data = {config.data}, mesh.fsdp = {config.fsdp} and mesh.tensor = "
            f"{config.tensor} do not multiply to the {len(devices)} devices at hand: change them, "
            "or mesh.cpu_devices; to plan for others, give all three"
        )
    shape = (data, config.fsdp, config.tensor)
    # Auto: make_mesh's own default, Explicit, refuses the embedding look-up of a linen model.
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * 3, devices=devices)


def make_abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh (data, fsdp, tensor) of devices that are not at hand, to plan with.

    Raises:
      UserError: for more than MOST_PLANNED devices.
    """
    shape = (config.data, config.fsdp, config.tensor)
    if math.prod(shape) > MOST_PLANNED:
        raise UserError(
            f"mesh.data = {config.data}, mesh.fsdp = {config.fsdp} and mesh.tensor = "
            f"{config.tensor} are {math.prod(shape)} devices: plan for {MOST_PLANNED} at most"
        )
    return AbstractMesh(shape, MESH_AXES, (AxisType.Auto,) * 3)
