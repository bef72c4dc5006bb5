"""Lets Orbax find checkpoints in a folder whose name looks like a pattern, such as `a[0]b`.

Orbax finds the parts of a checkpoint with `glob` of etils, which takes the folder's own name for a
part of the pattern (etils 1.15.0). In `a[0]b` it found nothing, and the checkpoint seemed damaged.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath


@functools.cache
def take_names_literally() -> None:
    """Corrects `glob` of etils' paths for folders on this machine, in the whole process."""
    path_class = type(epath.Path())
    glob_by_name = path_class.glob

    def glob_below(folder: Any, pattern: str) -> Iterator[Any]:
        if (local := Path(folder)).is_dir():
            return map(path_class, local.glob(pattern))
        return glob_by_name(folder, pattern)

    path_class.glob = glob_below
