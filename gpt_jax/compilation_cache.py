"""What was compiled once is kept: JAX's persistent cache, in the user's own cache folder."""

import os
import stat
from pathlib import Path

import jax

from gpt_jax.corpus import cache_folder


def use_compilation_cache() -> None:
    """Lets JAX keep what it compiles, unless the user has set a cache, or none can be had safely.

    A cached program is executed as it is found, so its folder must be the user's alone.
    """
    if (
        getattr(jax.config, "jax_compilation_cache_dir", None)
        or "JAX_ENABLE_COMPILATION_CACHE" in os.environ
    ):
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if not _is_private(folder):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # The default of a second would leave out most programs of a CPU.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _is_private(folder: Path) -> bool:
    """Whether the folder is the user's, and nobody else may write there."""
    if not hasattr(os, "getuid"):
        return True  # Windows: a user's folders are his own by default.
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
