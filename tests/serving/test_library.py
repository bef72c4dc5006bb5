"""The runs that are served: loaded, loaded anew, damaged, removed."""

import json
import shutil

import live
import pytest

import gpt_jax
from gpt_jax.serving import library
from gpt_jax.serving.library import Library, all_runs

GOOD = {"model": "small", "prompt": "The ", "max_tokens": 20, "seed": 0}


def ask(url, name="small"):
    """The text of a completion, or the status and the message of an error."""
    status, _, content = live.send(url, "POST", "/v1/completions", GOOD | {"model": name})
    found = json.loads(content)
    return found["choices"][0]["text"] if status == 200 else (status, found["error"]["message"])


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs / "small", tmp_path / "small")


def expected(folder, step):
    return gpt_jax.load(folder, step).generate("The ", max_new_tokens=20)[4:]


def test_a_run_is_loaded_anew_when_it_has_a_newer_checkpoint(copy, tmp_path):
    newest = copy / "checkpoints" / "200"
    shutil.move(newest, tmp_path / "later")
    texts = expected(copy, 100)
    with live.server(Library(all_runs(tmp_path), "latest", 1, 9)) as url:
        assert ask(url) == texts
        shutil.move(tmp_path / "later", newest)
        assert ask(url) == expected(copy, 200) != texts


def test_a_run_that_is_loaded_survives_damage_to_its_files(copy, tmp_path):
    with live.server(tmp_path) as url:
        text = ask(url)
        for path in (copy / "checkpoints").rglob("*"):
            if path.is_file():
                path.write_bytes(b"damaged")
        assert ask(url) == text


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "checkpoints"])
def test_a_run_that_is_damaged_before_it_is_loaded_is_told(copy, tmp_path, file):
    for path in [copy / file] if file != "checkpoints" else (copy / file).rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with live.server(tmp_path) as url:
        status, message = ask(url)
        assert status == 503 and "small" in message
        assert live.send(url, "GET", "/api/runs")[0] == 200
        assert live.send(url, "GET", "/health")[0] == 200


def test_a_run_that_is_removed_is_not_found(copy, tmp_path):
    with live.server(tmp_path) as url:
        assert ask(url)
        shutil.rmtree(copy)
        status, message = ask(url)
        assert status == 404 and "choose one of these runs: none" in message
        assert json.loads(live.send(url, "GET", "/v1/models")[2])["data"] == []


def test_a_run_that_is_added_is_served(copy, tmp_path):
    with live.server(tmp_path) as url:
        shutil.copytree(copy, tmp_path / "second")
        assert ask(url, "second") == ask(url)


def test_few_runs_stay_loaded(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "MOST_LOADED", 2)
    for name in ("a", "b", "c"):
        shutil.copytree(copy, tmp_path / name)
    served = Library(all_runs(tmp_path), "best", 1, 9)
    with live.server(served) as url:
        texts = {ask(url, name) for name in ("a", "b", "a", "c", "a")}
        assert len(texts) == 1
        assert set(served._loaded) <= {"a", "c"}
