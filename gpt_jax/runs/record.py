"""A run on disk: its record and its tokenizer.

    runs/tiny/  config.json  tokenizer.json  metrics.jsonl  loss.png  samples/  checkpoints/<step>/

The record is config.json. It holds the resolved configuration (no choice is left to the program),
where the corpus was found and its hash, the devices and the package versions. It is data, never
code. It also holds a digest of itself and of the tokenizer, so that an edit or a flipped bit is
noticed. No jax.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_jax.config import ANY, NOT_NEGATIVE, Config, checked
from gpt_jax.errors import UserError
from gpt_jax.files import read_json, replacing, special_kind
from gpt_jax.runs.checkpoint_list import checkpoint_folders
from gpt_jax.text import Tokenizer, load_tokenizer, save_tokenizer

FORMAT = 1
RECORD_FILES = ("config.json", "tokenizer.json")  # The files of which the record holds a digest.
# TensorStore takes a backslash for a slash; Orbax looks for the others in cloud storage.
TAKEN_FOR_ANOTHER_PLACE = re.compile(r"\\|gs:/|^/(?:gs|s3|az|hf)/")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run was started with.

    Attributes:
      config: resolved; `config.data.corpus` is where the text was found.
      requested_corpus: `data.corpus` as requested, with absolute paths. It is still
        "tinyshakespeare" if the download failed and the built-in play was used.
      corpus_sha256: hash of the text's UTF-8 bytes.
      platform, devices: kind and number of devices.
      changes: what changed on resume: deliberate changes, and the new path of a corpus or tokenizer
        that moved. Each has its step, field, old and new value; a field can be one of RECORD_FILES.
      init_from: absolute folder it began from: GPT-2's weights, or another run; empty = random
        parameters.
      init_step: step of the other run's checkpoint; None for GPT-2's weights.
      init_sha256: hash of what was read; empty in a record of an older version.
      template: how a prompt becomes text for a tuned run; None for others.
      data_sha256: hash of the files that `tune.data` named, or of the weights of
        `train.teachers`; empty without them.
      has_digests: whether config.json holds digests; a record of an older version does not.
    """

    config: Config
    requested_corpus: str
    corpus_sha256: str
    platform: str
    devices: int
    changes: tuple[dict[str, Any], ...] = ()
    init_from: str = ""
    init_step: int | None = None
    init_sha256: str = ""
    template: dict[str, Any] | None = None
    data_sha256: str = ""
    has_digests: bool = dataclasses.field(default=True, compare=False)


def read_record(workdir: Path) -> Record | None:
    """The record of the run in `workdir`; None if no run was started there.

    Whether the record was edited is left to `check_unedited`.

    Raises:
      UserError: if the record cannot be read, has another format, or is missing beside
        checkpoints; if a link leads out of the folder, or checkpoints cannot have its name.
    """
    check_name(workdir)
    check_links(workdir)
    path = workdir / "config.json"
    try:
        return _parse_record(read_json(path))
    except FileNotFoundError:
        if checkpoint_folders(workdir):
            raise UserError(
                f"{workdir} holds checkpoints but no config.json that describes their model: "
                "restore the file, or name another folder"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore the file, or name another folder"
        ) from error


def matching_tokenizer(workdir: Path, config: Config) -> Tokenizer:
    """The run's tokenizer.

    Raises:
      UserError: if it cannot be read, or has more tokens than the model's vocabulary. It may have
        fewer: the vocabulary can be padded.
    """
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{workdir / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, the model in "
            f"config.json only {config.model.vocab_size}: restore the file the run began with"
        )
    return tokenizer


def existing_record(workdir: Path) -> Record:
    """The record of a run that must exist, for everyone who does not train it.

    Raises as `read_record` and `check_unedited`, and if there is no run.
    """
    record = read_record(workdir)
    if record is None:
        raise UserError(
            f"{workdir} holds no run (there is no config.json): name the folder of a run, such as "
            "runs/tiny"
        )
    check_unedited(workdir)
    return record


