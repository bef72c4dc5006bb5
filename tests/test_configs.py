"""Every recipe: its documentation, its number of parameters, and two real steps at a small size."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from support import ROOT

from gpt_jax.config.config import Config, from_config_dict
from gpt_jax.config.sections import GPTConfig
from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.device_count import start_devices
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.model.gpt import GPT
from gpt_jax.training.state import abstract_state, init_state
from gpt_jax.training.step import jit_train_step

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_gives_the_command(name):
    assert f"python scripts/train.py --config=configs/{name}.py" in load(name).__doc__


def test_tiny_is_the_default_configuration():
    assert from_config_dict(load("tiny").get_config()) == Config()


def count_parameters(config: GPTConfig) -> int:
    model, tokens = GPT(config), jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny", 824_832), ("small", 4_833_280), ("baby", 10_745_088), ("speedrun", 807_552)],
)
def test_number_of_parameters(name, expected):
    config = from_config_dict(load(name).get_config()).model
    config = dataclasses.replace(config, vocab_size=65, matmul_dtype="float32")
    assert count_parameters(config) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("small", 124_439_808),
        ("medium", 354_823_168),
        ("large", 774_030_080),
        ("xl", 1_557_611_200),
    ],
)
def test_gpt2_sizes_have_the_published_numbers_of_parameters(size, expected):
    """The numbers are those of OpenAI's weights in Hugging Face's folders."""
    config = from_config_dict(load("gpt2").get_config(size)).model
    config = dataclasses.replace(config, matmul_dtype="float32", scan_layers=True)  # It is faster.
    assert count_parameters(config) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_at_a_small_size_change_every_parameter(name):
    config = from_config_dict(load(name).get_config())
    n_head = config.model.n_head
    config = config.with_values(
        "model", n_layer=1, n_embd=4 * n_head, block_size=8, vocab_size=65, matmul_dtype="float32"
    )
    config = config.with_values("train", batch_size=4).with_values("mesh", cpu_devices=1)
    mesh = make_mesh(config.mesh, start_devices(config.mesh, 4))
    layout = make_batch_layout(config, mesh)
    abstract = abstract_state(config, mesh)
    state = init_state(config, abstract)
    before = jax.device_get(state.params)
    windows = jax.random.randint(jax.random.key(0), (4, 9), 0, 65)
    step = jit_train_step(config, abstract, layout)
    for _ in range(
        2
    ):  # If output projections start at 0, the first step changes nothing before them.
        state, metrics = step(state, layout.place(jax.device_get(windows)))
    assert jnp.isfinite(metrics["loss"])
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), before, state.params)
    assert all(jax.tree.leaves(changed))
