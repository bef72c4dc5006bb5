"""All settings of a run, and the way in and out of them.

Inside the project a configuration is a frozen `Config`, checked when it is made. At the edge
(config files and `--config.model.n_layer=6`) it is a locked `ml_collections.ConfigDict`. The fields
are those of `sections.py`. No jax.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Self

from ml_collections import ConfigDict

from gpt_jax.config.sections import (
    DataConfig,
    GPTConfig,
    MeshConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from gpt_jax.config.setting import Section
from gpt_jax.errors import UserError

SECTIONS: dict[str, type[Section]] = {
    cls.SECTION: cls
    for cls in (GPTConfig, DataConfig, OptimizerConfig, TrainConfig, SampleConfig, MeshConfig)
}


def check_field(section: str, name: str) -> None:
    """Raises UserError, with the nearest name, unless `section.name` is a field of `Config`."""
    _check_section(section)
    if not name:
        raise UserError(
            f"config.{section} is a group of settings: change one of them, such as "
            f"--config.{section}.{dataclasses.fields(SECTIONS[section])[0].name}"
        )
    known = [field.name for field in dataclasses.fields(SECTIONS[section])]
    if name not in known:
        raise UserError(f"config.{section}.{name} does not exist{_nearest(name, known)}")


def _check_section(section: str) -> None:
    if section not in SECTIONS:
        for name, cls in SECTIONS.items():  # Perhaps it is a field, its section left out.
            if section in [field.name for field in dataclasses.fields(cls)]:
                raise UserError(f"config.{section} does not exist: did you mean {name}.{section}?")
        raise UserError(f"config.{section} does not exist{_nearest(section, list(SECTIONS))}")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else f": there are {', '.join(known)}"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. Raises UserError when made with values that cannot work."""

    model: GPTConfig = dataclasses.field(default_factory=GPTConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        if self.optimizer.warmup_steps > self.train.steps > 0:
            raise UserError(
                f"train.steps = {self.train.steps} ends before optimizer.warmup_steps = "
                f"{self.optimizer.warmup_steps} are over: train longer or warm up for fewer steps"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """The configuration made of nested `values`; what is missing has its default."""
        for section, fields in values.items():
            _check_section(section)
            if not isinstance(fields, Mapping):
                raise UserError(f"config.{section} = {fields!r} is not a section: give it fields")
            for name in fields:
                check_field(section, name)
        sections: dict[str, Any] = {
            section: SECTIONS[section](**fields) for section, fields in values.items()
        }
        return cls(**sections)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries, as stored in a run's config.json."""
        return dataclasses.asdict(self)

    def with_values(self, section: str, **values: Any) -> Self:
        """A copy with some fields of one section replaced, checked again."""
        changed = dataclasses.replace(getattr(self, section), **values)
        return dataclasses.replace(self, **{section: changed})


def default_config() -> ConfigDict:
    """The defaults as a locked ConfigDict: what a config file starts from."""
    return ConfigDict(Config().to_dict()).lock()


def from_config_dict(config: ConfigDict) -> Config:
    """The checked configuration behind a ConfigDict.

    Raises:
      UserError: for a value out of range, a field that does not exist, or no ConfigDict at all.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() returned {config!r}: let it return default_config() with its changes"
        )
    return Config.from_dict(config.to_dict())


def on_resume(field: str) -> str:
    """Whether a run that resumes may change a field, such as "train.steps".

    Returns: FREE, ALLOWED or FIXED, see setting.py.
    """
    section, _, name = field.partition(".")
    return SECTIONS[section].on_resume(name)


def choices() -> list[tuple[str, str, Any]]:
    """Section, name and default of every setting whose default leaves the choice to the program."""
    return [
        (section, field.name, field.default)
        for section, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
        if field.metadata["is_choice"]
    ]
