"""Distillation: a model learns the mean of its teachers' distributions (Hinton et al., 2015).

    loss = -sum over all ids of p_teachers log p

Windows, evaluation and everything around the step are those of pre-training. The next token itself
is not a target.

Shapes: A microbatches of M rows, W = T + 1 tokens of a window, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding

from gpt_jax.config import GPTConfig
from gpt_jax.devices import activations_over
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.model import GPT
from gpt_jax.runs import existing_record
from gpt_jax.text import Tokenizer, make_tokenizer, windows
from gpt_jax.training.objective import Language, Objective, Parts
from gpt_jax.training.origin import BEST, open_origin, read_origin
from gpt_jax.training.state import TrainState, abstract_state
from gpt_jax.training.step import Metrics, mean_loss


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model. `sha256`: of its parameters."""

    config: GPTConfig
    params: Any
    sha256: str


class Distillation(Language):
    """The objective."""

    def __init__(self, parts: Parts, folders: Sequence[Path]) -> None:
        """`folders`: of the teachers' runs, whose best checkpoints are read.

        Raises UserError for a folder without a run, another tokenizer or a shorter context.
        """
        super().__init__(parts)
        self._teachers = [open_teacher(folder, parts) for folder in folders]
        digests = "".join(teacher.sha256 for teacher in self._teachers)
        self.data_sha256 = hashlib.sha256(digests.encode()).hexdigest()

    def losses(
        self, model: GPT, params: Any, rows: Any, keys_M: Array | None
    ) -> tuple[Array, Metrics]:
        """`distillation_losses` at the temperature of training."""
        temperature = self._parts.config.train.temperature
        return distillation_losses(model, params, rows, keys_M, temperature)

    def batch(self, step: int, state: TrainState | None = None) -> Any:
        """The windows of a step (A, M, W), and the teachers' mean probabilities (A, M, T, V)."""
        windows_AMW = super().batch(step)
        return {
            "windows": windows_AMW,
            "targets": mean_probabilities(self._teachers, windows_AMW),
        }


def distillation_losses(
    model: GPT,
    params: Any,
    rows: dict[str, Array],
    keys_M: Array | None,
    temperature: float = 1.0,
) -> tuple[Array, Metrics]:
    """The mean cross-entropy of each window with the teachers in nats per token, shape (M,).

    Rows: `windows` (M, W), `targets` (M, T, V). `temperature`: divides the student's logits.
    """
    logits_MTV = cast(Array, model.apply({"params": params}, rows["windows"][:, :-1], keys_M))
    return optax.softmax_cross_entropy(logits_MTV / temperature, rows["targets"]).mean(-1), {}


def mean_probabilities(teachers: Sequence[Teacher], windows_AMW: Array) -> Array:
    """The mean of the teachers' distributions after every token but the last, (A, M, T, V)."""
    sharding = cast(NamedSharding, windows_AMW.sharding)
    total: Any = 0.0
    for teacher in teachers:
        p_AMTV = probabilities(teacher.config, sharding, teacher.params, windows_AMW)
        # Devices of a CPU must not have several programs waiting (see training/loop.py).
        total = jax.block_until_ready(total + p_AMTV / len(teachers))
    return cast(Array, total)


@partial(jax.jit, static_argnums=(0, 1))
def probabilities(
    config: GPTConfig, sharding: NamedSharding, params: Any, windows_AMW: Array
) -> Array:
    """One model's distributions, without dropout; rows stay on their devices."""

    def microbatch(windows_MW: Array) -> Array:
        logits_MTV = GPT(config).apply({"params": params}, windows_MW[:, :-1])
        return jax.nn.softmax(cast(Array, logits_MTV))

    with activations_over(cast(Mesh, sharding.mesh), config):
        return lax.with_sharding_constraint(lax.map(microbatch, windows_AMW), sharding)


def loss_of_mean(teachers: Sequence[Teacher], parts: Parts) -> float:
    """The loss of the teachers' mean distribution on the validation text, in nats per token."""

    @jax.jit
    def losses(p_AMTV: Array, windows_AMW: Array) -> Array:
        p_AMT1 = jnp.take_along_axis(p_AMTV, windows_AMW[..., 1:, None], axis=-1)
        return -jnp.log(p_AMT1[..., 0]).mean(-1)

    def eval_step(teachers: Any, windows_AMW: Any) -> Array:
        return losses(mean_probabilities(teachers, windows_AMW), windows_AMW)

    windows_NW = windows.evaluation_windows(parts.val_tokens, parts.config.model.block_size)
    return mean_loss(eval_step, teachers, windows_NW, parts.layout)


def open_teacher(folder: Path, parts: Parts, which: str = BEST) -> Teacher:
    """A checkpoint of a run. Raises UserError if it cannot teach the model of `parts`."""
    origin = open_origin(folder, which)
    if origin.step is None:
        raise UserError(f"{folder} holds GPT-2's weights, but a teacher is a run: give its folder")
    _check(origin.model, make_tokenizer(origin.tokenizer, (), 0), folder, parts)
    theirs = existing_record(folder).config
    mesh = cast(Mesh, parts.layout.sharding.mesh)
    params = read_origin(origin, theirs, abstract_state(theirs, mesh), mesh)
    return Teacher(theirs.model, params, origin.sha256)


def _check(theirs: GPTConfig, tokenizer: Tokenizer, folder: Path, parts: Parts) -> None:
    ours = parts.config.model
    is_known = tokenizer.to_dict() == parts.tokenizer.to_dict()
    if not is_known or theirs.vocab_size != ours.vocab_size:
        raise UserError(
            f"the teacher in {folder} has another vocabulary than this run: train both on the same "
            "text with the same data.tokenizer and model.vocab_size"
        )
    if theirs.block_size < ours.block_size:
        raise UserError(
            f"the teacher in {folder} reads {theirs.block_size} tokens, and this run "
            f"{ours.block_size}: give a teacher with at least as long a context, or a smaller "
            "model.block_size"
        )


def teacher_folders(setting: str) -> list[Path]:
    """The absolute folders in `train.teachers`."""
    return [absolute(folder.strip()) for folder in setting.split(",") if folder.strip()]


@dataclasses.dataclass(frozen=True)
class DistillationMaker:
    """Makes the objective. `folders`: of the teachers' runs."""

    folders: Sequence[Path]

    @property
    def tokenizer(self) -> None:
        """None: it learns from a corpus."""

    def make(self, parts: Parts) -> Objective:
        """As `Maker.make`."""
        return Distillation(parts, self.folders)
