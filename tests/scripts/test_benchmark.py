"""benchmark.py: one JSON object a line, with every figure. No test depends on the speed."""

import json
import re

import benchmark
import pytest

from gpt_jax.training import benchmark as training_benchmark

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


@pytest.fixture
def fixed_times(monkeypatch):
    """Runs everything but reports 0.2 ms for each call, so figures do not depend on the machine."""
    timed = training_benchmark._timed

    def fixed(one, count):
        _, seconds = timed(one, count)
        return 1.5, [2e-4] * len(seconds)

    monkeypatch.setattr(training_benchmark, "_timed", fixed)


def run(capsys, *flags):
    status = benchmark.main(["scripts/benchmark.py", *flags])
    return status, *capsys.readouterr()


def test_training_figures(capsys, fixed_times):
    status, out, _ = run(capsys, "--mode=train", *SMALL, "--batch_size=4", "--steps=5", "--json")
    figures = json.loads(out)
    assert status == 0
    assert set(figures) == FIGURES
    assert (figures["mode"], figures["devices"], figures["dropout"]) == ("train", 2, 0.1)
    assert (figures["ms_per_step"], figures["compile_s"]) == (0.2, 1.5)
    assert figures["tokens_per_s"] == 4 * 16 / 2e-4
    in_products = 12 * 16**2 + 16 * 65
    flops = 6 * in_products + 12 * 16 * 16
    # The script counts the parameters of biases and LayerNorms, too: 192 of 4,304.
    assert figures["gflops"] == pytest.approx(figures["tokens_per_s"] * flops / 1e9, rel=0.06)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_sampling_figures(capsys, fixed_times, num_samples):
    flags = [*SMALL, f"--num_samples={num_samples}", "--tokens=20", "--prompt_tokens=8"]
    flags += ["--config.sample.temperature=0", "--json"]
    status, out, _ = run(capsys, "--mode=sample", *flags)
    figures = json.loads(out)
    assert status == 0
    assert set(figures) == FIGURES | {"num_samples", "prompt_tokens", "temperature"}
    assert (figures["prompt_tokens"], figures["temperature"]) == (8, 0.0)
    assert figures["devices"] == (1 if num_samples == 1 else 2)
    assert figures["matmul_dtype"] == "float32"
    assert figures["ms_per_step"] == 2e-4 / 20 * 1e3
    assert figures["tokens_per_s"] == round(num_samples / (2e-4 / 20))


def test_start_mode_times_the_first_step_and_the_first_character(capsys, tmp_path):
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


def test_without_json_each_figure_has_a_line(capsys):
    _, out, _ = run(capsys, *SMALL, "--steps=1")
    assert re.search(r"^  ms_per_step +\d", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--mode=fly", "mode=fly"),
        ("--steps=0", "steps = 0"),
        ("--num_samples=0", "num_samples = 0"),
        ("--prompt_tokens=0", "prompt_tokens = 0"),
        ("--batch_size=-1", "batch_size = -1"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(capsys, flag, words):
    status, out, err = run(capsys, flag)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert words in err
