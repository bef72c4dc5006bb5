"""Every setting of a run: its default, its range, its meaning, and the way in and out.

Owns the configuration: frozen dataclasses inside the project, a ConfigDict at the edge. Knows
nothing of JAX, files or text. Read sections.py first: it is the list of all settings.
"""

from gpt_jax.config.cluster import Cluster
from gpt_jax.config.config import (
    SECTIONS,
    Config,
    check_field,
    choices,
    default_config,
    from_config_dict,
    on_resume,
)
from gpt_jax.config.sections import (
    DataConfig,
    GPTConfig,
    MeshConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from gpt_jax.config.setting import ALLOWED, ANY, FIXED, FREE, INT32, NOT_NEGATIVE, POSITIVE, checked
from gpt_jax.errors import UserError

__all__ = [
    "ALLOWED",
    "ANY",
    "FIXED",
    "FREE",
    "INT32",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SECTIONS",
    "Cluster",
    "Config",
    "DataConfig",
    "GPTConfig",
    "MeshConfig",
    "OptimizerConfig",
    "SampleConfig",
    "TrainConfig",
    "UserError",
    "check_field",
    "checked",
    "choices",
    "default_config",
    "from_config_dict",
    "on_resume",
    "table",
]
