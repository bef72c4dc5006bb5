"""Every setting of a run: its default, its range, its meaning, and its way in and out.

Owns the configuration: frozen dataclasses inside the project, a ConfigDict at the edge. Nothing
here uses JAX, opens a file or reads text. Read sections.py first: it lists all settings.
"""

from gpt_jax.config.cluster import Cluster
from gpt_jax.config.config import (
    SECTIONS,
    Config,
    automatic_settings,
    check_field,
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
    TuneConfig,
)
from gpt_jax.config.setting import (
    ALLOWED,
    ANY,
    FIXED,
    FREE,
    INT32,
    NOT_NEGATIVE,
    POSITIVE,
    Rule,
    checked,
    nearest_divisors,
)
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
    "Rule",
    "SampleConfig",
    "TrainConfig",
    "TuneConfig",
    "UserError",
    "automatic_settings",
    "check_field",
    "checked",
    "default_config",
    "from_config_dict",
    "nearest_divisors",
    "on_resume",
    "table",
]
