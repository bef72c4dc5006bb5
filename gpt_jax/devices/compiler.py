"""The compilation cache, in the user's own cache folder, and memory returned after compiling."""

import ctypes
import functools
import os
import stat
import sys
from pathlib import Path

import jax

from gpt_jax.files import cache_folder

COMPILED = "/jax/core/compile/backend_compile_duration"
LONG_COMPILE_S = 0.2  # A shorter compilation leaves little memory to return.


@functools.cache
def set_up_compiler() -> None:
    """Sets up the cache and the return of memory, once. Commands call it before compiling."""
    use_compilation_cache()
    give_memory_back()


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs, unless the user has set a cache or the folder is not safe.

    JAX runs a cached program without checking it, so nobody else may be able to write the folder.
    """
    set_by_user = getattr(jax.config, "jax_compilation_cache_dir", None)
    if set_by_user or "JAX_ENABLE_COMPILATION_CACHE" in os.environ:
        return
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if not _is_private(folder):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # The default, one second, would leave out most programs for a CPU.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _is_private(folder: Path) -> bool:
    """Whether the folder belongs to the user and nobody else may write to it."""
    if not hasattr(os, "getuid"):
        return True  # Windows: a user's folders are private by default.
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def give_memory_back() -> None:
    """Makes glibc return freed memory to the system after every long compilation.

    By default glibc keeps it in the arenas of the compiler's threads. The peak of a first start of
    configs/tiny.py is 610-660 MB with this and 765-850 MB without.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        if trim is not None and event == COMPILED and duration_secs > LONG_COMPILE_S:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listener)
