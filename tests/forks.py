"""Processes that start fast: forks of a server that has imported everything, before JAX starts.

An import of JAX, Orbax and matplotlib takes two seconds of processor time; a fork takes none.
"""

import atexit
import multiprocessing
import os

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["gpt_jax.training.loop", "ml_collections.config_flags", "matplotlib.figure", "pytest"]
)


def start(target, *args):
    """Starts a function in a process of its own. `target` must be at the top of its module."""
    process = FORKS.Process(target=_run_to_the_exit, args=(target, *args))
    process.start()
    return process


def _run_to_the_exit(target, *args):
    """A fork of `multiprocessing` would skip what JAX does at exit, such as waiting for others."""
    try:
        target(*args)
    finally:
        atexit._run_exitfuncs()


def run(target, *args):
    """Runs a function in a process of its own. Returns its exit status, negative for a signal."""
    process = start(target, *args)
    process.join()
    return process.exitcode


def write_output_to(path):
    """Appends this process's output to a file, and the output of its C++ code, too."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
