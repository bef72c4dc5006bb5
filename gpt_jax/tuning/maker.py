"""The objective that the settings name, made from a run's parts."""

import json
from pathlib import Path

from gpt_jax.config import Config, TuneConfig
from gpt_jax.errors import UserError
from gpt_jax.files import expanded, read_json
from gpt_jax.text import BPETokenizer, CharTokenizer, Tokenizer
from gpt_jax.training.distillation import DistillationMaker, teacher_folders
from gpt_jax.training.objective import LANGUAGE, Maker, Objective, Parts
from gpt_jax.tuning.instructions import Instructions
from gpt_jax.tuning.preferences import Preferences
from gpt_jax.tuning.reward import load_reward
from gpt_jax.tuning.rewards import Rewards
from gpt_jax.tuning.source import Source, make_task
from gpt_jax.tuning.tasks import TASKS, Task
from gpt_jax.tuning.template import TEMPLATES, Template


def make_maker(config: Config, has_origin: bool) -> Maker:
    """What makes the objective of a run.

    Args:
      has_origin: whether a new run begins from another one, or from GPT-2's weights.

    Raises:
      UserError: for settings that contradict each other, or a reward that cannot be loaded.
    """
    c, folders = config.tune, teacher_folders(config.train.teachers)
    if folders and c.objective != "language":
        raise UserError(
            f"train.teachers are for pre-training, not for tune.objective = {c.objective!r}: leave "
            "one of them out"
        )
    if folders:
        return DistillationMaker(folders)
    return LANGUAGE if c.objective == "language" else _Tuning(c, has_origin)


class _Tuning:
    def __init__(self, c: TuneConfig, has_origin: bool) -> None:
        self.c, self.has_origin = c, has_origin
        task = make_task(c)
        if self.c.objective == "preferences" and task:
            raise UserError(
                "tune.objective = 'preferences' needs --config.tune.data=FILE: make pairs of a "
                "task's answers with scripts/pairs.py"
            )
        if self.c.objective == "rewards" and task is None and not self.c.reward:
            raise UserError(
                "tune.objective = 'rewards' with tune.data has no judge: give "
                "--config.tune.reward=my_reward.py:score"
            )
        self._reward = load_reward(c.reward) if c.reward else None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the task's own characters for a new run without an origin."""
        if self.has_origin:
            return None
        if not self.c.task:
            raise UserError(
                f"tune.objective = {self.c.objective!r} with tune.data begins from a run: give "
                "--init_from=runs/NAME"
            )
        return CharTokenizer(TASKS[self.c.task]().alphabet)

    def make(self, parts: Parts) -> Objective:
        """As `Maker.make`."""
        task = make_task(self.c)
        template = choose_template(self.c.template, task, parts)
        template.check_known(parts.tokenizer)
        source = Source(parts.config, parts.tokenizer, template, task)
        if self.c.objective == "instructions":
            return Instructions(parts, source)
        if self.c.objective == "preferences":
            return Preferences(parts, source)
        return Rewards(parts, source, self._reward)


def choose_template(name: str, task: Task | None, parts: Parts) -> Template:
    """The template of a run that resumes; else the one that a setting names, that of the run it
    begins from, or one that fits the task or the tokenizer.

    Raises UserError if there is none of this name.
    """
    recorded = parts.template or (None if name else parts.origin_template)
    if recorded:
        return Template.from_dict(recorded)
    default = "chatml" if isinstance(parts.tokenizer, BPETokenizer) else "play"
    name = name or (task.template if task else default)
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = expanded(name)
    if not path.is_file():
        raise UserError(
            f"tune.template = {name!r} is neither one of {', '.join(TEMPLATES)} nor a JSON file"
        )
    return _read_template(path)


def _read_template(path: Path) -> Template:
    try:
        return Template.from_dict(read_json(path))
    except (OSError, ValueError) as error:
        example = json.dumps(TEMPLATES["play"].to_dict())
        raise UserError(f"{path} is no template ({error}): give one such as {example}") from error
