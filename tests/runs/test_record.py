"""The record of a run: writing and reading it, checking it, and what may change on resume."""

import contextlib
import dataclasses
import json

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config.config import Config
from gpt_jax.errors import UserError
from gpt_jax.runs.record import Record, read_record, write_record
from gpt_jax.runs.resume import (
    check_same_corpus,
    check_same_run,
    record_changes,
    with_recorded_choices,
)
from gpt_jax.text.tokenizer import CharTokenizer
from gpt_jax.text.tokenizer_file import load_tokenizer
from gpt_jax.training.log import read_metrics

TOKENIZER = CharTokenizer("abc")


@pytest.fixture
def record(small):
    config = small.with_values("data", corpus="builtin")
    return Record(config, "tinyshakespeare", "abc123" * 10, "cpu", 2)


def test_a_record_is_read_as_it_was_written(record, tmp_path):
    workdir = tmp_path / "new" / "run with space"
    assert read_record(workdir) is None
    write_record(workdir, record, TOKENIZER)
    assert read_record(workdir) == record
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "tokenizer.json"]
    assert load_tokenizer(workdir / "tokenizer.json").to_dict() == TOKENIZER.to_dict()


def test_checkpoints_without_a_record_are_an_error(tmp_path):
    (tmp_path / "checkpoints" / "300").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.json"):
        read_record(tmp_path)


