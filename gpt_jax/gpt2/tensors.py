"""Tensors in safetensors files. The only module that uses the library, from the extra `gpt2`."""

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.files import open_file
from gpt_jax.gpt2.config_json import read_object, shown
from gpt_jax.gpt2.names import MASKS, PREFIX, Shape, listed

FLOATS = ("F64", "F32", "F16", "BF16")
SHARD = re.compile(r"[\w.-]+\.safetensors")  # A file's name, never a path.


class Stored(NamedTuple):
    """A tensor in a file: its name there, its type (F32 is float32) and its shape."""

    file: Path
    name: str
    dtype: str
    shape: Shape


def find_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors but the masks, by name without the prefix.

    Raises UserError if a file cannot be read, or a tensor does not hold floats.
    """
    found = [tensor for tensor in _stored(folder) if not MASKS.fullmatch(_bare(tensor.name))]
    if others := [f"{one.name} {one.dtype}" for one in found if one.dtype not in FLOATS]:
        raise UserError(
            f"{folder} holds tensors that are not floats of 16, 32 or 64 bits ({listed(others)}): "
            "choose weights in one of these types"
        )
    named = {_bare(tensor.name): tensor for tensor in found}
    if len(named) < len(found):
        raise UserError(
            f"{folder} holds tensors whose names differ only in {PREFIX!r}: get the folder again"
        )
    return named


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _stored(folder: Path) -> Iterable[Stored]:
    """All tensors in model.safetensors or, if there is none, in the files that the index names.

    transformers reads them in this order, and leaves an old index beside a file that it writes.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return _stored_in(whole)
    if not index.exists():
        raise UserError(
            f"{folder} has no model.safetensors: choose a folder with GPT-2's weights in this "
            "format, as Hugging Face offers them (pickled weights can hold code and are never "
            "read)"
        )
    places = _weight_map(index)
    return [
        tensor
        for file in sorted(set(places.values()))
        for tensor in _stored_in(folder / file)
        if places.get(tensor.name) == file
    ]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by the tensor's name. Raises UserError if it is not such a map."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{index} has no weight_map with the file of each tensor: get it again")
    for file in places.values():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise UserError(
                f"{index} names {shown(file)} as a file of tensors: only the names of files in "
                "this folder that end in .safetensors are allowed; get it again"
            )
    return places


def _stored_in(file: Path) -> list[Stored]:
    """All tensors of a file, from its header."""
    with _opened(file) as tensors:
        slices = [(name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118
        return [Stored(file, name, s.get_dtype(), tuple(s.get_shape())) for name, s in slices]


def read_tensor(tensor: Stored, part: int | None = None) -> np.ndarray:
    """A tensor of floats, or one of the three parts of its last axis (0, 1 or 2), as float32.

    Raises:
      UserError: if it cannot be read, or holds a number that is not finite.
    """
    with _opened(tensor.file) as tensors:
        if part is None:
            found = tensors.get_tensor(tensor.name)
        else:
            size = tensor.shape[-1] // 3
            found = tensors.get_slice(tensor.name)[..., part * size : (part + 1) * size]
    with np.errstate(over="ignore"):  # A float64 can be too large.
        found = np.asarray(found, np.float32)
    if not np.isfinite(found).all():
        raise UserError(
            f"{tensor.file} holds numbers in {tensor.name} that are not finite in float32 (NaN or "
            "infinite): get the file again, or choose other weights"
        )
    return found


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An open file, of which only the header is read. Raises UserError if it cannot be read."""
    library = _library()
    try:
        open_file(file).close()  # The library would wait for a pipe.
        with library.safe_open(file, "numpy") as tensors:
            yield tensors
    except (OSError, ValueError, library.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}): get the file again") from error


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
            'run .venv/bin/pip install -e ".[gpt2]"'
        ) from None
    return safetensors
