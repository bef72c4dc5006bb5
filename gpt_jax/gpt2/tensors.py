"""Tensors in safetensors files: the only module that knows the library."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.gpt2.names import Shape


def _names(file: Path) -> list[str]:
    with _opened(file) as tensors:
        return list(tensors.keys())


def _shape(file: Path, name: str) -> Shape:
    with _opened(file) as tensors:
        return tuple(tensors.get_slice(name).get_shape())


def _read(file: Path, name: str, part: int | None = None) -> np.ndarray:
    """A tensor, or only one of three parts of its last axis."""
    with _opened(file) as tensors:
        if part is None:
            return tensors.get_tensor(name)
        whole = tensors.get_slice(name)
        size = whole.get_shape()[-1] // 3
        columns = slice(part * size, (part + 1) * size)
        return whole[:, columns] if len(whole.get_shape()) == 2 else whole[columns]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of tensors, of which only the header is read."""
    library = _library()
    try:
        with library.safe_open(file, "numpy") as tensors:
            yield tensors
    except (OSError, library.SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): get the file anew") from error


def save_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors as transformers expects them, into a file with the mode of any new one.

    Raises:
      OSError: when it cannot be written.
      UserError: when the library is missing.
    """
    library = _library()
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode  # By the umask; the library's file is the user's alone.
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except library.SafetensorError as error:  # Which is none of the system's.
        raise OSError(errno.EIO, str(error)) from error
    file.chmod(mode)


def _library() -> Any:
    try:
        import safetensors
    except ImportError:
        raise UserError(
            "files of tensors need the package safetensors, which is not installed: "
            'pip install -e ".[gpt2]"'
        ) from None
    return safetensors
