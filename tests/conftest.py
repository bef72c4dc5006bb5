"""Shared by all tests: eight CPU devices, a compilation cache for the session, a small model."""

import contextlib
import io
import os
import random
import shutil
import tempfile
from pathlib import Path

# Before JAX starts, and inherited by the processes that tests start and by pytest-xdist's workers.
os.environ["JAX_PLATFORMS"] = "cpu"
if "GPT_JAX_TEST_CACHE" not in os.environ:
    os.environ["GPT_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="gpt_jax-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["GPT_JAX_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# LLVM optimises nothing: most of the suite is compiling, and takes half the time so.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import hypothesis
import jax
import pytest
from support import COSINE

from gpt_jax.config.config import Config
from gpt_jax.text import play
from gpt_jax.training import loop

# The same examples everywhere, and no limit on their time: machines differ.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # Starts JAX: no test can change the number any more.


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The process that began the session removes the compilation cache."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(os.environ.pop("GPT_JAX_TEST_CACHE"), ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small() -> Config:
    """A resolved configuration that trains in milliseconds; float32 throughout, dropout on."""
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
    """The folder of a run of 200 steps on 20,000 characters. Nobody may change it.

    The held-out ones are the play's in disorder: the longer it learns the order of the others, the
    worse it does on these, so its best checkpoint, of step 100, is not its newest.
    """
    folder = tmp_path_factory.mktemp("trained")
    text, held_out = play.write()[:18_000], list(play.write()[18_000:20_000])
    random.Random(0).shuffle(held_out)
    path = folder / "corpus.txt"
    path.write_text(text + "".join(held_out), encoding="utf-8")
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
