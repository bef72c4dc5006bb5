"""Everything a run needs, made once: tokens, devices, the resolved configuration, the steps."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.config import Config
from gpt_jax.devices import BatchLayout, hardware, make_batch_layout, make_mesh, processes
from gpt_jax.errors import UserError
from gpt_jax.runs import Record, same_tokens, write_record
from gpt_jax.text import (
    NO_CORPUS,
    CharTokenizer,
    Tokenizer,
    Tokens,
    absolute_kind,
    corpus,
    make_tokenizer,
    new_tokens,
    no_tokens,
    play,
    vocabulary_size,
    windows,
)
from gpt_jax.training.memory import check_run
from gpt_jax.training.objective import LANGUAGE, Maker, Objective, Parts, Poll
from gpt_jax.training.origin import Origin, check_text
from gpt_jax.training.reference import read_reference
from gpt_jax.training.state import abstract_state
from gpt_jax.training.step import TrainStep, jit_eval_step, jit_train_step, mean_loss


@dataclasses.dataclass(frozen=True)
class Run(Parts):
    """A run ready to train."""

    workdir: Path
    origin: Origin | None  # What the run began from; None = random parameters.
    objective: Objective
    train_step: TrainStep  # Jitted.

    @property
    def device(self) -> jax.Device:
        """The first device."""
        return self.layout.sharding.mesh.devices.flat[0]

    @property
    def tokens_per_step(self) -> int:
        """Tokens in the batch of one update."""
        return self.config.train.batch_size * self.config.model.block_size

    @property
    def is_tuned(self) -> bool:
        """Whether its objective is not pre-training."""
        return self.config.tune.objective != "language"

    def evaluate(self, params: Any, poll: Poll = lambda: None) -> dict[str, float]:
        """The figures of the objective, and of a tuned run also the loss on its corpus."""
        figures = self.objective.evaluate(params, poll)
        if self.is_tuned and len(self.val_tokens):
            figures["corpus_loss"] = self.corpus_loss(params, poll)
        return figures

    def tutorial_estimate(self, params: Any) -> float | None:
        """The tutorial's estimate of the validation loss, in nats per character.

        It uses 1600 windows at the beginning of the validation text. None if tokens are not
        characters: there is nothing to compare it with, and a GPT-2 on a CPU takes an hour for it.
        """
        if not isinstance(self.tokenizer, CharTokenizer) or self.is_tuned:
            return None
        windows_NW = windows.tutorial_windows(self.val_tokens, self.config.model.block_size)
        return mean_loss(self.eval_step, params, windows_NW, self.layout)

    def bits_per_byte(self, loss: float) -> float:
        """Converts a validation loss in nats per token to bits per byte of the text in UTF-8."""
        return float(loss / np.log(2) * len(self.val_tokens) / self._val_bytes)

    @functools.cached_property
    def _val_bytes(self) -> int:
        """The length of the validation text in bytes of UTF-8."""
        return self.tokenizer.count_bytes(self.val_tokens)

    def source_loss(self) -> float | None:
        """Nats per character of the play's own grammar on the validation text; None for others."""
        is_play = self.config.data.corpus == "builtin" and not self.is_tuned
        return play.source_loss(len(self.train_tokens)) if is_play else None


def prepare(
    config: Config,
    workdir: Path,
    record: Record | None,
    devices: list[jax.Device],
    origin: Origin | None = None,
    maker: Maker = LANGUAGE,
) -> Run:
    """Arranges the devices, reads the text, makes all choices and, for a new run, records them.

    Args:
      workdir: the run's folder, absolute.
      record: of a run to resume; None for a new run.
      devices: from `start_devices`.
      origin: what a new run begins from; None = random parameters.
      maker: what the run optimises.

    Raises:
      UserError: if a corpus, layout or folder cannot be used, or processes differ.
    """
    layout = make_batch_layout(config, make_mesh(config.mesh, devices))
    tokens = _load_tokens(config, workdir, record, maker.tokenizer if record is None else None)
    if origin:
        check_text(origin, config, tokens, is_new=record is None)
    resolved = resolve(config, tokens.source, tokens.tokenizer.vocab_size, layout)
    found = [tokens.sha256, tokens.tokenizer.to_dict(), resolved.model.matmul_dtype]
    processes.check_same("the text, or what the hardware has (model.matmul_dtype),", found)
    parts = _make_parts(resolved, tokens, workdir, layout, record, origin)
    processes.on_all(check_run)(resolved, parts.abstract, layout, trains=record is None)
    objective = maker.make(parts)
    if record is None:
        requested = corpus.absolute_source(config.data.corpus)
        new = _new_record(parts, requested, tokens.sha256, origin, objective)
        processes.on_first(write_record)(workdir, new, tokens.tokenizer)
    else:
        _check_data(record, objective, config.train.teachers or config.tune.data, workdir)
    train_step = jit_train_step(resolved, parts.abstract, layout, objective.losses)
    return Run(
        **vars(parts), workdir=workdir, origin=origin, objective=objective, train_step=train_step
    )


