"""A run on disk: its folder, lock, record and checkpoints.

Owns every file that a resumed run reads, except the log, and decides what may change on resume.
Knows nothing about the model or about training: a state is a tree of arrays. Read record.py first,
then resume.py and checkpoints.py. checkpoints.py and recovery.py load JAX and Orbax: import them by
name.
"""

from gpt_jax.runs.checkpoint_list import Saved, best, newest_run
from gpt_jax.runs.lock import one_writer
from gpt_jax.runs.record import (
    RECORD_FILES,
    Record,
    existing_record,
    matching_tokenizer,
    read_record,
    write_record,
)
from gpt_jax.runs.resume import check_same_run, record_changes, same_tokens, with_recorded_choices

__all__ = [
    "RECORD_FILES",
    "Record",
    "Saved",
    "best",
    "check_same_run",
    "checkpoints",
    "existing_record",
    "matching_tokenizer",
    "newest_run",
    "one_writer",
    "read_record",
    "record_changes",
    "recovery",
    "same_tokens",
    "with_recorded_choices",
    "write_record",
]
