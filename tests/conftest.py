"""What all tests share: eight CPU devices, a compilation cache for the session, a small model."""

import contextlib
import ctypes
import gc
import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# JAX reads these when it starts. Pytest-xdist's workers and the tests' own processes inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
if "GPT_JAX_TEST_CACHE" not in os.environ:
    os.environ["GPT_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="gpt_jax-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["GPT_JAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Most of the suite's time is compiling. Without LLVM's optimisations it takes half the time, and
# without XLA's fusion emitters half of that: a train step over 8 devices takes 2.4 s in place of
# 4.5 s, and the process 320 MB in place of 600 MB. test_loop.py has a run with none of these flags.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax
import pytest
import steps
from support import COSINE

from gpt_jax.config.config import Config
from gpt_jax.text import play
from gpt_jax.training import loop

# Every machine draws the same examples. There is no time limit, because machines differ.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # Starts JAX, so that no test can change the number.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs all tests of a file, so fixtures and programs of the file are made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Removes the compilation cache, in the process that started the session."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(os.environ.pop("GPT_JAX_TEST_CACHE"), ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def free_programs() -> Iterator[None]:
    """Frees the compiled programs after each file of tests; together they take gigabytes."""
    yield
    steps.compiled.cache_clear()
    steps.SHARED.clear()
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # glibc alone would keep the memory.


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tests out of the user's cache folder."""
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))


class WaitedForAPipe(BaseException):
    """Ends a test that would wait forever. No handler of errors catches it."""


@pytest.fixture
def mkfifo() -> Iterator[Callable[[str | Path], None]]:
    """Makes pipes that nobody writes to. A test that waits for one for a minute fails."""

    def fail(*_: object) -> None:
        raise WaitedForAPipe

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield os.mkfifo
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def small() -> Config:
    """A resolved configuration that trains in milliseconds, in float32 and with dropout."""
    return Config.from_dict(
        {
            "model": {
                "vocab_size": 11,
                "block_size": 16,
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 16,
                "dropout": 0.25,
                "matmul_dtype": "float32",
            },
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2} | COSINE,
            "train": {"steps": 10, "batch_size": 8, "microbatch_size": 2},
            "mesh": {"cpu_devices": 1},
        }
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 200 steps on 20,000 characters. Tests must not change it.

    The validation text is shuffled. The longer the model trains, the worse it predicts this text,
    so the best checkpoint (step 100) is not the newest one (step 200).
    """
    folder = tmp_path_factory.mktemp("trained")
    text, validation = play.write()[:18_000], list(play.write()[18_000:20_000])
    random.Random(0).shuffle(validation)
    path = folder / "corpus.txt"
    path.write_text(text + "".join(validation), encoding="utf-8")
    config = Config.from_dict(
        {
            "model": {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, "dropout": 0.1}
            | {"matmul_dtype": "float32"},
            "data": {"corpus": str(path)},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2} | COSINE,
            "train": {"steps": 200, "batch_size": 8, "microbatch_size": 8, "eval_every": 100}
            | {"checkpoint_every": 100},
            "sample": {"prompt": "The ", "max_new_tokens": 20},
            "mesh": {"cpu_devices": 1},
        }
    )
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(config, folder / "runs" / "small")
    return folder / "runs" / "small"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A corpus of 20,000 characters."""
    path = tmp_path / "corpus.txt"
    path.write_text(play.write()[:20_000], encoding="utf-8")
    return path
