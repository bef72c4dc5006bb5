"""The mesh of devices, with the axes data, fsdp and tensor.

A laptop's cores, a server's GPUs and a cluster's hosts look the same to the rest of the code: a
mesh (data, fsdp, tensor). A single core is the mesh (1, 1, 1). A mesh never changes a shape.
"""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from gpt_jax.config import MeshConfig
from gpt_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # The axes that share the rows of a batch.
MAX_PLANNED_DEVICES = 1024


def make_mesh(config: MeshConfig, devices: list[jax.Device]) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices`. Raises UserError if it needs more or fewer."""
    others = config.fsdp * config.tensor
    data = len(devices) // others if config.data == -1 else config.data
    if data * others != len(devices):
        raise UserError(
            f"mesh.data = {config.data}, mesh.fsdp = {config.fsdp} and mesh.tensor = "
            f"{config.tensor} do not multiply to the {len(devices)} available devices: change "
            "them, or mesh.cpu_devices; to plan for other devices, give all three"
        )
    shape = (data, config.fsdp, config.tensor)
    # Auto: make_mesh's default, Explicit, rejects the embedding look-up of a linen model.
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * 3, devices=devices)


def make_abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """A mesh for planning, without devices. Raises UserError above MAX_PLANNED_DEVICES."""
    shape = (config.data, config.fsdp, config.tensor)
    if math.prod(shape) > MAX_PLANNED_DEVICES:
        raise UserError(
            f"mesh.data = {config.data}, mesh.fsdp = {config.fsdp} and mesh.tensor = "
            f"{config.tensor} are {math.prod(shape)} devices: plan for at most "
            f"{MAX_PLANNED_DEVICES}"
        )
    return AbstractMesh(shape, MESH_AXES, (AxisType.Auto,) * 3)
