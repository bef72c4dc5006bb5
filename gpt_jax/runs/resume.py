"""What may change when a run goes on, and what that says in its record. No jax.

A resumed run must be the same run: the same arrays, the same tokens, the same text. What cannot
change its result is free; another deliberate change is allowed by name, and recorded.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_jax.config import FIXED, FREE, Config, check_field, choices, on_resume
from gpt_jax.errors import UserError
from gpt_jax.runs.record import Record, matching_tokenizer, write_record
from gpt_jax.text import Tokens, absolute_kind, absolute_source, encoded, load_corpus, shards


def with_recorded_choices(config: Config, record: Record) -> Config:
    """`config` with what it leaves to choose as `record` chose it."""
    for section, name, undecided in choices():
        if getattr(getattr(config, section), name) == undecided:
            chosen = getattr(getattr(record.config, section), name)
            config = config.with_values(section, **{name: chosen})
    config = config.with_values("data", tokenizer=absolute_kind(config.data.tokenizer))
    if absolute_source(config.data.corpus) == record.requested_corpus:
        config = config.with_values("data", corpus=record.config.data.corpus)
    return config


def check_same_run(
    config: Config, record: Record, workdir: Path, allowed: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Refuses to go on with a run under a configuration that would make another model of it.

    Args:
      allowed: fields, such as "train.steps", that may have changed all the same.

    Returns: the changes, all of them allowed: field, old and new value.

    Raises:
      UserError: listing every other field that differs, as recorded and as asked for; for a name
        that is no field, or of a field that cannot change in one run.
    """
    for name in allowed:
        check_field(*name.partition(".")[::2])
        if on_resume(name) == FIXED:
            raise UserError(
                f"--resume_allow={name} cannot be: the arrays and the tokens of {workdir} depend "
                "on it; start a new run with another --workdir"
            )
    changes = _differences(config, record)
    refused = [change for change in changes if change["field"] not in allowed]
    if refused:
        told = "; ".join(f"{c['field']} was {c['was']!r} and is now {c['is']!r}" for c in refused)
        raise UserError(
            f"{workdir} holds a run of another configuration ({told}): start a new one with "
            "another --workdir" + _way_through(refused)
        )
    return changes


def _differences(config: Config, record: Record) -> list[dict[str, Any]]:
    old, new = record.config.to_dict(), config.to_dict()
    return [
        {"field": f"{section}.{name}", "was": old[section][name], "is": value}
        for section, values in new.items()
        for name, value in values.items()
        if value != old[section][name] and on_resume(f"{section}.{name}") != FREE
    ]


def _way_through(refused: list[dict[str, Any]]) -> str:
    fields = [change["field"] for change in refused]
    if any(on_resume(field) == FIXED for field in fields):
        return ""
    flags = " ".join(f"--resume_allow={field}" for field in fields)
    return f", or go on with this one by {flags}"


def record_changes(
    workdir: Path, record: Record, config: Config, changes: list[dict[str, Any]], step: int
) -> None:
    """Writes into the record that the run goes on from `step` with some fields of `config`.

    Raises:
      UserError: when it cannot be written.
    """
    new = record.config
    for change in changes:
        section, _, name = change["field"].partition(".")
        new = new.with_values(section, **{name: change["is"]})
    dated = tuple({"step": step} | change for change in changes)
    record = dataclasses.replace(record, config=new, changes=record.changes + dated)
    write_record(workdir, record, matching_tokenizer(workdir, new))


def check_same_corpus(sha256: str, record: Record, workdir: Path) -> None:
    """Refuses a corpus that is not the one the run began with.

    Raises:
      UserError: with both hashes.
    """
    if sha256 != record.corpus_sha256:
        raise UserError(
            f"the text at {record.config.data.corpus} has changed since the run in {workdir} began "
            f"(SHA-256 {record.corpus_sha256[:12]}... is now {sha256[:12]}...): restore it, or "
            "start a new run with another --workdir"
        )


def same_tokens(config: Config, record: Record, workdir: Path) -> Tokens:
    """The corpus of a run that resumes as token ids.

    Raises:
      UserError: if the corpus is not the one the run began with, or it cannot be read.
    """
    if shards.is_prepared(config.data.corpus):
        tokens = shards.load(config.data)
        check_same_corpus(tokens.sha256, record, workdir)
        return tokens
    text = load_corpus(config.data.corpus)
    check_same_corpus(text.sha256, record, workdir)
    return encoded(text, matching_tokenizer(workdir, record.config))
