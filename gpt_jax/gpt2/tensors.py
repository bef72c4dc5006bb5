"""Tensors in safetensors files. The only module that uses the library, from the extra `gpt2`."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.gpt2.names import Shape


def tensor_names(file: Path) -> list[str]:
    """The names of all tensors in a file."""
    with _opened(file) as tensors:
        return list(tensors.keys())


def tensor_shape(file: Path, name: str) -> Shape:
    """The shape of a tensor, read from the file's header."""
    with _opened(file) as tensors:
        return tuple(tensors.get_slice(name).get_shape())


def read_tensor(file: Path, name: str, part: int | None = None) -> np.ndarray:
    """A tensor, or one of the three parts of its last axis (0, 1 or 2)."""
    with _opened(file) as tensors:
        if part is None:
            return tensors.get_tensor(name)
        whole = tensors.get_slice(name)
        size = whole.get_shape()[-1] // 3
        columns = slice(part * size, (part + 1) * size)
        return whole[:, columns] if len(whole.get_shape()) == 2 else whole[columns]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An open file, of which only the header is read. Raises UserError if it cannot be read."""
    library = _library()
    try:
        with library.safe_open(file, "numpy") as tensors:
            yield tensors
    except (OSError, library.SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): get the file again") from error


def save_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors in the form transformers expects. Raises OSError if it cannot."""
    library = _library()
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode  # As the umask says; the library would write a private file.
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except library.SafetensorError as error:  # Not an OSError, even for a full disk.
        raise OSError(errno.EIO, str(error)) from error
    file.chmod(mode)


def _library() -> Any:
    """The library safetensors. Raises UserError if it is not installed."""
    try:
        import safetensors
    except ImportError:
        raise UserError(
            "files of tensors need the package safetensors, which is not installed: "
            'run pip install -e ".[gpt2]"'
        ) from None
    return safetensors