def test_the_record_holds_format_corpus_devices_and_versions(record, tmp_path):
    write_record(tmp_path, record, TOKENIZER)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["format"] == 1
    assert content["corpus"] == {"requested": "tinyshakespeare", "sha256": "abc123" * 10}
    assert content["devices"] == {"platform": "cpu", "count": 2}
    assert content["versions"]["jax"].count(".") == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 1, "corpus": 3, "devices": {}}',
        '{"format": 1, "config": {"model": {"n_layer": -1}}}',
    ],
)
def test_the_error_names_a_damaged_record(damage, tmp_path):
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(UserError, match=r"config\.json"):
        read_record(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def read_or_refuse(folder, content):
    """Reads a config.json: the result is a usable record or a UserError."""
    (folder / "config.json").write_bytes(content)
    with contextlib.suppress(UserError):
        record = read_record(folder)
        check_same_corpus("ab", record, folder)
        check_same_run(record.config.with_values("train", seed=7), record, folder)


def places(content):
    """Every dictionary in `content` with each of its keys."""
    for key, value in content.items():
        yield content, key
        if isinstance(value, dict):
            yield from places(value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("corpus", "sha256", 3), ("corpus", "requested", None), ("corpus", "sha256", ["ab"])),
        *(("devices", "count", "2"), ("devices", "platform", {})),
    ],
)
def test_a_value_of_another_type_is_refused(record, tmp_path, part, name, value):
    write_record(tmp_path, record, TOKENIZER)
    content = json.loads((tmp_path / "config.json").read_text())
    content[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config\.json cannot be read \({part}\.{name} = "):
        read_record(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a record, and the text of the record."""
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, Record(Config(), "a.txt", "ab", "cpu", 2), TOKENIZER)
    return folder, (folder / "config.json").read_text().replace('"auto"', '"float32"')


@hypothesis.settings(max_examples=100)
@given(data=st.data())
def test_any_changed_record_is_read_or_refused(written, data):
    folder, text = written
    content = json.loads(text)
    place, key = data.draw(st.sampled_from(list(places(content))))
    place[key] = data.draw(JSON)
    read_or_refuse(folder, json.dumps(content).encode())
    cut, byte = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 255))
    read_or_refuse(folder, text[:cut].encode())
    read_or_refuse(folder, text[:cut].encode() + bytes([byte]) + text[cut + 1 :].encode())


@pytest.mark.parametrize("content", [b"[" * 10**5, b"9" * 5000, b"\xff", b"NaN", b'"\\ud800"'])
def test_odd_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_record(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@hypothesis.settings(max_examples=25)
@given(
    prompt=st.text(),
    requested=st.text(),
    rate=st.floats(1e-3, 1e300),
    seed=st.integers(0, 2**31 - 1),
    was=JSON,
)
def test_any_record_is_read_as_it_was_written(tmp_path_factory, prompt, requested, rate, seed, was):
    config = Config().with_values("model", matmul_dtype="float32")
    config = config.with_values("sample", prompt=prompt).with_values("train", seed=seed)
    config = config.with_values("optimizer", learning_rate=rate)
    changes = ({"step": 3, "field": "train.seed", "was": was, "is": seed},)
    record = Record(config, requested, "ab", "cpu", 2, changes)
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, record, TOKENIZER)
    assert repr(read_record(folder)) == repr(record)  # NaN is not itself.


def test_a_record_with_a_newer_format_is_refused(record, tmp_path):
    write_record(tmp_path, record, TOKENIZER)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="has format 2, but this version reads 1"):
        read_record(tmp_path)


def test_the_error_names_a_folder_that_cannot_be_created(record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written"):
        write_record(tmp_path / "file" / "run", record, TOKENIZER)


def test_recorded_choices_are_kept(record):
    requested = record.config.with_values("model", vocab_size=0, matmul_dtype="auto")
    requested = requested.with_values("data", corpus="tinyshakespeare")
    requested = requested.with_values("mesh", cpu_devices=0)
    assert with_recorded_choices(requested, record) == record.config


@pytest.mark.parametrize("spelling", ["./my.txt", "my.txt", "sub/../my.txt"])
def test_other_spellings_of_the_corpus_path_are_the_same_corpus(
    record, tmp_path, monkeypatch, spelling
):
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "my.txt")
    record = Record(record.config.with_values("data", corpus=path), path, "ab", "cpu", 1)
    requested = record.config.with_values("data", corpus=spelling)
    assert with_recorded_choices(requested, record) == record.config


def test_an_explicit_value_overrides_the_recorded_choice(record):
    requested = record.config.with_values("mesh", cpu_devices=2)
    assert with_recorded_choices(requested, record).mesh.cpu_devices == 2


def test_the_same_configuration_resumes(record, tmp_path):
    check_same_run(record.config, record, tmp_path)
    check_same_corpus(record.corpus_sha256, record, tmp_path)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("sample", {"prompt": "x", "temperature": 0.1}),
        ("mesh", {"cpu_devices": 8, "fsdp": 2}),
        ("train", {"microbatch_size": 1, "log_every": 3, "eval_every": 7, "checkpoint_every": 9}),
    ],
)
def test_settings_that_do_not_change_the_model_may_change(record, tmp_path, section, values):
    check_same_run(record.config.with_values(section, **values), record, tmp_path)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "n_layer", 3),
        ("model", "matmul_dtype", "bfloat16"),
        ("model", "remat", True),
        ("model", "attention", "cudnn"),
        ("data", "corpus", "other.txt"),
        ("data", "val_fraction", 0.2),
        ("optimizer", "learning_rate", 0.5),
        ("train", "steps", 11),
        ("train", "seed", 1),
        ("train", "batch_size", 16),
    ],
)
def test_a_setting_that_changes_the_model_is_refused(record, tmp_path, section, name, value):
    old = getattr(getattr(record.config, section), name)
    with pytest.raises(UserError) as caught:
        check_same_run(record.config.with_values(section, **{name: value}), record, tmp_path)
    assert f"({section}.{name} was {old!r} and is now {value!r})" in str(caught.value)


def test_the_error_lists_all_differences(record, tmp_path):
    changed = record.config.with_values("train", seed=5).with_values("model", dropout=0.3)
    with pytest.raises(UserError, match=r"model\.dropout was 0\.25.*; train\.seed was 0"):
        check_same_run(changed, record, tmp_path)


def test_a_changed_text_is_refused(record, tmp_path):
    with pytest.raises(UserError, match=r"abc123abc123\.\.\. is now ffff"):
        check_same_corpus("ffff", record, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.n_layer",
        "model.tie_embeddings",
        "model.scan_layers",
        "data.corpus",
        "data.tokenizer",
        "data.bpe_vocab_size",
    ],
)
def test_settings_that_arrays_or_tokens_depend_on_cannot_be_allowed(record, tmp_path, name):
    with pytest.raises(UserError, match=rf"--resume_allow={name} is not possible"):
        check_same_run(record.config, record, tmp_path, [name])


def test_an_unknown_field_cannot_be_allowed(record, tmp_path):
    with pytest.raises(UserError, match=r"did you mean train\.steps\?"):
        check_same_run(record.config, record, tmp_path, ["steps"])


def test_only_allowed_changes_pass(record, tmp_path):
    config = record.config.with_values("train", steps=20, seed=5)
    check_same_run(
        record.config.with_values("model", remat=True), record, tmp_path, ["model.remat"]
    )
    with pytest.raises(UserError, match=r"configuration \(train\.seed was 0 and is now 5\)"):
        check_same_run(config, record, tmp_path, ["train.steps"])
    changes = check_same_run(config, record, tmp_path, ["train.steps", "train.seed"])
    assert {change["field"]: change["is"] for change in changes} == {
        "train.steps": 20,
        "train.seed": 5,
    }


def test_changes_are_written_into_the_record(record, tmp_path):
    write_record(tmp_path, record, TOKENIZER)
    config = record.config.with_values("model", vocab_size=TOKENIZER.vocab_size)
    record = dataclasses.replace(record, config=config)
    new = config.with_values("train", steps=20).with_values("sample", top_k=3)
    changes = check_same_run(new, record, tmp_path, ["train.steps"])
    record_changes(tmp_path, record, changes, step=7)
    again = read_record(tmp_path)
    assert again.config == config.with_values("train", steps=20)
    assert again.changes == ({"step": 7, "field": "train.steps", "was": 10, "is": 20},)
