"""All settings of a run together, and their way in and out.

Inside the project a configuration is a frozen `Config`, which is checked when it is created. At
the edge (config files and `--config.model.n_layer=6`) it is a locked `ml_collections.ConfigDict`.
The settings themselves are in sections.py. No jax.
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
    TuneConfig,
)
from gpt_jax.config.setting import FREE, Section
from gpt_jax.errors import UserError

SECTIONS: dict[str, Any] = {
    cls.SECTION: cls
    for cls in (
        *(GPTConfig, DataConfig, OptimizerConfig, TrainConfig),
        *(TuneConfig, SampleConfig, MeshConfig),
    )
}

DEFAULT_WARMUP = OptimizerConfig().warmup_steps


def check_field(section: str, name: str) -> None:
    """Raises UserError, with the nearest name, unless `section.name` is a setting."""
    _check_section(section)
    known = _names(SECTIONS[section])
    if not name:
        raise UserError(
            f"config.{section} is a group of settings: change one of them, such as "
            f"--config.{section}.{known[0]}"
        )
    if name not in known:
        raise UserError(f"config.{section}.{name} does not exist{_nearest(name, known)}")


def _check_section(section: str) -> None:
    if section not in SECTIONS:
        for name, cls in SECTIONS.items():  # It may be a setting whose section is missing.
            if section in _names(cls):
                raise UserError(f"config.{section} does not exist: did you mean {name}.{section}?")
        raise UserError(f"config.{section} does not exist{_nearest(section, list(SECTIONS))}")


def _names(section: type[Section]) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else f": choose one of {', '.join(known)}"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. Raises UserError when it is created with values that cannot work.

    A warm-up of the default length, for which nobody asked, is shortened to a run with fewer steps.
    """

    model: GPTConfig = dataclasses.field(default_factory=GPTConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        warmup, steps = self.optimizer.warmup_steps, self.train.steps
        if not warmup > steps > 0:
            return
        if warmup != DEFAULT_WARMUP:
            raise UserError(
                f"optimizer.warmup_steps = {warmup} is more than train.steps = {steps}: train for "
                "more steps, or warm up for fewer"
            )
        shortened = dataclasses.replace(self.optimizer, warmup_steps=steps)
        object.__setattr__(self, "optimizer", shortened)

    @property
    def is_warmup_shortened(self) -> bool:
        """Whether the warm-up is the whole run, which is shorter than the default warm-up."""
        return self.optimizer.warmup_steps == self.train.steps in range(1, DEFAULT_WARMUP)

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """The configuration with nested `values`. A missing setting has its default.

        Raises:
          UserError: for an unknown name, or a value that cannot work.
        """
        for section, fields in values.items():
            _check_section(section)
            if not isinstance(fields, Mapping):
                raise UserError(
                    f"config.{section} = {fields!r} is not a group of settings: give a dictionary"
                )
            for name in fields:
                check_field(section, name)
        return cls(**{section: SECTIONS[section](**fields) for section, fields in values.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested dictionaries of plain values, as in a run's config.json."""
        return dataclasses.asdict(self)

    def differences(self, new: Self) -> list[dict[str, Any]]:
        """The settings that shape a run (not the FREE ones) and differ in `new`: field, was, is."""
        old = self.to_dict()
        return [
            {"field": f"{section}.{name}", "was": old[section][name], "is": value}
            for section, values in new.to_dict().items()
            for name, value in values.items()
            if value != old[section][name] and on_resume(f"{section}.{name}") != FREE
        ]

    def with_values(self, section: str, **values: Any) -> Self:
        """A copy with other values for some settings of one section, checked again."""
        changed = dataclasses.replace(getattr(self, section), **values)
        return dataclasses.replace(self, **{section: changed})


def default_config() -> ConfigDict:
    """The defaults as a locked ConfigDict, for a config file to start from."""
    return ConfigDict(Config().to_dict()).lock()


def from_config_dict(config: ConfigDict) -> Config:
    """The checked configuration in a ConfigDict. Raises as `from_dict`, and for anything else."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() returned {config!r}: return default_config() with your changes"
        )
    return Config.from_dict(config.to_dict())


def on_resume(setting: str) -> str:
    """Whether a setting, such as "train.steps", may change when a run resumes.

    Returns: FREE, ALLOWED or FIXED, see setting.py.
    """
    section, _, name = setting.partition(".")
    cls = SECTIONS[section]
    return cls.__dataclass_fields__[name].metadata["on_resume"] or cls.ON_RESUME


def automatic_settings() -> list[tuple[str, str, Any]]:
    """Section, name and default of every setting that the program chooses by default."""
    return [
        (section, field.name, field.default)
        for section, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
        if field.metadata["automatic"]
    ]
