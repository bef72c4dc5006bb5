"""Text to ids and back, exactly; errors name unknown characters; JSON keeps everything."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.text import tokenizer as tokenizer_module
from gpt_jax.text.tokenizer import ByteTokenizer, CharTokenizer, token_dtype
from gpt_jax.text.tokenizer_file import (
    absolute_kind,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(ANY_TEXT)
def test_characters_round_trip(text):
    tokenizer = CharTokenizer(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(set(text))


@given(ANY_TEXT)
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert bytes(ids) == text.encode("utf-8")


@given(ANY_TEXT)
def test_count_bytes_is_the_length_of_the_text_in_utf8(text):
    for tokenizer in (CharTokenizer(text), ByteTokenizer()):
        assert tokenizer.count_bytes(tokenizer.encode(text)) == len(text.encode("utf-8"))


def test_count_bytes_of_many_ids_works_in_parts(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "COUNTED_AT_ONCE", 3)
    text = "aé東" * 5
    assert CharTokenizer(text).count_bytes(CharTokenizer(text).encode(text)) == 30


def test_ids_are_indices_among_the_sorted_characters():
    tokenizer = CharTokenizer("hello\n")
    assert tokenizer.characters == "\nehlo"
    np.testing.assert_array_equal(tokenizer.encode("hole\n"), [2, 4, 3, 1, 0])
    assert tokenizer.decode([1, 0]) == "e\n"


def test_ids_have_the_smallest_possible_dtype():
    assert CharTokenizer("ab").encode("a").dtype == np.uint8
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    assert CharTokenizer(many).encode(many).dtype == np.uint16
    assert [token_dtype(n) for n in (1, 256, 257, 65536, 65537)] == [
        np.uint8,
        np.uint8,
        np.uint16,
        np.uint16,
        np.uint32,
    ]


@pytest.mark.parametrize("unknown", ["z", "\x00", "é", "東", "\U0001f600", "\udc80"])
@pytest.mark.parametrize(
    ("before", "place"),
    [("", "line 1, column 1"), ("ab", "line 1, column 3"), ("a\n\nbc\n", "line 4, column 1")],
)
def test_the_error_names_an_unknown_character_and_its_place(unknown, before, place):
    expected = rf"U\+{ord(unknown):04X}\) in {place} is not one of the 4 characters"
    with pytest.raises(UserError, match=expected):
        CharTokenizer("abc\n").encode(f"{before}{unknown}c\n")


def test_bytes_refuse_to_encode_half_a_character_and_decode_it_as_a_replacement():
    with pytest.raises(UserError, match="line 1, column 2"):
        ByteTokenizer().encode("a\udc80")
    assert ByteTokenizer().decode([0xE6, 0x9D]) == "\ufffd"


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_saved_tokenizer_loads_unchanged(kind, tmp_path):
    text = 'Ärger, 東京\r\n"\t\u2028end'
    tokenizer = make_tokenizer(kind, [text[:9], text[9:]], 0)
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert loaded.to_dict() == tokenizer.to_dict()
    np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


@given(ANY_TEXT, st.sampled_from(["char", "byte"]), st.data())
def test_decoded_pieces_join_to_the_text(text, kind, data):
    tokenizer = make_tokenizer(kind, text, 0)
    decode, ids, joined = tokenizer.decoder(), tokenizer.encode(text), ""
    while len(ids):
        count = data.draw(st.integers(1, len(ids)))
        joined, ids = joined + decode(ids[:count], False), ids[count:]
    assert joined + decode([], True) == text


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "{"),
        *('{"format": 1, "type": "char"}', '{"format": 1, "type": "bpe"}'),
        *(
            f'{{"format": 1, "type": "char", "characters": {characters}}}'
            for characters in ("3", "null", "[1, 2]", '{"a": 1}', '"a\\ud800"', '["a", "b"]')
        ),
        *(  # With these, ids would change, or there would be none.
            f'{{"format": 1, "type": "char", "characters": "{text}"}}' for text in ("", "ba", "aa")
        ),
        *("[" * 100_000, '{"format": 1, "type": "char", "characters": ' + "[" * 100_000),
    ],
)
def test_the_error_names_a_damaged_file(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(path)


@pytest.mark.parametrize("change", [{"format": 2}, {"type": "words"}])
def test_an_unknown_format_or_type_is_refused(change, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"format": 1, "type": "byte"} | change))
    with pytest.raises(UserError, match="update gpt_jax"):
        load_tokenizer(path)


def test_a_pipe_in_place_of_a_tokenizer_is_an_error_at_once(tmp_path, mkfifo):
    mkfifo(tmp_path / "tokenizer.json")
    mkfifo(tmp_path / "vocab.json")
    mkfifo(tmp_path / "merges.txt")
    with pytest.raises(UserError, match="it is a pipe, not a file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    for place in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(UserError, match="it is a pipe, not a file"):
            make_tokenizer(str(place), [], 0)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="it is a pipe, not a file"):
        make_tokenizer(str(tmp_path), [], 0)


def test_a_home_folder_that_is_not_known_is_named():
    with pytest.raises(UserError, match="~nobody-here/run begins with a home folder that is not"):
        make_tokenizer("~nobody-here/run", [], 0)


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json"):
        load_tokenizer(tmp_path / "nothing.json")


def test_absolute_kind_keeps_names_and_makes_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [absolute_kind(kind) for kind in ("char", "byte", "bpe")] == ["char", "byte", "bpe"]
    assert absolute_kind("sub/../gpt2") == str(tmp_path / "gpt2")


def test_an_exported_character_tokenizer_loads_and_similar_ones_are_refused(tmp_path):
    """Similar: ids in another order, a word of two letters, half a surrogate pair, a normalizer."""
    tokenizer, path = CharTokenizer("ab\n東"), tmp_path / "tokenizer.json"
    content = tokenizer.to_library()
    path.write_text(json.dumps(content), encoding="utf-8")
    for place in (path, tmp_path):
        assert make_tokenizer(str(place), [], 0).to_dict() == tokenizer.to_dict()
    for vocab in ({"a": 1, "b": 0}, {"a": 0, "bc": 1}, {"\ud800": 0}, {}):
        path.write_text(json.dumps(content | {"model": content["model"] | {"vocab": vocab}}))
        with pytest.raises(UserError, match="no tokenizer can be read"):
            make_tokenizer(str(path), [], 0)
    path.write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(UserError, match="no tokenizer can be read"):
        make_tokenizer(str(path), [], 0)
