"""The record of a run: writing and reading it, checking it, and what may change on resume."""

import contextlib
import dataclasses
import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config.config import Config
from gpt_jax.errors import UserError
from gpt_jax.runs.record import (
    Record,
    existing_record,
    read_record,
    write_record,
)
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
    """Reads a config.json: the result is the record that was written, or a UserError.

    Without its digests, as in a run of an older version, it is a usable record or a UserError.
    """
    (folder / "config.json").write_bytes(content)
    with contextlib.suppress(UserError):
        assert existing_record(folder) == WRITTEN
    with contextlib.suppress(UserError, ValueError, AttributeError):
        content = json.loads(content)
        content.pop("digests", None)
        (folder / "config.json").write_text(json.dumps(content))
        record = existing_record(folder)
        check_same_corpus("ab", "a.txt", record, folder)
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


WRITTEN = Record(
    Config().with_values("model", matmul_dtype="float32"), "a.txt", "ab", "cpu", 2, ({"step": 1},)
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a record, and the text of the record."""
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, WRITTEN, TOKENIZER)
    assert existing_record(folder) == WRITTEN
    return folder, (folder / "config.json").read_text()


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


def change(path, old, new):
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))


EDITS = {
    "the activation": ("config.json", '"gelu"', '"gelu_tanh"'),
    "the split": ("config.json", '"val_fraction": 0.1', '"val_fraction": 0.2'),
    "a free setting": ("config.json", '"temperature": 0.8', '"temperature": 0.9'),
    "the text's hash": ("config.json", '"sha256": "abc', '"sha256": "abd'),
    "a new key": ("config.json", '"format": 1', '"format": 1, "a": 1'),
    "the record's digest": ("config.json", '"config.json": "', '"config.json": "0'),
    "the tokenizer's digest": ("config.json", '"tokenizer.json": "', '"tokenizer.json": "0'),
    "the tokenizer": ("tokenizer.json", '"abc"', '"abd"'),
}


@pytest.mark.parametrize(("name", "old", "new"), EDITS.values(), ids=EDITS)
def test_an_edited_record_is_refused_and_the_file_is_named(record, tmp_path, name, old, new):
    """By everyone: those who only read the run, and those who train it."""
    write_record(tmp_path, record, TOKENIZER)
    change(tmp_path / name, old, new)
    edited = "tokenizer.json" if "tokenizer.json" in old else name
    again = read_record(tmp_path)
    for use in (
        lambda: existing_record(tmp_path),
        lambda: check_same_run(again.config, again, tmp_path, ["train.steps"]),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value) == (
            f"{tmp_path / edited} is not what the run wrote: restore the file, or, if you changed "
            f"it on purpose, repeat the training command with --resume_allow={edited}"
        )


def test_another_layout_of_the_same_content_is_no_edit(record, tmp_path):
    write_record(tmp_path, record, TOKENIZER)
    for name in ("config.json", "tokenizer.json"):
        path = tmp_path / name
        items = reversed(json.loads(path.read_text()).items())
        path.write_text(json.dumps(dict(items), separators=(",", ":"), ensure_ascii=False))
    assert existing_record(tmp_path) == record


def test_an_edit_made_on_purpose_can_be_allowed_and_is_recorded(record, tmp_path):
    config = record.config.with_values("model", vocab_size=3)
    write_record(tmp_path, dataclasses.replace(record, config=config), TOKENIZER)
    change(tmp_path / "config.json", '"val_fraction": 0.1', '"val_fraction": 0.2')
    change(tmp_path / "tokenizer.json", '"abc"', '"abd"')
    edited = read_record(tmp_path)
    allowed = ["config.json", "tokenizer.json"]
    changes = check_same_run(edited.config, edited, tmp_path, allowed)
    record_changes(tmp_path, edited, changes, step=7)
    again = existing_record(tmp_path)
    assert again.config.data.val_fraction == 0.2
    assert load_tokenizer(tmp_path / "tokenizer.json").characters == "abd"
    assert [(change["step"], change["field"]) for change in again.changes] == [
        (7, "config.json"),
        (7, "tokenizer.json"),
    ]
    assert all(len(change["was"]) == len(change["is"]) == 64 for change in again.changes)


def test_a_record_of_an_older_version_is_read_and_gets_digests_when_the_run_resumes(
    record, tmp_path
):
    config = record.config.with_values("model", vocab_size=3)
    write_record(tmp_path, dataclasses.replace(record, config=config), TOKENIZER)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    digests = content.pop("digests")
    path.write_text(json.dumps(content))
    old = existing_record(tmp_path)
    record_changes(tmp_path, old, check_same_run(old.config, old, tmp_path), step=7)
    assert json.loads(path.read_text())["digests"] == digests
    before = path.stat().st_mtime_ns
    new = existing_record(tmp_path)
    record_changes(tmp_path, new, check_same_run(new.config, new, tmp_path), step=8)
    assert path.stat().st_mtime_ns == before  # There was nothing to record.


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


@pytest.fixture
def workdir(record, tmp_path):
    """The folder of the run of `record`."""
    write_record(tmp_path / "run", record, TOKENIZER)
    return tmp_path / "run"


def test_the_same_configuration_resumes(record, workdir):
    check_same_run(record.config, record, workdir)
    check_same_corpus(record.corpus_sha256, "a.txt", record, workdir)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("sample", {"prompt": "x", "temperature": 0.1}),
        ("mesh", {"cpu_devices": 8, "fsdp": 2}),
        ("train", {"microbatch_size": 1, "log_every": 3, "eval_every": 7, "checkpoint_every": 9}),
    ],
)
def test_settings_that_do_not_change_the_model_may_change(record, workdir, section, values):
    check_same_run(record.config.with_values(section, **values), record, workdir)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "n_layer", 3),
        ("model", "matmul_dtype", "bfloat16"),
        ("model", "remat", True),
        ("model", "attention", "cudnn"),
        ("data", "corpus", "tinyshakespeare"),
        ("data", "tokenizer", "byte"),
        ("data", "bpe_vocab_size", 300),
        ("data", "val_fraction", 0.2),
        ("optimizer", "learning_rate", 0.5),
        ("optimizer", "name", "adamw"),
        ("optimizer", "average_decay", 0.5),
        ("train", "steps", 11),
        ("train", "seed", 1),
        ("train", "batch_size", 16),
    ],
)
def test_a_setting_that_changes_the_model_is_refused(record, workdir, section, name, value):
    old = getattr(getattr(record.config, section), name)
    with pytest.raises(UserError) as caught:
        check_same_run(record.config.with_values(section, **{name: value}), record, workdir)
    assert f"({section}.{name} was {old!r} and is now {value!r})" in str(caught.value)


def test_the_error_lists_all_differences(record, workdir):
    changed = record.config.with_values("train", seed=5).with_values("model", dropout=0.3)
    with pytest.raises(UserError, match=r"model\.dropout was 0\.25.*; train\.seed was 0"):
        check_same_run(changed, record, workdir)


def test_a_changed_text_is_refused(record, tmp_path):
    with pytest.raises(UserError, match=r"abc123abc123\.\.\. is now ffff"):
        check_same_corpus("ffff", "a.txt", record, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.n_layer",
        "model.tie_embeddings",
        "model.scan_layers",
        "data.corpus",
        "data.tokenizer",
        "data.bpe_vocab_size",
        "optimizer.name",
        "optimizer.average_decay",
    ],
)
def test_settings_that_arrays_or_tokens_depend_on_cannot_be_allowed(record, tmp_path, name):
    with pytest.raises(UserError, match=rf"--resume_allow={name} is not possible"):
        check_same_run(record.config, record, tmp_path, [name])


def test_an_unknown_field_cannot_be_allowed(record, tmp_path):
    with pytest.raises(UserError, match=r"did you mean train\.steps\?"):
        check_same_run(record.config, record, tmp_path, ["steps"])


def test_only_allowed_changes_pass(record, workdir):
    config = record.config.with_values("train", steps=20, seed=5)
    check_same_run(record.config.with_values("model", remat=True), record, workdir, ["model.remat"])
    with pytest.raises(UserError, match=r"configuration \(train\.seed was 0 and is now 5\)"):
        check_same_run(config, record, workdir, ["train.steps"])
    changes = check_same_run(config, record, workdir, ["train.steps", "train.seed"])
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


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/x/caf\udce9/run", r"the path '/x/caf\\udce9/run' is not UTF-8"),
        ("/x/a\\b/run", r"give \\ in a path another meaning"),
        ("/x/gs:/run", "give gs:/ in"),
        ("/x/gs:", "give gs:/ in"),
        ("/s3/run", "give /s3/ in"),
    ],
)
def test_a_name_in_which_checkpoints_are_lost_is_refused(path, words):
    with pytest.raises(UserError, match=words):
        read_record(Path(path))
