"""Byte pairs: exact both ways, the library's own ids however a text is split; GPT-2's files."""

import contextlib
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from gpt_jax.errors import UserError
from gpt_jax.text import bpe, pieces, play, tokenizer
from gpt_jax.text.tokenizer import BPETokenizer
from gpt_jax.text.tokenizer_file import load_tokenizer, make_tokenizer, save_tokenizer

# Where tokenizers differ: words, numbers, spaces of all kinds, scripts, marks, special tokens.
PAGE = (
    "Don't SHOUT, it's 1984; we'll pay 12,000.50 (or ½) — she\u2019d've said:\n\n\n"
    "\tdef f(x):\r\n\t\treturn x**2  # two  spaces,   three \u3000 wide\u00a0no-break\u0085next\n"
    "Ärger, naïve cafe\u0301, \ufb01, ß; Привет мир; שלום; مرحبا بالعالم; नमस्ते; 東京都。한국어\n"
    "👩\u200d👩\u200d👧 👍🏽 🇩🇪 \u202eabc\u202c x\x1cy !\x1c \x00\x7f <|endoftext|>next"
    "<|endoftext|> <|endoftext|>\n <|endoftext <|im_start|> 'S 'LL ''s trailing   \n \n"
) * 3
FOLDERS = ("whole", "pair", "run")


def content_of(text, vocab_size=400):
    return bpe.train([text], vocab_size)


