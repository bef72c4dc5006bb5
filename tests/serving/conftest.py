"""Runs to serve: a plain one, a tuned one, and one of bytes."""

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import live
import pytest
from openai import OpenAI

import gpt_jax
from gpt_jax.api import TrainedModel
from gpt_jax.config.config import Config
from gpt_jax.runs.record import matching_tokenizer, read_record, write_record
from gpt_jax.training import loop
from gpt_jax.tuning.template import Template

MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "matmul_dtype": "float32"}
TALK = "Who is here? The king is. What is it? The crown is here. Be brief. "

# Adds nothing to a prompt. A barely trained model soon draws the end of an answer.
TEMPLATE = Template(("", ""), ("", ""), ("", "e "))


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs small, chat and bytes. Tests must not change it."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(trained, folder / "small")
    # Characters of two and three bytes.
    train(folder / "bytes", "é漢ü字" * 500, {"tokenizer": "byte"}, {"block_size": 16})
    train(folder / "chat", TALK * 80, {"tokenizer": "char"}, {"block_size": 80})
    record = read_record(folder / "chat")
    assert record is not None
    tuned = dataclasses.replace(record, template=TEMPLATE.to_dict())
    write_record(folder / "chat", tuned, matching_tokenizer(folder / "chat", record.config))
    return folder


def train(workdir: Path, text: str, data: dict[str, str], model: dict[str, int]) -> None:
    """Trains a run on a text."""
    corpus = workdir.with_suffix(".txt")
    corpus.write_text(text, encoding="utf-8")
    values = {
        "model": MODEL | model,
        "data": {"corpus": str(corpus)} | data,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "min_learning_rate": 1e-4},
        "train": {"steps": 150, "batch_size": 8, "microbatch_size": 8, "eval_every": 150},
        "sample": {"prompt": text[0], "max_new_tokens": 5},
        "mesh": {"cpu_devices": 1},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(Config.from_dict(values), workdir)


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    """The address of a server of all three runs."""
    with live.server(runs) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    """OpenAI's own client, which raises what it gets instead of trying again."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def model(runs: Path) -> TrainedModel:
    """The plain run in Python: what the server must equal."""
    return gpt_jax.load(runs / "small")
