"""Whatever JAX's own settings are, a run gives the same numbers, and the settings stay as they are.

A user changes them by variables of the environment, or in a notebook by `jax.config`.
"""

import contextlib
import io
import json
from pathlib import Path

import jax
import pytest

import gpt_jax
from gpt_jax.devices.jax_settings import PINNED, pinned_settings
from gpt_jax.errors import UserError
from gpt_jax.training import evaluation, loop

# Settings of jax.config, each with a value that would change numbers or end in an error.
OTHER_VALUES = {
    "jax_threefry_partitionable": False,
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_disable_jit": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_transfer_guard": "disallow",
}


@contextlib.contextmanager
def jax_settings(**values):
    """JAX's global settings, as a notebook sets them."""
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
        assert {name: getattr(jax.config, name) for name in values} == values
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def train(config, folder):
    """Trains, and returns the numbers of the log: losses and norms."""
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(config, folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    return [(line["train/loss"], line["grad_norm"], line.get("val/loss")) for line in log]


def results(config, folder):
    """All that training, evaluating, sampling and asking a model give."""
    trained = train(config, folder)
    model = gpt_jax.load(folder)
    return {
        "training": trained,
        "sample": (folder / "samples" / "2.txt").read_text(encoding="utf-8"),
        "evaluation": evaluation.evaluate(folder, "latest").loss,
        "texts": model.generate_batch("The ", 2, max_new_tokens=20, top_p=0.9),
        "loss": model.loss("The night is long"),
        "next": model.next_token("The "),
    }


@pytest.fixture
def config(small, text_file):
    """A run of two steps with dropout, Muon and an average."""
    config = small.with_values("data", corpus=str(text_file)).with_values("model", vocab_size=0)
    config = config.with_values("train", steps=2, log_every=1)
    config = config.with_values("optimizer", name="muon", average_decay=0.5)
    return config.with_values("sample", prompt="The ", max_new_tokens=20)


@pytest.mark.parametrize("name", [name for name in OTHER_VALUES if name != "jax_transfer_guard"])
def test_a_pinned_setting_has_its_default(name):
    """Quicker than the next test, and names the setting."""
    default = getattr(jax.config, name)
    with jax_settings(**{name: OTHER_VALUES[name]}), pinned_settings():
        assert getattr(jax.config, name) == default


def test_no_setting_of_jax_changes_a_result(config, tmp_path):
    assert len(OTHER_VALUES) == len(PINNED)
    expected = results(config, tmp_path / "expected")
    with jax_settings(**OTHER_VALUES):
        assert results(config, tmp_path / "run") == expected


def test_the_precision_of_products_is_jax_s_default():
    """It changes no number on a CPU, so the program is compared."""
    product, x = jax.jit(jax.numpy.dot), jax.numpy.ones((2, 2))
    expected = product.lower(x, x).as_text()
    with jax_settings(jax_default_matmul_precision="highest"):
        assert product.lower(x, x).as_text() != expected
        with pinned_settings():
            assert product.lower(x, x).as_text() == expected


def test_a_step_that_is_not_finite_is_skipped_whatever_jax_checks(config, tmp_path):
    config = config.with_values("optimizer", name="adam", learning_rate=1e38)
    config = config.with_values("train", steps=4, max_skipped=2)
    with (
        jax_settings(jax_debug_nans=True, jax_debug_infs=True),
        pytest.raises(UserError, match="2 steps in a row"),
    ):
        train(config, tmp_path / "run")


def test_the_settings_do_not_hold_between_the_pieces_of_a_text(trained: Path):
    with jax_settings(jax_enable_x64=True):
        for _ in gpt_jax.load(trained).stream("The ", piece=4):
            assert jax.numpy.zeros(1).dtype == "float64"


def test_an_offset_of_all_seeds_is_refused(trained: Path):
    with jax_settings(jax_random_seed_offset=3):
        for use in (lambda: gpt_jax.load(trained), lambda: evaluation.evaluate(trained, "best")):
            with pytest.raises(UserError, match=r"JAX_RANDOM_SEED_OFFSET=3 .*: unset the variable"):
                use()
