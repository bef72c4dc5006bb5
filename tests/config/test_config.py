"""Settings: ranges, errors, round trips through ConfigDict and JSON; the code reads every one."""

import ast
import dataclasses
import json
import math
import re

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from support import ROOT

from gpt_jax.config.config import SECTIONS, Config, default_config, from_config_dict
from gpt_jax.errors import UserError


def test_defaults_survive_configdict_and_json():
    assert from_config_dict(default_config()) == Config()
    assert Config.from_dict(json.loads(json.dumps(Config().to_dict()))) == Config()


def test_missing_settings_have_their_defaults():
    config = Config.from_dict({"model": {"n_layer": 6}})
    assert config == Config().with_values("model", n_layer=6)


def test_an_integer_becomes_a_float():
    config = Config().with_values("model", dropout=0)
    assert type(config.model.dropout) is float


def test_configdict_is_locked():
    with pytest.raises(AttributeError, match="n_layers"):
        default_config().model.n_layers = 3


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "vocab_size", -1),
        ("model", "block_size", 0),
        ("model", "n_layer", -1),
        ("model", "n_layer", 257),
        ("model", "n_head", 0),
        ("model", "n_embd", 0),
        ("model", "dropout", 1.0),
        ("model", "dropout", -0.1),
        ("model", "dropout", math.nan),
        ("model", "matmul_dtype", "float16"),
        ("model", "bias", 1),
        ("model", "n_layer", 2.0),
        ("model", "n_layer", True),
        ("data", "corpus", ""),
        ("data", "tokenizer", ""),
        ("data", "bpe_vocab_size", 256),
        ("data", "val_fraction", 0.0),
        ("data", "val_fraction", 1.0),
        ("optimizer", "name", "sgd"),
        ("optimizer", "learning_rate", 0.0),
        ("optimizer", "learning_rate", math.inf),
        ("optimizer", "learning_rate", 10**400),
        ("optimizer", "warmup_steps", -1),
        ("optimizer", "schedule", "exponential"),
        ("optimizer", "decay_fraction", 0.0),
        ("optimizer", "matrix_learning_rate", 0.0),
        ("optimizer", "matrix_momentum", 1.0),
        ("optimizer", "average_decay", 1.0),
        ("model", "n_inner", -1),
        ("model", "n_kv_head", -1),
        ("model", "position", "alibi"),
        ("model", "norm", "batch"),
        ("model", "activation", "relu"),
        ("model", "logit_softcap", -1.0),
        ("optimizer", "b1", 1.0),
        ("optimizer", "b2", -0.5),
        ("optimizer", "weight_decay", -1.0),
        ("optimizer", "grad_clip", -1.0),
        ("train", "seed", -1),
        ("train", "seed", 2**31),
        ("train", "steps", 2**31),
        ("train", "batch_size", 10**30),
        ("model", "n_inner", 2**31),
        ("model", "n_layer", 257),
        ("data", "bpe_vocab_size", 2**24 + 1),
        ("sample", "max_new_tokens", 2**40),
        ("mesh", "cpu_devices", 1025),
        ("train", "steps", -1),
        ("train", "batch_size", 0),
        ("train", "microbatch_size", -1),
        ("train", "log_every", 0),
        ("train", "eval_every", 0),
        ("train", "checkpoint_every", 0),
        ("train", "sample_tokens", -1),
        ("train", "patience", -1),
        ("train", "max_minutes", -0.5),
        ("train", "max_minutes", math.inf),
        ("sample", "max_new_tokens", -1),
        ("sample", "temperature", -0.1),
        ("sample", "temperature", 1e300),
        ("sample", "top_k", -1),
        ("sample", "top_p", 0.0),
        ("sample", "top_p", 1.1),
        ("mesh", "cpu_devices", -1),
        ("mesh", "data", 0),
        ("mesh", "fsdp", 0),
        ("mesh", "tensor", -1),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_the_setting(section, name, value):
    with pytest.raises(UserError, match=re.escape(f"{section}.{name} = {value!r}")):
        Config().with_values(section, **{name: value})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"n_embd": 130}, r"model\.n_embd = 130 .* model\.n_head = 4"),
        ("model", {"n_head": 3}, "n_head = 3: set model.n_head to 2 or 4, or change the width$"),
        ("model", {"n_head": 200}, "n_head = 200: set model.n_head to 128, or change the width$"),
        ("model", {"n_embd": 2**31 - 1}, "= 4: set model.n_head to 1 or 2147483647, or change"),
        ("model", {"n_kv_head": 3}, "= 4 .*n_kv_head = 3: set model.n_kv_head to 2 or 4$"),
        ("model", {"n_kv_head": 8}, "model.n_head = 4 .* model.n_kv_head = 8: set .* to 4$"),
        ("model", {"position": "rotary", "n_embd": 12}, "a head has 3 .* choose an even width"),
        ("optimizer", {"min_learning_rate": 1.0}, "optimizer.min_learning_rate = 1.0"),
        ("optimizer", {"weight_decay": 0.1}, "optimizer.name=adamw"),
        ("optimizer", {"warmup_steps": 3001}, r"optimizer\.warmup_steps = 3001 .* train\.steps"),
        ("model", {"bias": 1}, r"model\.bias = 1 is not of type bool: give a value of this type$"),
    ],
)
def test_contradicting_settings_are_refused(section, values, message):
    with pytest.raises(UserError, match=message):
        Config().with_values(section, **values)


