"""The machine: its devices, the mesh over them, the processes of one run, the compiler.

Owns how many devices a run uses, where each array lies, and what several processes agree on. It
does not touch training or a run's files. Read device_count.py and mesh.py first, then sharding.py.
"""

from gpt_jax.devices.batch_layout import BatchLayout, make_batch_layout
from gpt_jax.devices.device_count import own_devices, start_devices, usable_cores
from gpt_jax.devices.jax_settings import pinned_settings, pinned_steps
from gpt_jax.devices.mesh import make_abstract_mesh, make_mesh
from gpt_jax.devices.sharding import activations_over, tree_shardings

__all__ = [
    "BatchLayout",
    "activations_over",
    "compiler",
    "hardware",
    "make_abstract_mesh",
    "make_batch_layout",
    "make_mesh",
    "own_devices",
    "pinned_settings",
    "pinned_steps",
    "processes",
    "start_devices",
    "tree_shardings",
    "usable_cores",
]