# It has merges across spaces and control characters, so a wrong split changes ids.
CONTENT = content_of(PAGE + play.write()[:20_000] + "x!\x1c! \n\t\n  \n \r\n" * 200)
TOKENIZER = BPETokenizer(CONTENT)
LIBRARY = tokenizers.Tokenizer.from_str(json.dumps(CONTENT))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture
def folder(tmp_path):
    """Folders with the same tokenizer in each supported form."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    LIBRARY.save(str(tmp_path / "whole" / "tokenizer.json"))
    LIBRARY.model.save(str(tmp_path / "pair"))
    save_tokenizer(TOKENIZER, tmp_path / "run" / "tokenizer.json")
    return tmp_path


@given(ANY_TEXT)
def test_any_text_round_trips(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.count_bytes(ids) == len(text.encode("utf-8"))


@given(ANY_TEXT, st.integers(1, 5))
def test_ids_in_pieces_decode_to_whole_characters_and_the_whole_text(text, size):
    ids, decode = TOKENIZER.encode(text), TOKENIZER.decoder()
    parts = [decode(ids[i : i + size], False) for i in range(0, len(ids), size)]
    assert "�" not in "".join(parts).replace("�", "", text.count("�"))
    assert "".join([*parts, decode([], True)]) == text


def test_half_a_character_waits_and_is_replaced_at_the_end():
    ids, decode = TOKENIZER.encode("\U0001f9ff"), TOKENIZER.decoder()
    assert len(ids) > 1
    assert decode(ids[:1], False) == ""
    assert decode([], True) == "�"
    assert TOKENIZER.decode(ids[:1]) == "�"


def test_ids_and_their_texts_equal_the_librarys():
    ids = TOKENIZER.encode(PAGE)
    assert ids.tolist() == LIBRARY.encode(PAGE, add_special_tokens=False).ids
    assert TOKENIZER.vocab_size == LIBRARY.get_vocab_size() == 400
    for i in range(1, 400):
        assert TOKENIZER.decode([i]) == LIBRARY.decode([i], skip_special_tokens=False)


def test_encoding_in_pieces_gives_the_same_ids(monkeypatch):
    whole = TOKENIZER.encode(PAGE).tolist()
    monkeypatch.setattr(tokenizer, "ENCODED_AT_ONCE", 100)
    assert TOKENIZER.encode(PAGE).tolist() == whole


def test_the_end_of_text_token_in_a_text_is_one_id():
    ids = TOKENIZER.encode("a<|endoftext|> b")
    assert ids[1] == 0
    assert len(ids) == 3 + (len(TOKENIZER.encode(" b")) - 1)
    assert TOKENIZER.decode(ids) == "a<|endoftext|> b"


def test_training_learns_no_merges_from_the_end_of_text_token():
    tokenizer = BPETokenizer(content_of("<|endoftext|>" * 50, 300))
    assert tokenizer.vocab_size == 257


def test_training_is_a_function_of_the_text():
    """It is the same in another process, and however the text arrives."""
    code = (
        "import json, sys; from gpt_jax.text import bpe, play\n"
        "text = play.write()[:20_000]\n"
        "print(json.dumps(bpe.train([text[:777], text[777:]], 400)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout) == content_of(play.write()[:20_000]), done.stderr


def test_the_most_frequent_pair_is_merged_first_and_a_small_text_has_few_tokens():
    tokenizer = BPETokenizer(content_of("abab abab ab", 1024))
    assert tokenizer.vocab_size < 270
    assert tokenizer.decode([257]) == "ab"


def test_the_error_names_half_a_surrogate_pair():
    with pytest.raises(UserError, match="line 1, column 2"):
        TOKENIZER.encode("a\udc80")


@pytest.mark.parametrize("name", [*FOLDERS, "whole/tokenizer.json", "run/tokenizer.json"])
def test_every_form_of_the_files_is_read(folder, name):
    read = make_tokenizer(str(folder / name), [], 0)
    assert read.vocab_size == 400
    np.testing.assert_array_equal(read.encode(PAGE), TOKENIZER.encode(PAGE))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_saved_tokenizer_loads_unchanged(folder, name):
    tokenizer = make_tokenizer(str(folder / name), [], 0)
    save_tokenizer(tokenizer, folder / "saved.json")
    loaded = load_tokenizer(folder / "saved.json")
    assert loaded.to_dict() == tokenizer.to_dict()
    np.testing.assert_array_equal(loaded.encode(PAGE), tokenizer.encode(PAGE))


def test_truncation_and_padding_in_a_file_are_ignored(folder):
    copy = tokenizers.Tokenizer.from_str(LIBRARY.to_str())
    copy.enable_truncation(5)
    copy.enable_padding(length=7)
    copy.save(str(folder / "tokenizer.json"))
    read = make_tokenizer(str(folder / "tokenizer.json"), [], 0)
    np.testing.assert_array_equal(read.encode(PAGE), TOKENIZER.encode(PAGE))
    assert read.encode("a").tolist() == TOKENIZER.encode("a").tolist()


def changed(**changes):
    """A copy of CONTENT with other values at the given paths."""
    content = json.loads(json.dumps(CONTENT))
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = content
        for parent in parents:
            place = place[int(parent) if parent.isdecimal() else parent]
        place[name] = value
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (changed(normalizer={"type": "Lowercase"}), "changes the text"),
        (changed(pre_tokenizer__add_prefix_space=True), "changes the text"),
        (changed(model__dropout=0.5), "changes the text"),
        (changed(pre_tokenizer={"type": "Whitespace"}), "not byte-level BPE"),
        (changed(pre_tokenizer__use_regex=False), "not byte-level BPE"),
        (changed(model__end_of_word_suffix="</w>"), "prefixes or suffixes"),
        (changed(added_tokens__0__lstrip=True), "absorbs the spaces"),
        (changed(added_tokens__0__content="<a b>"), "contains spaces"),
        (changed(model={"type": "BPE", "vocab": {"a": 1}, "merges": []}), "lacks some of the 256"),
        (changed(model__vocab=CONTENT["model"]["vocab"] | {"東": 400}), "not made of bytes"),
        (changed(model__continuing_subword_prefix="##"), "prefixes or suffixes"),
        (
            changed(model__vocab=CONTENT["model"]["vocab"] | {"aa": 10**6}),
            "highest id is 1,000,000",
        ),
        ({"a": 1}, r"cannot|missing|expected|did not match"),
    ],
)
def test_a_tokenizer_unlike_gpt2s_is_refused(content, reason, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"no tokenizer can be read from .*({reason})"):
        make_tokenizer(str(path), [], 0)
    path.write_text(json.dumps({"format": 1, "type": "bpe", "tokenizer": content}))
    with pytest.raises(UserError, match=rf"no tokenizer can be read from .*({reason})"):
        load_tokenizer(path)


ODD = [None, True, -1, 1.5, 10**30, 2**32, "", "a", "\ud800", [], [1], [["a", "b"]], {}, {"a": {}}]
PLACES = [(), ("model",), ("pre_tokenizer",), ("added_tokens", 0), ("decoder",)]


@given(st.sampled_from(PLACES), st.randoms(use_true_random=False), st.sampled_from(ODD))
def test_a_saved_tokenizer_with_any_value_in_any_place_is_read_or_refused(place, rng, value):
    content = changed()
    parent = content
    for name in place:
        parent = parent[name]
    parent[rng.choice(list(parent))] = value
    with contextlib.suppress(ValueError):  # `load_tokenizer` says which file it is.
        text = "Don't <|endoftext|>"
        tokenizer = BPETokenizer(content)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\xff"])
def test_the_error_names_a_damaged_file(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="no tokenizer can be read from"):
        make_tokenizer(str(tmp_path), [], 0)


def test_the_error_for_an_incomplete_folder_names_the_files_it_needs(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer can be read .* vocab.json and merges.txt"):
        make_tokenizer(str(tmp_path), [], 0)


def test_the_error_for_an_unknown_name_lists_the_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data.tokenizer = 'words' is not char, byte or bpe, and"):
        make_tokenizer("words", [], 0)


def test_the_error_for_a_missing_library_gives_the_command_that_installs_it(monkeypatch, tmp_path):
    save_tokenizer(TOKENIZER, tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for attempt in (
        lambda: make_tokenizer("bpe", ["text"], 300),
        lambda: make_tokenizer(str(tmp_path), [], 0),
        lambda: load_tokenizer(tmp_path / "tokenizer.json"),
    ):
        with pytest.raises(UserError, match=r'pip install -e "\.\[gpt2\]"'):
            attempt()


@pytest.mark.parametrize("name", ["whole", "pair"])
def test_ids_equal_those_of_transformers(folder, name):
    transformers = pytest.importorskip("transformers")
    (folder / name / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.GPT2TokenizerFast.from_pretrained(folder / name)
    ours = make_tokenizer(str(folder / name), [], 0)
    assert ours.encode(PAGE).tolist() == theirs(PAGE)["input_ids"]
    assert ours.decode(ours.encode(PAGE)) == PAGE


def test_merges_of_a_text_without_spaces_are_learned_from_short_pieces():
    """The library's time grows with the square of a word: 1 MB of DNA took five minutes."""
    text = "".join(random.Random(0).choices("ACGT", k=3 * bpe.LONGEST_LEARNED + 1))
    spaced = " ".join([text[:9]] * 5000)
    parts = list(pieces.cut([text], bpe.LONGEST_LEARNED))
    assert [len(part) for part in parts] == [bpe.LONGEST_LEARNED] * 3 + [1]
    assert bpe.train([text], 300) == bpe.train(parts, 300)
    assert bpe.train([spaced], 270) == bpe.train(spaced.split(" ", 1), 270)
