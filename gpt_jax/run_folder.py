"""A run on disk: its record and its tokenizer, and what may change when it is resumed.

    runs/tiny/  config.json  tokenizer.json  metrics.jsonl  loss.png  samples/  checkpoints/<step>/

The record, config.json, holds the resolved configuration (nothing left to choose), where the corpus
was found and its hash, the devices and the versions. Data, never code. No jax.
"""

import dataclasses
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_jax.config import Config, UserError, check_field
from gpt_jax.corpus import absolute_source
from gpt_jax.files import check_links, replacing
from gpt_jax.setting import ANY, checked
from gpt_jax.tokenizer import Tokenizer, absolute_kind, load_tokenizer, save_tokenizer

FORMAT = 1
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# Values that leave a choice to the program; a resumed run takes what was chosen at its start. (What
# follows from these and the devices, such as the size of microbatches, follows again.)
CHOICES: tuple[tuple[str, str, Any], ...] = (
    ("model", "vocab_size", 0),
    ("model", "matmul_dtype", "auto"),
    ("mesh", "cpu_devices", 0),
)
# What no run can change: which arrays it has, and what its tokens mean (another text, another run).
FIXED = {
    *(
        f"model.{field.name}"
        for field in dataclasses.fields(Config().model)
        if field.name not in ("dropout", "matmul_dtype")
    ),
    *("optimizer.name", "optimizer.average_decay"),
    *("data.corpus", "data.tokenizer", "data.bpe_vocab_size"),
}
# What may differ when a run goes on. A sample or a log changes nothing; another layout over devices
# changes the order of float32 sums: losses agree within 1e-5, bits only on the same devices.
FREE = {
    *(("sample", field.name) for field in dataclasses.fields(Config().sample)),
    *(("mesh", field.name) for field in dataclasses.fields(Config().mesh)),
    *(
        ("train", name)
        for name in (
            "microbatch_size",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "max_skipped",
        )
    ),
}


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run was started with.

    Attributes:
      config: resolved; `config.data.corpus` is where the text was found.
      requested_corpus: what `data.corpus` said, paths made absolute; it still says
        "tinyshakespeare" where the download failed and the play was taken.
      corpus_sha256: hash of the text's UTF-8 bytes.
      platform, devices: kind and number of devices.
      changes: what was deliberately changed when the run went on: at which step, of which field,
        its old and its new value.
      init_from: the folder whose weights it began from, absolute; empty = random ones.
    """

    config: Config
    requested_corpus: str
    corpus_sha256: str
    platform: str
    devices: int
    changes: tuple[dict[str, Any], ...] = ()
    init_from: str = ""


def read_record(workdir: Path) -> Record | None:
    """The record of the run in `workdir`, or None where no run was started.

    Raises:
      UserError: for a record that cannot be read, is of another format, or is missing beside
        checkpoints, and for links out of the folder.
    """
    check_links(workdir)
    path = workdir / "config.json"
    try:
        return _parse_record(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if checkpoint_folders(workdir):
            raise UserError(
                f"{workdir} holds checkpoints but no config.json, so their model is not known: "
                "restore the file, or name another folder"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore the file, or name another folder"
        ) from error


def matching_tokenizer(workdir: Path, config: Config) -> Tokenizer:
    """The run's tokenizer.

    Raises:
      UserError: when it cannot be read, or has more tokens than the model's vocabulary, which may
        be padded.
    """
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{workdir / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, the model of "
            f"config.json {config.model.vocab_size}: restore the file the run began with"
        )
    return tokenizer


def newest_run(runs: Path) -> Path:
    """The folder in `runs` whose newest checkpoint was saved last.

    Raises:
      UserError: when there is none.
    """
    saved = {
        workdir: max(map(_saved_at, steps))
        for workdir in runs.glob("*")
        if (steps := checkpoint_folders(workdir))
    }
    if not saved:
        raise UserError(
            f"there is no run with a checkpoint in {runs.absolute()}: train one "
            "(scripts/train.py), or name its folder with --workdir"
        )
    return max(saved, key=lambda workdir: saved[workdir])


def _saved_at(folder: Path) -> float:
    """When a folder was last changed; long ago if it was removed meanwhile."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def checkpoint_folders(workdir: Path) -> list[Path]:
    """The folders of a run's checkpoints; an unfinished one has another name than its number."""
    return [path for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal()]


def existing_record(workdir: Path) -> Record:
    """The record of a run that must be there.

    Raises:
      UserError: as `read_record`, and where no run was started.
    """
    record = read_record(workdir)
    if record is None:
        raise UserError(
            f"{workdir} holds no run (there is no config.json): name the folder of one, such as "
            "runs/tiny"
        )
    return record


def _parse_record(content: Any) -> Record:
    if content["format"] != FORMAT:
        raise UserError(f"it is of format {content['format']!r}, this version reads {FORMAT}")
    config, corpus, devices = (content[name] for name in ("config", "corpus", "devices"))
    config = Config.from_dict(config)
    if config.model.matmul_dtype == "auto":
        raise UserError("it leaves model.matmul_dtype to choose")
    return Record(
        config=config,
        requested_corpus=checked("corpus.requested", corpus["requested"], str, ANY),
        corpus_sha256=checked("corpus.sha256", corpus["sha256"], str, ANY),
        platform=checked("devices.platform", devices["platform"], str, ANY),
        devices=checked("devices.count", devices["count"], int, ANY),
        changes=tuple(map(dict, content.get("changes", ()))),  # Runs of before have none.
        init_from=checked("init_from", content.get("init_from", ""), str, ANY),
    )


def write_record(workdir: Path, record: Record, tokenizer: Tokenizer) -> None:
    """Writes tokenizer.json and then, as a whole, config.json: it is the commit.

    Raises:
      UserError: when the folder cannot be made or written.
    """
    content = {
        "format": FORMAT,
        "config": record.config.to_dict(),
        "corpus": {"requested": record.requested_corpus, "sha256": record.corpus_sha256},
        "devices": {"platform": record.platform, "count": record.devices},
        "changes": list(record.changes),
        "init_from": record.init_from,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        save_tokenizer(tokenizer, workdir / "tokenizer.json")
        with replacing(workdir / "config.json") as file:
            file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}): check it, or use another --workdir"
        ) from error


def with_recorded_choices(config: Config, record: Record) -> Config:
    """`config` with what it leaves to choose as `record` chose it."""
    for section, name, undecided in CHOICES:
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
        if name in FIXED:
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
        if (section, name) not in FREE and value != old[section][name]
    ]


def _way_through(refused: list[dict[str, Any]]) -> str:
    fields = [change["field"] for change in refused]
    if FIXED.intersection(fields):
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
