"""What may change when a run resumes. No jax.

A resumed run must be the same run: the same arrays, tokens and text. Each setting says whether it
may change on resume (`on_resume` in config/sections.py):

    FREE      may change: it does not affect the result
    ALLOWED   may change if named with --resume_allow; the record notes the change
    FIXED     may not change: the run's arrays or tokens depend on it

A text or a tokenizer is the same if its content is, wherever it lies now. The record then notes the
new path.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_jax.config import FIXED, Config, DataConfig, automatic_settings, check_field, on_resume
from gpt_jax.errors import UserError
from gpt_jax.runs.record import (
    RECORD_FILES,
    Record,
    check_unedited,
    matching_tokenizer,
    write_record,
)
from gpt_jax.text import (
    NO_CORPUS,
    Corpus,
    Tokens,
    absolute_kind,
    absolute_source,
    encoded,
    load_corpus,
    make_tokenizer,
    no_tokens,
    shards,
)

IF_MOVED = "give its path now with --config.data.corpus (evaluate.py: --corpus)"


def with_recorded_choices(config: Config, record: Record) -> Config:
    """`config`, where every choice left to the program is the one in `record`."""
    for section, name, automatic in automatic_settings():
        if getattr(getattr(config, section), name) == automatic:
            recorded = getattr(getattr(record.config, section), name)
            config = config.with_values(section, **{name: recorded})
    config = _with_recorded_warmup(config, record)
    source, kind = absolute_source(config.data.corpus), absolute_kind(config.data.tokenizer)
    source = record.config.data.corpus if source == record.requested_corpus else source
    return config.with_values("data", corpus=source, tokenizer=kind)


def _with_recorded_warmup(config: Config, record: Record) -> Config:
    """`config` with the run's warm-up, if that was shortened and nobody asks for another now.

    It was shortened to the steps with which the run began; later changes may have added steps.
    """
    default, recorded = Config().optimizer.warmup_steps, record.config.optimizer.warmup_steps
    before = [c.get("was") for c in record.changes if c.get("field") == "train.steps"]
    was_shortened = recorded < default and recorded == [*before, record.config.train.steps][0]
    is_unasked = config.is_warmup_shortened or config.optimizer.warmup_steps == default
    if was_shortened and is_unasked and recorded <= config.train.steps:
        return config.with_values("optimizer", warmup_steps=recorded)
    return config


def check_same_run(
    config: Config, record: Record, workdir: Path, allowed: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Checks that the run in `workdir` can resume with `config`.

    Whether a text that lies elsewhere now is the run's is left to `same_tokens`.

    Args:
      allowed: fields that may differ from the record, such as "train.steps", and files that may
        have changed, such as "config.json".

    Returns: the differences, all of them allowed: field, old value, new value.

    Raises:
      UserError: listing all differences that are not allowed; if `allowed` names a field that does
        not exist or is FIXED; or as `check_unedited`.
    """
    for name in (name for name in allowed if name not in RECORD_FILES):
        check_field(*name.partition(".")[::2])
        if on_resume(name) == FIXED:
            raise UserError(
                f"--resume_allow={name} is not possible: the arrays or tokens of {workdir} depend "
                "on it; start a new run with another --workdir"
            )
    edits = check_unedited(workdir, allowed)
    changes = record.config.differences(config)
    refused = [
        change
        for change in changes
        if change["field"] not in allowed and not _is_only_moved(change, record, workdir)
    ]
    if refused:
        text = "; ".join(f"{c['field']} was {c['was']!r} and is now {c['is']!r}" for c in refused)
        raise UserError(
            f"{workdir} holds a run with another configuration ({text}): start a new run with "
            "another --workdir" + _how_to_allow(refused)
        )
    return edits + changes


def _is_only_moved(change: dict[str, Any], record: Record, workdir: Path) -> bool:
    """Whether a new path of the tokenizer leads to the same one, or of the corpus perhaps does.

    Raises UserError if there is no tokenizer at the new path.
    """
    field, new = change["field"], change["is"]
    if field not in ("data.corpus", "data.tokenizer") or not Path(new).is_absolute():
        return False
    if field == "data.corpus":
        return True
    there, ours = make_tokenizer(new, (), 0), matching_tokenizer(workdir, record.config)
    return there.to_dict() == ours.to_dict()


def _how_to_allow(changes: list[dict[str, Any]]) -> str:
    """The flags that allow the changes; empty if one of them cannot be allowed."""
    fields = [change["field"] for change in changes]
    if any(on_resume(field) == FIXED for field in fields):
        return ""
    flags = " ".join(f"--resume_allow={field}" for field in fields)
    return f", or resume this one with {flags}"


def record_changes(workdir: Path, record: Record, changes: list[dict[str, Any]], step: int) -> None:
    """Records that the run resumes at `step` with the `changes` that `check_same_run` returned.

    A record of an older version also gets its digests. Raises UserError if the record cannot be
    written.
    """
    if record.has_digests and not changes:
        return
    config, requested = record.config, record.requested_corpus
    for field, new in ((change["field"], change["is"]) for change in changes):
        section, _, name = field.partition(".")
        if field not in RECORD_FILES:
            config = config.with_values(section, **{name: new})
        requested = new if field == "data.corpus" else requested
    dated = tuple({"step": step} | change for change in changes)
    record = dataclasses.replace(
        record, config=config, requested_corpus=requested, changes=record.changes + dated
    )
    write_record(workdir, record, matching_tokenizer(workdir, config))


def same_tokens(config: Config, record: Record, workdir: Path) -> Tokens:
    """The corpus of the run in `workdir` as token ids, from where `config.data.corpus` says.

    Raises:
      UserError: if it cannot be read, or is another one than the run began with.
    """
    source = config.data.corpus
    if source == record.config.data.corpus == NO_CORPUS:
        return no_tokens(matching_tokenizer(workdir, record.config))
    try:
        found = _read(source)
    except UserError as error:
        if not Path(source).is_absolute():  # A corpus with a name.
            raise
        raise UserError(f"{error}; if the run's own corpus has moved, {IF_MOVED}") from error
    check_same_corpus(found.sha256, source, record, workdir)
    ours = matching_tokenizer(workdir, record.config)
    if isinstance(found, Corpus):
        return encoded(found, ours)
    if found.tokenizer.to_dict() != ours.to_dict():
        raise UserError(
            f"the tokenizer of {source} is not that of the run in {workdir}: restore it, or start "
            "a new run with another --workdir"
        )
    return found


def _read(source: str) -> Corpus | Tokens:
    """A text, or a prepared corpus, which may have moved together with its tokenizer."""
    if shards.is_prepared(source):
        return shards.load(DataConfig(corpus=source))
    return load_corpus(source)


def check_same_corpus(sha256: str, source: str, record: Record, workdir: Path) -> None:
    """Raises UserError, with both hashes, unless the corpus is the one the run began with.

    `source`: where the corpus with the hash `sha256` lies.
    """
    if sha256 != record.corpus_sha256:
        raise UserError(
            f"the text at {source} is not the one with which the run in {workdir} began (SHA-256 "
            f"{record.corpus_sha256[:12]}... is now {sha256[:12]}...): restore it, or {IF_MOVED}, "
            "or start a new run with another --workdir"
        )
