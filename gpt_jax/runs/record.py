"""A run on disk: its record and its tokenizer.

    runs/tiny/  config.json  tokenizer.json  metrics.jsonl  loss.png  samples/  checkpoints/<step>/

The record is config.json. It holds the resolved configuration (no choice is left to the program),
where the corpus was found and its hash, the devices and the package versions. It is data, never
code. No jax.
"""

import dataclasses
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_jax.config import ANY, Config, checked
from gpt_jax.errors import UserError
from gpt_jax.files import replacing
from gpt_jax.runs.checkpoint_list import checkpoint_folders
from gpt_jax.text import Tokenizer, load_tokenizer, save_tokenizer

FORMAT = 1
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
      changes: deliberate changes on resume, each with its step, field, old and new value.
      init_from: absolute folder of the weights it began from; empty = random parameters.
    """

    config: Config
    requested_corpus: str
    corpus_sha256: str
    platform: str
    devices: int
    changes: tuple[dict[str, Any], ...] = ()
    init_from: str = ""


def read_record(workdir: Path) -> Record | None:
    """The record of the run in `workdir`; None if no run was started there.

    Raises:
      UserError: if the record cannot be read, has another format, or is missing beside
        checkpoints; or if a link leads out of the folder.
    """
    check_links(workdir)
    path = workdir / "config.json"
    try:
        return _parse_record(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if checkpoint_folders(workdir):
            raise UserError(
                f"{workdir} holds checkpoints but no config.json that describes their model: "
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
    """The record of a run that must exist. Raises as `read_record`, and if there is no run."""
    record = read_record(workdir)
    if record is None:
        raise UserError(
            f"{workdir} holds no run (there is no config.json): name the folder of a run, such as "
            "runs/tiny"
        )
    return record


def _parse_record(content: Any) -> Record:
    if content["format"] != FORMAT:
        raise UserError(f"it has format {content['format']!r}, but this version reads {FORMAT}")
    config, corpus, devices = (content[name] for name in ("config", "corpus", "devices"))
    config = Config.from_dict(config)
    if config.model.matmul_dtype == "auto":
        raise UserError("model.matmul_dtype = 'auto', but a record holds what was chosen")
    return Record(
        config=config,
        requested_corpus=checked("corpus.requested", corpus["requested"], str, ANY),
        corpus_sha256=checked("corpus.sha256", corpus["sha256"], str, ANY),
        platform=checked("devices.platform", devices["platform"], str, ANY),
        devices=checked("devices.count", devices["count"], int, ANY),
        changes=tuple(map(dict, content.get("changes", ()))),  # Older runs have none.
        init_from=checked("init_from", content.get("init_from", ""), str, ANY),
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


def check_links(folder: Path) -> None:
    """Raises UserError for a link out of `folder`: writing through it could hit any file."""
    inside = folder.resolve()
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} is a link to {path.resolve()}, out of the folder of the run: replace "
                    "the link with what it leads to"
                )