def check_unedited(workdir: Path, allowed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Checks that the record and the tokenizer of a run are what the run wrote.

    The digests guard against decay and mistakes, not against forgery. A run of an older version has
    none, and passes.

    Args:
      allowed: names of files in RECORD_FILES that may have changed.

    Returns: the files that have changed, all of them allowed: field (its name), was and is (its
      digests).

    Raises:
      UserError: for the first that has changed and is not allowed.
    """
    content = read_json(workdir / "config.json")
    was = content.pop("digests", {})
    now = {"config.json": _digest(content), "tokenizer.json": _digest_of(workdir)}
    edits = [
        {"field": name, "was": was[name], "is": now[name]}
        for name in RECORD_FILES
        if now[name] and was.get(name, now[name]) != now[name]
    ]
    for name in (edit["field"] for edit in edits if edit["field"] not in allowed):
        raise UserError(
            f"{workdir / name} is not what the run wrote: restore the file, or, if you changed it "
            f"on purpose, repeat the training command with --resume_allow={name}"
        )
    return edits


def _digest(content: dict[str, Any]) -> str:
    """The SHA-256 of a JSON object, whatever its layout in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _digest_of(workdir: Path) -> str:
    """The digest of a run's tokenizer; empty if it cannot be read, as `matching_tokenizer` says."""
    try:
        return _digest(read_json(workdir / "tokenizer.json"))
    except (OSError, ValueError):
        return ""


def _parse_record(content: Any) -> Record:
    if content["format"] != FORMAT:
        raise UserError(f"it has format {content['format']!r}, but this version reads {FORMAT}")
    config, corpus, devices = (content[name] for name in ("config", "corpus", "devices"))
    config = Config.from_dict(config)
    if config.model.matmul_dtype == "auto":
        raise UserError("model.matmul_dtype = 'auto', but a record holds what was chosen")
    step = content.get("init_step")
    return Record(
        config=config,
        requested_corpus=checked("corpus.requested", corpus["requested"], str, ANY),
        corpus_sha256=checked("corpus.sha256", corpus["sha256"], str, ANY),
        platform=checked("devices.platform", devices["platform"], str, ANY),
        devices=checked("devices.count", devices["count"], int, ANY),
        changes=tuple(map(dict, content.get("changes", ()))),  # Older runs have none.
        init_from=checked("init_from", content.get("init_from", ""), str, ANY),
        init_step=None if step is None else checked("init_step", step, int, NOT_NEGATIVE),
        template=content.get("template"),
        data_sha256=checked("data_sha256", content.get("data_sha256", ""), str, ANY),
        init_sha256=checked("init_sha256", content.get("init_sha256", ""), str, ANY),
        has_digests=bool(checked("digests", content.get("digests", {}), dict, ANY)),
    )


def write_record(workdir: Path, record: Record, tokenizer: Tokenizer) -> None:
    """Writes tokenizer.json, then config.json, which makes the folder a run. Each is atomic.

    Raises:
      UserError: if the folder cannot be created or written.
    """
    content = {
        "format": FORMAT,
        "config": record.config.to_dict(),
        "corpus": {"requested": record.requested_corpus, "sha256": record.corpus_sha256},
        "devices": {"platform": record.platform, "count": record.devices},
        "changes": list(record.changes),
        "init_from": record.init_from,
        "init_step": record.init_step,
        "init_sha256": record.init_sha256,
        "template": record.template,
        "data_sha256": record.data_sha256,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        save_tokenizer(tokenizer, workdir / "tokenizer.json")
        content["digests"] = dict(
            zip(RECORD_FILES, (_digest(content), _digest_of(workdir)), strict=True)
        )
        with replacing(workdir / "config.json") as file:
            file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}): check it, or use another --workdir"
        ) from error


def check_name(folder: Path) -> None:
    """Raises UserError for a folder whose checkpoints could not be written, or read again."""
    path = folder.absolute().as_posix()
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"the path {path!r} is not UTF-8: use another folder") from None
    if found := TAKEN_FOR_ANOTHER_PLACE.search(f"{path}/"):
        raise UserError(
            f"checkpoints cannot lie in {path}, because the libraries that write them give "
            f"{found[0]} in a path another meaning: use another folder"
        )


def check_links(folder: Path) -> None:
    """Raises UserError for a link out of `folder`: writing through it could hit any file.

    Also for what is not a file among the checkpoints: Orbax would wait for a pipe.
    """
    inside = Path(os.path.realpath(folder))
    for parent, folders, names in os.walk(folder):
        is_saved = Path(parent).is_relative_to(folder / "checkpoints")
        for path in (Path(parent, name) for name in (*folders, *names)):
            target = Path(os.path.realpath(path)) if path.is_symlink() else inside
            if not target.is_relative_to(inside):
                raise UserError(
                    f"{path} is a link to {target}, out of the folder of the run: replace the "
                    "link with what it leads to"
                )
            if is_saved and (kind := special_kind(path)):
                raise UserError(f"{path} is {kind}, not a file: remove it, or restore the file")
