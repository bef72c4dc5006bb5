"""benchmark.py: one JSON object a line, with every figure. How fast it was is nobody's business."""

import json
import re

import benchmark
import pytest

FIGURES = {
    *("mode", "ms_per_step", "tokens_per_s", "compile_s", "peak_rss_mb", "dropout", "matmul_dtype"),
    *("gflops", "gemm_gflops", "fraction_of_ceiling", "devices", "platform", "config"),
}
SMALL = [
    "--config.model.n_layer=1",
    "--config.model.n_embd=16",
    "--config.model.block_size=16",
    "--config.mesh.cpu_devices=2",
]


def run(capsys, *flags):
    status = benchmark.main(["scripts/benchmark.py", *flags])
    return status, *capsys.readouterr()


def test_training_figures(capsys):
    status, out, _ = run(capsys, "--mode=train", *SMALL, "--batch_size=4", "--steps=5", "--json")
    figures = json.loads(out)
    assert status == 0
    assert set(figures) == FIGURES
    assert (figures["mode"], figures["devices"], figures["dropout"]) == ("train", 2, 0.1)
    assert figures["tokens_per_s"] == pytest.approx(4 * 16 / figures["ms_per_step"] * 1e3, rel=0.01)
    multiplying = 12 * 16**2 + 16 * 65
    flops = 6 * multiplying + 12 * 16 * 16
    # Biases and LayerNorms, 192 of 4,304 numbers, are counted, too.
    assert figures["gflops"] == pytest.approx(figures["tokens_per_s"] * flops / 1e9, rel=0.06)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_sampling_figures(capsys, num_samples):
    flags = [*SMALL, f"--num_samples={num_samples}", "--tokens=20", "--json"]
    status, out, _ = run(capsys, "--mode=sample", *flags)
    figures = json.loads(out)
    assert status == 0
    assert set(figures) == FIGURES | {"num_samples"}
    assert figures["devices"] == (1 if num_samples == 1 else 2)
    assert figures["matmul_dtype"] == "float32"
    expected = num_samples / figures["ms_per_step"] * 1e3
    assert figures["tokens_per_s"] == pytest.approx(expected, rel=0.01)


def test_starting_is_timed_to_the_first_step_and_to_the_first_character(capsys, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(
        "from gpt_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.n_layer, config.model.n_embd, config.model.block_size = 1, 16, 16\n"
        "    return config\n"
    )
    status, out, err = run(capsys, "--mode=start", f"--config={config}", "--json")
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(line["until"], line["start"]) for line in found] == [
        *(("first step", 1), ("first step", 2)),
        *(("first character", 1), ("first character", 2)),
    ]
    assert all(line["seconds"] > 0 for line in found)


def test_a_person_gets_lines(capsys):
    _, out, _ = run(capsys, *SMALL, "--steps=1")
    assert re.search(r"^  ms_per_step +\d", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--mode=fly", "mode=fly"),
        ("--steps=0", "steps = 0"),
        ("--num_samples=0", "num_samples = 0"),
        ("--batch_size=-1", "batch_size = -1"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(capsys, flag, words):
    status, out, err = run(capsys, flag)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert words in err