@pytest.mark.parametrize(
    ("steps", "warmup_steps"), [(0, 100), (1, 1), (60, 60), (99, 99), (100, 100), (101, 100)]
)
def test_a_warmup_nobody_asked_for_is_shortened_to_the_run(steps, warmup_steps):
    config = Config.from_dict({"train": {"steps": steps}})
    assert config.optimizer.warmup_steps == warmup_steps
    assert config.is_warmup_shortened == (warmup_steps < 100)
    assert Config.from_dict(config.to_dict()) == config


def test_a_warmup_somebody_asked_for_is_not_shortened():
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps = 70 .* train\.steps = 60"):
        Config.from_dict({"train": {"steps": 60}, "optimizer": {"warmup_steps": 70}})


FIELDS = [(name, field.name) for name, cls in SECTIONS.items() for field in dataclasses.fields(cls)]
VALUES = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0.0, 0.5, 1.0, -1e300, 1e-300, math.nan, math.inf, 10**400, 2**63]),
    st.floats(),
    st.booleans(),
    st.sampled_from(["adamw", "constant", "byte", "bfloat16", "auto", "", "\ud800"]),
    st.none() | st.lists(st.integers(), max_size=2) | st.text(max_size=5),
)


@hypothesis.settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_any_value_is_refused_in_one_line_or_survives_configdict_and_json(values):
    given_config = default_config().unlock()
    for (section, name), value in values.items():
        given_config[section] = ConfigDict({**given_config[section].to_dict(), name: value})
    try:
        config = from_config_dict(given_config)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert from_config_dict(ConfigDict(config.to_dict())) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for (section, name), value in values.items():
        kept = getattr(getattr(config, section), name)
        assert kept == value or (name == "warmup_steps" and config.is_warmup_shortened)


def test_the_error_for_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"config\.model\.n_layers .*: did you mean n_layer"):
        Config.from_dict({"model": {"n_layers": 3}})
    with pytest.raises(UserError, match=r"config\.modle .*: did you mean model"):
        Config.from_dict({"modle": {"n_layer": 1}})


def test_a_config_without_sections_is_refused():
    for values in ({"lr": 0.1}, {"lr": {}}):
        with pytest.raises(UserError, match=r"config\.lr does not exist"):
            Config.from_dict(values)
    with pytest.raises(UserError, match=r"config\.model = 3 is not a group of settings"):
        Config.from_dict({"model": 3})


def test_every_setting_has_a_default_a_rule_and_a_meaning():
    for section in SECTIONS.values():
        for field in dataclasses.fields(section):
            assert field.metadata["rule"].holds(field.default), field.name
            assert field.metadata["meaning"]
            assert type(field.default) in (int, float, bool, str)


def test_the_code_reads_every_setting():
    """As `config.model.n_layer` or `model.n_layer`, or as `c.n_layer` where c, config or options is
    the section. In the package config only properties count, which say what a value means."""
    read = set()
    for path in (ROOT / "gpt_jax").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = properties_of(tree) if path.parent.name == "config" else [tree]
        nodes = [node for part in parts for node in ast.walk(part)]
        read |= {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    for section in SECTIONS.values():
        for field in dataclasses.fields(section):
            name = rf"((.*\.)?{section.SECTION}|c|(self\.)?config|options|self)\.{field.name}"
            assert any(re.fullmatch(name, text) for text in read), f"no code reads {name}"


def properties_of(tree):
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(ast.unparse(d) == "property" for d in f.decorator_list)]
