"""What holds for any settings, any arguments of sampling and any record of a run."""

import contextlib
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt_jax.config import (
    SECTIONS,
    Config,
    SampleConfig,
    UserError,
    default_config,
    from_config_dict,
)
from gpt_jax.run_folder import Record, read_record, write_record
from gpt_jax.sampling import sample_token
from gpt_jax.tokenizer import CharTokenizer

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
)
FIELDS = [(name, field) for name, cls in SECTIONS.items() for field in dataclasses.fields(cls)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def near_values(draw, field):
    """Values of the field's own type, often in range."""
    words = field.metadata["rule"].text.removeprefix("one of ").split(", ")
    return draw(
        {
            bool: st.booleans(),
            int: st.integers(-2, 600),
            float: st.floats(-0.5, 2),
            str: st.sampled_from([*words, "x.txt", ""]),
        }[type(field.default)]
    )


@st.composite
def configs(draw):
    """A configuration with up to six fields changed, of those that can be."""
    values = default_config().to_dict()
    for section, field in draw(st.lists(st.sampled_from(FIELDS), max_size=6)):
        values[section][field.name] = draw(near_values(field))
    try:
        return Config.from_dict(values)
    except UserError:
        assume(False)


@given(st.sampled_from(FIELDS), st.data())
def test_an_override_is_accepted_and_kept_or_refused_by_its_name(of, data):
    section, field = of
    value = data.draw(st.one_of(ANYTHING, near_values(field)))
    try:
        config = Config.from_dict({section: {field.name: value}})
    except UserError as error:
        assert f"{section}.{field.name}" in str(error)
        return
    kept = getattr(getattr(config, section), field.name)
    assert type(kept) is type(field.default)
    assert kept == value


@given(configs())
def test_a_configuration_survives_configdict_and_json(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    settings_of_edge = default_config()
    settings_of_edge.update(config.to_dict())
    assert from_config_dict(settings_of_edge) == config


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True, width=32),
    st.floats(0, 5),
    st.integers(0, 15),
    st.floats(0, 1, exclude_min=True),
)
@settings(max_examples=60)
def test_any_legal_arguments_draw_a_token_that_they_allow(logits, u, temperature, top_k, top_p):
    SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = np.array(logits, np.float32)
    drawn = int(sample_token(jnp.asarray(logits), u, temperature, top_k, top_p))
    better = int((logits > logits[drawn]).sum())
    assert 0 <= drawn < len(logits)
    assert better < (top_k or len(logits))
    if temperature == 0:
        assert better == 0
    elif temperature > 0.01:
        scaled = np.float64(logits) / temperature
        chances = np.exp(scaled - scaled.max())
        before = chances[logits > logits[drawn]].sum() / chances.sum()
        assert before < top_p + 1e-4 or better == 0


@given(
    st.sampled_from(["temperature", "top_k", "top_p", "max_new_tokens"]),
    st.floats(max_value=-1e-9) | st.sampled_from([np.nan, np.inf, "1", None, True]),
)
def test_illegal_arguments_of_sampling_are_refused_by_their_name(name, value):
    with pytest.raises(UserError, match=f"sample.{name}"):
        SampleConfig(**{name: value})


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(configs(), st.text("abcdef\n東", min_size=1), HEX, st.integers(1, 64))
@settings(max_examples=30)
def test_a_record_comes_back_as_it_was_written(tmp_path_factory, config, text, sha256, devices):
    folder = tmp_path_factory.mktemp("run")
    config = config.with_values("model", matmul_dtype="float32")
    change = {"step": 3, "field": "train.steps", "was": 1, "is": 2}
    record = Record(config, "a b.txt", sha256, "cpu", devices, (change,))
    write_record(folder, record, CharTokenizer(text))
    assert read_record(folder) == record


@given(JSON)
def test_a_record_of_anything_is_refused_in_a_sentence(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_record(folder)


@given(st.data())
def test_a_record_with_a_part_replaced_is_refused_or_a_record(tmp_path_factory, data):
    """Whatever stands in it instead: never another error than ours."""
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, Record(Config(), "a.txt", "0" * 64, "cpu", 1), CharTokenizer("ab"))
    content = json.loads((folder / "config.json").read_text())
    part = content
    while isinstance(part, dict) and part:
        key = data.draw(st.sampled_from(sorted(part)))
        if not isinstance(part[key], dict) or data.draw(st.booleans()):
            part[key] = data.draw(JSON)
            break
        part = part[key]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with contextlib.suppress(UserError):
        assert isinstance(read_record(folder), Record)
