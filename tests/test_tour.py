"""The tour in docs/tour.ipynb: it runs from top to bottom, and the committed file is clean."""

import contextlib
import io
import json
import os
import re

import nbclient
import nbformat
import pytest
from support import COSINE, ROOT

from gpt_jax.config import Config
from gpt_jax.text import play
from gpt_jax.training import loop

TOUR = ROOT / "docs" / "tour.ipynb"
LARGEST = 600_000  # Bytes, with the figures.
FIGURES = ("losses", "next", "attention", "enlarged", "curves", "difference")
MODELS = {
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 32},
    "speedrun": {"n_layer": 1, "n_head": 4, "n_embd": 16, "position": "rotary", "norm": "rms"},
}


def read():
    return nbformat.read(TOUR, as_version=4)


def train(name, folder, corpus):
    """Trains one of the two runs for a few steps, at a size that no cell may expect."""
    config = Config.from_dict(
        {
            "model": {"block_size": 32, "matmul_dtype": "float32"} | MODELS[name],
            "data": {"corpus": str(corpus)},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1} | COSINE,
            "train": {"steps": 20, "batch_size": 8, "eval_every": 10},
            "sample": {"max_new_tokens": 0},
            "mesh": {"cpu_devices": 1},
        }
    )
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(config, folder / "runs" / name)


def kernel_settings(folder):
    """Environment variables for the kernel: it writes nothing outside `folder`."""
    names = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {name: str(folder / name) for name in names} | {"PYTHONPATH": paths}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the cells print and draw, by the cells' ids; and what a missing run prints."""
    folder = tmp_path_factory.mktemp("tour")
    text = play.write()
    corpus = folder / "corpus.txt"
    corpus.write_text(text[:20_000] + "".join(sorted(set(text))), encoding="utf-8")
    for name in MODELS:
        train(name, folder, corpus)
    (folder / "docs").mkdir()
    tour = read()
    missing = nbformat.v4.new_code_cell('gpt_jax.load("../runs/nothing")', id="missing")
    missing.metadata["tags"] = ["raises-exception"]  # So the kernel goes on.
    tour.cells.append(missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)  # It would keep the figures from the notebook.
        for name, value in kernel_settings(folder).items():
            patch.setenv(name, value)
        nbclient.execute(tour, cwd=folder / "docs", timeout=300, startup_timeout=300)
    return {cell.id: cell.outputs for cell in tour.cells if cell.cell_type == "code"}


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_tour_runs_with_models_of_any_size(outputs):
    found = [output for name in outputs if name != "missing" for output in outputs[name]]
    assert {output.output_type for output in found} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in found} == {"stdout"}


def test_each_figure_is_drawn_once(outputs):
    found = [(name, output) for name in outputs for output in outputs[name] if "data" in output]
    assert [name for name, _ in found] == list(FIGURES)
    assert all("image/png" in output.data for _, output in found)


def test_the_same_seed_gives_the_same_text(outputs):
    assert "same text again: True\n" in printed(outputs["seed"])
    assert "seed 2 gives the same text: False\n" in printed(outputs["seed"])


def test_the_parameters_are_counted(outputs):
    """2 blocks of width 32, 65 tokens, a context of 32: 12,608 a block, and the tables."""
    blocks, tables, head = 2 * 12_608, (65 + 32) * 32, 65 * 32
    last = printed(outputs["parameters"]).splitlines()[-1]
    assert last.split()[-1] == f"{blocks + tables + 2 * 32 + head:,}"


def test_a_missing_run_prints_one_sentence(outputs):
    [error] = outputs["missing"]
    [line] = error.traceback
    assert line.startswith("UserError: ") and "runs/nothing holds no run" in line


def test_the_committed_tour_is_clean():
    nbformat.validate(json.loads(TOUR.read_text(encoding="utf-8")))
    assert TOUR.stat().st_size < LARGEST
    tour = read()
    assert all(cell.metadata == {} for cell in tour.cells)  # No times.
    assert set(tour.metadata) == {"kernelspec", "language_info"}
    assert tour.metadata.kernelspec.name == "python3"
    for cell in tour.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", cell.id


def test_the_committed_tour_names_no_place_of_a_machine():
    """Paths of the machine that drew the figures say nothing to a reader."""
    tour = read()
    outputs = [json.dumps(cell.outputs) for cell in tour.cells if cell.cell_type == "code"]
    content = "".join([*outputs, *(cell.source for cell in tour.cells)])
    words = re.sub(r'"image/png": "[^"]*"', "", content)
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt|usr|var)\b", words) == []
