"""What a new run begins from: GPT-2's weights, or a checkpoint of another run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from gpt_jax.config import Config, GPTConfig
from gpt_jax.errors import UserError
from gpt_jax.files import read_json
from gpt_jax.gpt2 import open_folder, read_params
from gpt_jax.model import stack, unrolled
from gpt_jax.runs import Record, existing_record, matching_tokenizer
from gpt_jax.runs.recovery import find_for_reading, restore_for_reading
from gpt_jax.text import Tokens, make_tokenizer
from gpt_jax.training.state import TrainState, abstract_state, state_shardings

BEST = "best"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run begins or began from.

    Attributes:
      folder: absolute; a run's, or one with GPT-2's weights.
      step: of the run's checkpoint; None for GPT-2's weights.
      sha256: hash of what is read; empty in a record of an older version.
      model: its shape.
      tokenizer: the value of data.tokenizer that gives its tokenizer.
      corpus: the value of data.corpus of the run; empty for GPT-2's weights.
      template: how a prompt becomes text, if the run was tuned; None if it was not.
    """

    folder: str
    step: int | None
    sha256: str
    model: GPTConfig
    tokenizer: str
    corpus: str
    template: dict[str, Any] | None = None


def open_origin(folder: Path, which: str = BEST) -> Origin:
    """Checks what a new run begins from, and hashes it. Writes nothing.

    Args:
      which: the checkpoint of a run: best, latest or the number of a step.

    Raises:
      UserError: if there are no such weights and no such checkpoint, or they cannot be used.
    """
    return _open_run(folder, which) if _is_run(folder) else _open_weights(folder, which)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's. GPT-2's config.json has no format."""
    try:
        is_kept = (folder / "checkpoints").is_dir()
        return is_kept or "format" in read_json(folder / "config.json")
    except (OSError, ValueError):
        return False


def _open_run(folder: Path, which: str) -> Origin:
    record = existing_record(folder)
    config = record.config
    matching_tokenizer(folder, config)
    step, sha256 = find_for_reading(folder, which)
    tokenizer, corpus = str(folder / "tokenizer.json"), config.data.corpus
    return Origin(str(folder), step, sha256, config.model, tokenizer, corpus, record.template)


def _open_weights(folder: Path, which: str) -> Origin:
    weights = open_folder(folder)
    if which != BEST:
        raise UserError(
            f"--init_step={which} chooses a checkpoint of a run, but {folder} holds GPT-2's "
            "weights: leave it out"
        )
    return Origin(str(folder), None, weights.digest(), weights.config, str(folder), "")


def recorded_origin(record: Record) -> Origin | None:
    """What a run began from, by its record; None for random parameters. Reads nothing."""
    if not record.init_from:
        return None
    c = record.config
    found = record.init_from, record.init_step, record.init_sha256
    return Origin(*found, c.model, c.data.tokenizer, c.data.corpus)


def read_origin(
    origin: Origin, config: Config, abstract: TrainState, mesh: Mesh | AbstractMesh
) -> Any:
    """The parameters that a run with `config` begins with, a tree like `abstract.params`.

    Raises:
      UserError: if they cannot be read, or are not those that were opened.
    """
    folder, which = Path(origin.folder), BEST if origin.step is None else str(origin.step)
    if origin.sha256 and open_origin(folder, which).sha256 != origin.sha256:
        raise UserError(
            f"the weights in {folder} are not those that the run began with: restore them, or "
            "start a new run with another --workdir"
        )
    if origin.step is None:
        return read_params(open_folder(folder), abstract.params)
    theirs = existing_record(folder).config
    _, params = restore_for_reading(folder / "checkpoints", which, abstract_state(theirs, mesh))
    _, params = unrolled(theirs.model, params)
    if config.model.scan_layers:
        params = jax.jit(stack, out_shardings=state_shardings(abstract).params)(params)
    return jax.device_put(params, state_shardings(abstract).params)


def check_text(origin: Origin, config: Config, tokens: Tokens, is_new: bool) -> None:
    """Raises UserError if a run's text does not fit the weights that it begins from.

    `is_new`: whether the run begins; it then must read the same ids as the run it begins from.
    """
    _check_rows(origin, config, tokens.tokenizer.vocab_size)
    # GPT-2's folders may hold no tokenizer.
    if is_new and origin.step is not None:
        _check_tokenizer(origin, tokens)


def _check_rows(origin: Origin, config: Config, vocab_size: int) -> None:
    """Raises UserError if the tokenizer has ids for which the weights have no row."""
    if vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {vocab_size} tokens, but the weights of {origin.folder} only "
            f"{config.model.vocab_size}: give the tokenizer that they were trained with "
            "(--config.data.tokenizer), or weights with a row for every token"
        )


def _check_tokenizer(origin: Origin, tokens: Tokens) -> None:
    """Raises UserError if the tokens are not those of the run it begins from."""
    if make_tokenizer(origin.tokenizer, (), 0).to_dict() != tokens.tokenizer.to_dict():
        raise UserError(
            f"the tokenizer of {tokens.source} is not that of the run in {origin.folder}, so its "
            "weights would mean nothing: leave out --config.data.tokenizer, or prepare the corpus "
            f"with --tokenizer={origin.tokenizer}"
        )
