"""Where text comes from: Tiny Shakespeare (downloaded, checked, cached), your files, our play.

This is the only module that uses the network. A corpus is one string, with the absolute source
where it is found again, and the SHA-256 of its UTF-8 bytes.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import os
import sys
import time
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.files import (
    absolute,
    cache_folder,
    read_file,
    read_json,
    replacing,
    special_kind,
)
from gpt_jax.text import play
from gpt_jax.text.utf8_files import text_blocks

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_BYTES = 1_115_394
TIMEOUT_SECONDS = 10
ATTEMPTS = 3
NAMES = ("tinyshakespeare", "builtin")
NO_CORPUS = "no corpus"  # data.corpus of a tuned run that has none, directly or by its origin.
INPUTS = ("/dev/stdin", "/dev/fd/", "/proc/")  # These name another text in every process.

# What a folder as corpus leaves out: folders of systems and programs, by name or ending ...
SYSTEM_FOLDERS = (
    *("__pycache__", "node_modules", "site-packages", "lost+found", "@eaDir"),
    *("__MACOSX", "$RECYCLE.BIN", "System Volume Information"),
)
PACKAGE_ENDINGS = (".egg-info", ".dist-info")  # Python's lists of files, such as SOURCES.txt.
# ... what a run writes, and prepared corpora. These keys show that a JSON file is ours.
RUN_FOLDERS = ("checkpoints", "samples")
RUN_KEYS = {"format", "config", "corpus"}  # config.json; see runs/record.py.
INDEX_KEYS = {"format", "tokenizer_sha256"}  # index.json and unfinished.json; see shards.py.


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text. `source` is the value of `data.corpus` that gives it again, with an absolute path."""

    source: str
    text: str
    sha256: str


class DownloadError(UserError):
    """Tiny Shakespeare could not be downloaded."""


def load_corpus(source: str) -> Corpus:
    """The text for `data.corpus = source`.

    Raises:
      DownloadError: if Tiny Shakespeare is not cached and cannot be downloaded.
      UserError: if files are missing, empty or not UTF-8.
    """
    if source == "tinyshakespeare":
        text = _tiny_shakespeare()
    elif source == "builtin":
        text = play.write()
    elif not (text := "".join(text_blocks(find_files(source, NAMES)))):
        raise empty_corpus(source)
    sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return Corpus(absolute_source(source), text, sha256)


def absolute_source(source: str) -> str:
    """`data.corpus` as it is recorded: a name unchanged, a path made absolute.

    Raises UserError as `absolute`.
    """
    return source if source in (*NAMES, NO_CORPUS) else str(absolute(source))


def _tiny_shakespeare() -> str:
    """The cached copy if it is intact, else a new download. 1,115,394 ASCII characters."""
    with contextlib.suppress(OSError):
        if _is_tiny_shakespeare(content := read_file(_cached())):
            return content.decode("utf-8")
    print("downloading Tiny Shakespeare (1.1 MB)", file=sys.stderr)
    content = _download()
    try:
        path = _cached()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        print(f"note: the download is not cached ({error})", file=sys.stderr)
    return content.decode("utf-8")


def _cached() -> Path:
    """Where the download is kept. Raises OSError if there is no such place."""
    return cache_folder() / "tinyshakespeare.txt"


def _is_tiny_shakespeare(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == TINY_SHAKESPEARE_SHA256


def _download() -> bytes:
    """Tiny Shakespeare's bytes, checked, in up to `ATTEMPTS` attempts with growing pauses.

    If connecting times out, it is not tried again: it has timed out at every address of the host.
    """
    reason: object = None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=TIMEOUT_SECONDS) as response:
                content = response.read(TINY_SHAKESPEARE_BYTES + 1)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError) and reason is not error:
                break
            continue
        if _is_tiny_shakespeare(content):
            return content
        reason = f"the SHA-256 of its {len(content)} bytes is not {TINY_SHAKESPEARE_SHA256[:12]}..."
    raise DownloadError(
        f"Tiny Shakespeare cannot be downloaded from {TINY_SHAKESPEARE_URL} ({reason}): "
        "connect to the network, give the path of a copy, or use --config.data.corpus=builtin"
    )


def empty_corpus(source: str) -> UserError:
    """The error for a corpus without a single character."""
    return UserError(f"data.corpus = {source!r} is empty: give a text with at least one character")


def find_files(source: str, names: Iterable[str] = ()) -> list[Path]:
    """The files of a corpus: one file, or those of a folder or glob in the order of their names.

    A note says how many files of a folder are taken and how many are left out. Raises UserError,
    which offers the corpora `names` as alternatives, if there is no file.
    """
    path = absolute_source(source)
    _check_can_be_read_again(source, path)
    if os.path.isdir(path):
        found, left_out = _folder_files(Path(path))
        print(
            f"note: {path}: {len(found)} .txt file(s) taken, {left_out} left out (hidden, of the "
            "system, of a run or of a prepared corpus)",
            file=sys.stderr,
        )
        wanted = "a folder with .txt files"
    else:
        paths = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        found = [Path(name) for name in paths if os.path.isfile(name)]
        wanted = ", ".join([*names, "an existing file, folder or glob of UTF-8 text"])
    if not found:
        raise UserError(
            f"data.corpus = {source!r} matches no text file (looked at {path}): give {wanted}"
        )
    return found


def _check_can_be_read_again(source: str, path: str) -> None:
    kind = special_kind(Path(path))
    if path.startswith(INPUTS) or (source == "-" and not os.path.exists(path)):
        kind = "the input of one process"
    if kind:
        raise UserError(
            f"data.corpus = {source!r} is {kind}, and a run reads its text again whenever it "
            "resumes: save the text in a file, and give its path"
        )


def _folder_files(folder: Path) -> tuple[list[Path], int]:
    """The .txt files in and below a folder that are its text, and the number of the others."""

    @functools.cache
    def is_text(path: Path) -> bool:
        return path == folder or (not _is_left_out(path) and is_text(path.parent))

    found = sorted(file for file in folder.rglob("*.txt") if file.is_file())
    taken = [file for file in found if is_text(file)]
    return taken, len(found) - len(taken)


def _is_left_out(path: Path) -> bool:
    """Whether a file or folder is hidden, of the system, of a run, or a prepared corpus."""
    return (
        path.name.startswith(".")
        or path.name in SYSTEM_FOLDERS
        or path.name.endswith(PACKAGE_ENDINGS)
        or (path.name in RUN_FOLDERS and _is_ours(path.parent / "config.json", RUN_KEYS))
        or any(_is_ours(path / f"{name}.json", INDEX_KEYS) for name in ("index", "unfinished"))
    )


def _is_ours(path: Path, keys: set[str]) -> bool:
    """Whether a file is a JSON object with these keys."""
    try:
        return path.is_file() and read_json(path).keys() >= keys
    except (OSError, ValueError):
        return False