def _make_parts(
    config: Config,
    tokens: Tokens,
    workdir: Path,
    layout: BatchLayout,
    record: Record | None,
    origin: Origin | None,
) -> Parts:
    """What an objective is made of; `config` is resolved."""
    train_tokens, val_tokens = _split(tokens, config)
    abstract = abstract_state(config, layout.sharding.mesh)
    return Parts(
        config=config,
        tokenizer=tokens.tokenizer,
        train_tokens=train_tokens,
        val_tokens=val_tokens,
        layout=layout,
        abstract=abstract,
        eval_step=jit_eval_step(config, abstract, layout),
        reference=functools.cache(lambda: read_reference(workdir, abstract)),
        template=record.template if record else None,
        origin_template=origin.template if origin else None,
    )


def _new_record(
    parts: Parts, requested: str, corpus_sha256: str, origin: Origin | None, objective: Objective
) -> Record:
    """The record of a new run; `requested` is the corpus as the user named it."""
    devices = parts.layout.sharding.mesh.devices
    return Record(
        config=parts.config,
        requested_corpus=requested,
        corpus_sha256=corpus_sha256,
        platform=devices.flat[0].platform,
        devices=devices.size,
        init_from=origin.folder if origin else "",
        init_step=origin.step if origin else None,
        init_sha256=origin.sha256 if origin else "",
        template=objective.template,
        data_sha256=objective.data_sha256,
    )


def _check_data(record: Record, objective: Objective, data: str, workdir: Path) -> None:
    """Raises UserError if a run resumes with other teachers, or other data for tuning."""
    if objective.data_sha256 and record.data_sha256 not in ("", objective.data_sha256):
        raise UserError(
            f"{data} is not what the run in {workdir} learned from when it began: restore it, or "
            "start a new run with another --workdir"
        )


def _split(tokens: Tokens, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Training tokens and validation tokens; both empty for a run without a corpus."""
    if tokens.source == NO_CORPUS:
        return tokens.ids, tokens.ids
    return windows.split(tokens.ids, config.data.val_fraction, config.model.block_size)


@processes.on_all
def _load_tokens(
    config: Config, workdir: Path, record: Record | None, tokenizer: Tokenizer | None
) -> Tokens:
    """The corpus as ids; a run that resumes must find the corpus it began with.

    `tokenizer`: of a new run without a corpus; None for all others.
    """
    if record is not None:
        return same_tokens(config, record, workdir)
    if tokenizer is None and config.data.corpus == NO_CORPUS:  # As the run from which it begins.
        tokenizer = make_tokenizer(config.data.tokenizer, (), 0)
    return new_tokens(config.data) if tokenizer is None else no_tokens(tokenizer)


def model_vocabulary_size(config: Config) -> int:
    """The vocabulary size of a new run's model. Raises UserError as `prepare`."""
    return config.model.vocab_size or vocabulary_size(config.data)


def resolve(config: Config, source: str, vocab_size: int, layout: BatchLayout) -> Config:
    """The configuration with every choice made.

    `source` says where the corpus was found; `vocab_size` is the tokenizer's.

    Raises:
      UserError: if the model's vocabulary is smaller than the tokenizer's, or the devices cannot
        compute the attention.
    """
    if 0 < config.model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer has {vocab_size} "
            "tokens: leave it at 0, or give a larger number to pad the tables"
        )
    mesh, dtype = layout.sharding.mesh, config.model.matmul_dtype
    device, padded = mesh.devices.flat[0], max(config.model.vocab_size, vocab_size)
    dtype = hardware.best_matmul_dtype(device) if dtype == "auto" else dtype
    config = config.with_values("model", vocab_size=padded, matmul_dtype=dtype)
    hardware.check_attention(config.model, device)
    kind = absolute_kind(config.data.tokenizer)
    config = config.with_values("data", corpus=source, tokenizer=kind)
    config = config.with_values("train", microbatch_size=layout.rows_per_device)
    cpu_devices = mesh.local_mesh.size if device.platform == "cpu" else 0
    return config.with_values("mesh", cpu_devices=cpu_devices, data=mesh.shape["data"])
