"""What may change when a run resumes. No jax.

A resumed run must be the same run: the same arrays, tokens and text. Each setting says whether it
may change on resume (`on_resume` in config/sections.py):

    FREE      may change: it does not affect the result
    ALLOWED   may change if named with --resume_allow; the record notes the change
    FIXED     may not change: the run's arrays or tokens depend on it
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_jax.config import FIXED, Config, automatic_settings, check_field, on_resume
from gpt_jax.errors import UserError
from gpt_jax.runs.record import Record, matching_tokenizer, write_record
from gpt_jax.text import Tokens, absolute_kind, absolute_source, encoded, load_corpus, shards


def with_recorded_choices(config: Config, record: Record) -> Config:
    """`config`, where every choice left to the program is the one in `record`."""
    for section, name, automatic in automatic_settings():
        if getattr(getattr(config, section), name) == automatic:
            recorded = getattr(getattr(record.config, section), name)
            config = config.with_values(section, **{name: recorded})
    config = _with_recorded_warmup(config, record)
    config = config.with_values("data", tokenizer=absolute_kind(config.data.tokenizer))
    if absolute_source(config.data.corpus) == record.requested_corpus:
        config = config.with_values("data", corpus=record.config.data.corpus)
    return config


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

    Args:
      allowed: fields that may differ from the record, such as "train.steps".

    Returns: the differences, all of them allowed: field, old value, new value.

    Raises:
      UserError: listing all differences that are not allowed; or if `allowed` names a field that
        does not exist or is FIXED.
    """
    for name in allowed:
        check_field(*name.partition(".")[::2])
        if on_resume(name) == FIXED:
            raise UserError(
                f"--resume_allow={name} is not possible: the arrays or tokens of {workdir} depend "
                "on it; start a new run with another --workdir"
            )
    changes = record.config.differences(config)
    refused = [change for change in changes if change["field"] not in allowed]
    if refused:
        text = "; ".join(f"{c['field']} was {c['was']!r} and is now {c['is']!r}" for c in refused)
        raise UserError(
            f"{workdir} holds a run with another configuration ({text}): start a new run with "
            "another --workdir" + _how_to_allow(refused)
        )
    return changes


def _how_to_allow(changes: list[dict[str, Any]]) -> str:
    """The flags that allow the changes; empty if one of them cannot be allowed."""
    fields = [change["field"] for change in changes]
    if any(on_resume(field) == FIXED for field in fields):
        return ""
    flags = " ".join(f"--resume_allow={field}" for field in fields)
    return f", or resume this one with {flags}"


def record_changes(workdir: Path, record: Record, changes: list[dict[str, Any]], step: int) -> None:
    """Records that the run resumes at `step` with the `changes` that `check_same_run` returned.

    Raises UserError if the record cannot be written.
    """
    new = record.config
    for change in changes:
        section, _, name = change["field"].partition(".")
        new = new.with_values(section, **{name: change["is"]})
    dated = tuple({"step": step} | change for change in changes)
    record = dataclasses.replace(record, config=new, changes=record.changes + dated)
    write_record(workdir, record, matching_tokenizer(workdir, new))


def check_same_corpus(sha256: str, record: Record, workdir: Path) -> None:
    """Raises UserError, with both hashes, unless the corpus is the one the run began with."""
    if sha256 != record.corpus_sha256:
        raise UserError(
            f"the text at {record.config.data.corpus} has changed since the run in {workdir} began "
            f"(SHA-256 {record.corpus_sha256[:12]}... is now {sha256[:12]}...): restore it, or "
            "start a new run with another --workdir"
        )


def same_tokens(config: Config, record: Record, workdir: Path) -> Tokens:
    """A resumed run's corpus as token ids. Raises UserError if it is unreadable or has changed."""
    if shards.is_prepared(config.data.corpus):
        tokens = shards.load(config.data)
        check_same_corpus(tokens.sha256, record, workdir)
        return tokens
    text = load_corpus(config.data.corpus)
    check_same_corpus(text.sha256, record, workdir)
    return encoded(text, matching_tokenizer(workdir, record.config))
