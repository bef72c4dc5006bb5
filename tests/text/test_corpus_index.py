"""An index is read as it was written, or refused in one sentence."""

import dataclasses
import json

import pytest

from gpt_jax.errors import UserError
from gpt_jax.text.corpus_index import Index, read_index, write_index

SOURCES = ({"path": "/a.txt", "bytes": 12, "sha256": "ab"},)
SHARDS = ({"tokens": 6, "text_bytes": 12, "sha256": "cd"},)
INDEX = Index({"tokenizer": "char", "corpus": "/a.txt"}, SOURCES, "ef", "uint8", SHARDS, "01")


@pytest.fixture
def path(tmp_path):
    write_index(tmp_path / "index.json", INDEX)
    return tmp_path / "index.json"


def test_an_index_is_read_as_it_was_written(path):
    assert read_index(path) == INDEX
    assert read_index(path.with_name("other.json")) is None


CONTENT = {"format": 1, **dataclasses.asdict(INDEX)}
PLACES = [(name,) for name in CONTENT] + [("asked", "tokenizer")]
PLACES += [("sources", 0, name) for name in SOURCES[0]] + [("sources", 0)]
PLACES += [("shards", 0, name) for name in SHARDS[0]] + [("shards", 0)]
ODD = [None, True, -1, 1.5, 10**400, "", "\ud800", [1], [[]], {}, {"a": 1}]


@pytest.mark.parametrize("place", PLACES)
def test_a_value_of_another_type_is_refused(path, place):
    for odd in ODD:
        content = json.loads(json.dumps(CONTENT))
        *parents, name = place
        parent = content
        for step in parents:
            parent = parent[step]
        if type(odd) is type(parent[name]) and odd not in (-1, [1], [[]]) and odd != {"a": 1}:
            continue  # The files show whether it is true.
        parent[name] = odd
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"index\.json (is damaged|belongs to another)"):
            read_index(path)


@pytest.mark.parametrize("place", [(), ("sources", 0), ("shards", 0)])
@pytest.mark.parametrize("change", [lambda row: row.popitem(), lambda row: row.update(more=1)])
def test_a_missing_or_unknown_field_is_refused(path, place, change):
    content = json.loads(json.dumps(CONTENT))
    row = content
    for step in place:
        row = row[step]
    change(row)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        read_index(path)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": 1, "tokenizer_sha256": ' + "[" * 100_000, "9" * 9999]
)
def test_json_that_is_nested_too_deeply_is_refused(path, content):
    path.write_text(content)
    with pytest.raises(UserError, match=r"index\.json (is damaged|belongs to another)"):
        read_index(path)


@pytest.mark.parametrize("change", [{"dtype": "object"}, {"dtype": "int64"}, {"shards": []}])
def test_values_that_no_preparation_writes_are_refused(path, change):
    path.write_text(json.dumps(CONTENT | change))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        read_index(path)
