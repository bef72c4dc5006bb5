"""Prepared corpora: the exact ids of the text; interruptions lose little; damage is found."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from gpt_jax.config.sections import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.text import play, preparation, shards
from gpt_jax.text.corpus import load_corpus
from gpt_jax.text.corpus_index import Index, read_index, write_index
from gpt_jax.text.preparation import prepare
from gpt_jax.text.tokenizer import CharTokenizer
from gpt_jax.text.tokenizer_file import make_tokenizer, save_tokenizer

TEXT = play.write()[:20_000]


def silent(what, done, total):
    assert 0 <= done <= total + 100, what  # Line breaks between files come on top.


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Gives a small text many pieces."""
    monkeypatch.setattr(preparation, "ENCODED_AT_ONCE", 500)


@pytest.fixture
def data(tmp_path):
    """Three files; the middle one has a byte-order mark and other scripts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("a", TEXT[:9_000]), ("b", "\ufeff東京 Ärger\r\n"), ("c", TEXT[9_000:])):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return DataConfig(corpus=str(folder), bpe_vocab_size=300)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("char", "uint8"), ("byte", "uint8"), ("bpe", "uint16")]
)
def test_prepared_ids_equal_the_ids_of_the_text_in_memory(data, tmp_path, kind, dtype):
    data = dataclasses.replace(data, tokenizer=kind)
    index = prepare(data, tmp_path / "out", 1000, silent)
    found = shards.load(dataclasses.replace(data, corpus=str(tmp_path / "out")))
    text = load_corpus(data.corpus).text
    np.testing.assert_array_equal(found.ids, found.tokenizer.encode(text))
    assert found.tokenizer.decode(found.ids) == text
    assert (index.dtype, found.ids.dtype, index.tokens) == (dtype, dtype, len(found.ids))
    assert len(index.shards) > 5
    assert sum(shard["text_bytes"] for shard in index.shards) == len(text.encode("utf-8"))
    assert isinstance(found.ids, np.memmap)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"tokens.bin", "tokenizer.json", "index.json"}


def test_hidden_files_runs_and_prepared_corpora_are_not_prepared(data, tmp_path, capsys):
    texts = tmp_path / "texts"
    expected = prepare(data, tmp_path / "out", 1000, silent)
    prepare(data, texts / "prepared", 1000, silent)
    for name in ("prepared/notes.txt", ".ipynb_checkpoints/a.txt"):
        (texts / name).parent.mkdir(exist_ok=True)
        (texts / name).write_text("not text")
    capsys.readouterr()
    assert prepare(data, tmp_path / "again", 1000, silent) == expected
    assert "3 .txt file(s) taken, 2 left out" in capsys.readouterr().err
    (texts / "prepared" / "index.json").rename(texts / "prepared" / "unfinished.json")
    assert prepare(data, tmp_path / "third", 1000, silent) == expected


def test_prepared_vocabulary_equals_that_of_the_text_in_memory(data, tmp_path):
    text = load_corpus(data.corpus).text
    prepare(data, tmp_path / "char", 1000, silent)
    char = shards.load(DataConfig(corpus=str(tmp_path / "char"))).tokenizer
    assert char.to_dict() == make_tokenizer("char", [text], 0).to_dict()
    bpe = dataclasses.replace(data, tokenizer="bpe", val_fraction=0.25)
    prepare(bpe, tmp_path / "bpe", 1000, silent)
    training_part = text.encode("utf-8")[: len(text.encode("utf-8")) * 3 // 4].decode("utf-8")
    expected = make_tokenizer("bpe", [training_part], 300)
    found = shards.load(DataConfig(corpus=str(tmp_path / "bpe"))).tokenizer
    assert found.to_dict() == expected.to_dict()


def test_bpe_does_not_learn_from_the_validation_text(data, tmp_path):
    """The end of the text is full of a pair that the rest lacks."""
    (tmp_path / "texts" / "d.txt").write_text("~^\n" * 1000, encoding="utf-8")
    for name, val_fraction in (("honest", 0.2), ("other", 0.01)):
        chosen = dataclasses.replace(data, tokenizer="bpe", val_fraction=val_fraction)
        prepare(chosen, tmp_path / name, 1000, silent)
    counts = [
        len(shards.load(DataConfig(corpus=str(tmp_path / name))).tokenizer.encode("~^"))
        for name in ("honest", "other")
    ]
    assert counts == [2, 1]


def test_bpe_learns_from_pieces_spread_over_a_long_text(monkeypatch):
    monkeypatch.setattr(preparation, "BPE_BYTES", 100)
    texts = [f"{number:010}" for number in range(50)]
    assert list(preparation._training_part(texts, 300)) == texts[:30:3]
    assert list(preparation._training_part(texts, 95)) == [*texts[:9], "00000"]


class Killed(BaseException):
    """Ends a preparation anywhere, as a kill does: no handler catches it."""


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("at", [0, 1_500, 7_000, 9_001, 15_000, 19_990])
def test_a_killed_preparation_resumes_to_the_same_files(data, tmp_path, kind, at):
    data = dataclasses.replace(data, tokenizer=kind)

    def kill(what, done, total):
        if what == "tokens" and done > at:
            raise Killed

    prepare(data, tmp_path / "straight", 1000, silent)
    with pytest.raises(Killed):
        prepare(data, tmp_path / "broken", 1000, kill)
    assert not (tmp_path / "broken" / "index.json").exists()
    with pytest.raises(UserError, match="is not a finished corpus"):
        shards.load(DataConfig(corpus=str(tmp_path / "broken")))
    with (tmp_path / "broken" / "tokens.bin").open("ab") as file:
        file.write(b"half a shard")
    again = []
    prepare(data, tmp_path / "broken", 1000, lambda *progress: again.append(progress))
    made = [done for what, done, _ in again if what == "tokens"]
    assert min(made, default=at) > at - 2 * 3000  # Complete shards are not made again.
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_preparing_a_finished_corpus_changes_nothing(data, tmp_path):
    index = prepare(data, tmp_path / "out", 1000, silent)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(data, tmp_path / "out", 77, silent) == index
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_changed_text_files_are_refused(data, tmp_path):
    path = tmp_path / "texts" / "a.txt"

    def change(what, done, total):
        if what == "tokens" and done > 5_000:
            path.write_text(TEXT[:8_999] + "!", encoding="utf-8")

    with pytest.raises(UserError, match=r"have changed since .* was started \(.*a\.txt\)"):
        prepare(data, tmp_path / "out", 1000, change)
    with pytest.raises(UserError, match=r"have changed since .* was started \(.*a\.txt\)"):
        prepare(data, tmp_path / "out", 1000, silent)
    path.write_text(TEXT[:9_000], encoding="utf-8")
    (tmp_path / "texts" / "new.txt").write_text("new", encoding="utf-8")
    with pytest.raises(UserError, match=r"started \(.*new\.txt\)"):
        prepare(data, tmp_path / "out", 1000, silent)


@pytest.mark.parametrize(
    "change", [{"tokenizer": "byte"}, {"bpe_vocab_size": 400}, {"val_fraction": 0.5}]
)
def test_a_folder_prepared_with_other_settings_is_refused(data, tmp_path, change):
    prepare(data, tmp_path / "out", 1000, silent)
    [(name, value)] = change.items()
    with pytest.raises(UserError, match=rf"{name} was .* and is now {value!r}"):
        prepare(dataclasses.replace(data, **change), tmp_path / "out", 1000, silent)


@pytest.mark.parametrize("name", ["config.json", "tokens.bin", "tokenizer.json"])
def test_files_of_another_program_are_refused_and_stay(data, tmp_path, name):
    """They belong to a run, or to a GPT-2 folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"precious")
    with pytest.raises(UserError, match=rf"out/{name} exists but .*: give another --out"):
        prepare(data, tmp_path / "out", 1000, silent)
    assert contents(tmp_path / "out") == {name: b"precious"}


def test_a_preparation_killed_before_its_index_resumes(data, tmp_path, monkeypatch):
    prepare(data, tmp_path / "straight", 1000, silent)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_index", lambda path, index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(data, tmp_path / "out", 1000, silent)
    assert set(contents(tmp_path / "out")) == {"tokenizer.json"}
    prepare(data, tmp_path / "out", 1000, silent)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("kind", ["byte", "tokenizer.json"])
def test_a_refused_text_leaves_nothing_behind_and_can_be_corrected(data, tmp_path, kind):
    save_tokenizer(CharTokenizer(TEXT + "東京Äé\r"), tmp_path / "tokenizer.json")
    bad = {"byte": b"\xff", "tokenizer.json": b"#"}[kind]
    kind = kind if kind == "byte" else str(tmp_path / kind)
    data = dataclasses.replace(data, tokenizer=kind)
    path = tmp_path / "texts" / "c.txt"
    good = path.read_bytes()
    path.write_bytes(good[:5000] + bad + good[5000:])
    expected = (
        r"c\.txt is not UTF-8|the text after its first 14,\d* bytes is refused: character '#'"
    )
    with pytest.raises(UserError, match=expected):
        prepare(data, tmp_path / "out", 1000, silent)
    assert contents(tmp_path / "out") == {}
    path.write_bytes(good)
    prepare(data, tmp_path / "out", 1000, silent)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_text_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match="is empty"):
        prepare(DataConfig(corpus=str(tmp_path / "a.txt")), tmp_path / "out", 1000, silent)


@pytest.fixture
def prepared(data, tmp_path):
    prepare(data, tmp_path / "out", 1000, silent)
    return tmp_path / "out"


def test_check_names_the_damaged_shard(prepared):
    index = shards.check(prepared, silent)
    content = bytearray((prepared / "tokens.bin").read_bytes())
    content[sum(shard["tokens"] for shard in index.shards[:3])] ^= 1
    (prepared / "tokens.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"tokens\.bin is damaged \(shard 3 has changed\)"):
        shards.check(prepared, silent)


@pytest.mark.parametrize("read", [shards.check, lambda folder, _: load(folder)])
@pytest.mark.parametrize("vocab_size", [5, 255])
def test_an_id_outside_of_the_vocabulary_is_found_with_its_shard(tmp_path, read, vocab_size):
    """Its hashes are right, as in a corpus that another program made."""
    tokenizer = CharTokenizer("".join(chr(65 + i) for i in range(vocab_size)))
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    ids = np.arange(40, dtype="<u1") % 5
    for largest in (vocab_size - 1, vocab_size):
        ids[25] = largest
        (tmp_path / "tokens.bin").write_bytes(ids.tobytes())
        facts = tuple(
            {"tokens": 10, "text_bytes": 10, "sha256": hashlib.sha256(part.tobytes()).hexdigest()}
            for part in ids.reshape(4, 10)
        )
        sha256 = shards.file_sha256(tmp_path / "tokenizer.json")
        write_index(
            tmp_path / "index.json", Index({"tokenizer": "char"}, (), sha256, "uint8", facts, "ab")
        )
        if largest < vocab_size:
            read(tmp_path, silent)
    with pytest.raises(UserError, match=rf"shard 2 has the id {largest}, and its tokenizer"):
        read(tmp_path, silent)


def load(folder):
    return shards.load(DataConfig(corpus=str(folder)))


@pytest.mark.parametrize("name", ["tokens.bin", "tokenizer.json", "index.json"])
def test_a_pipe_in_place_of_a_file_is_an_error_at_once(prepared, name, mkfifo):
    (prepared / name).unlink()
    mkfifo(prepared / name)
    with pytest.raises((UserError, OSError), match=r"a pipe, not a file|0 bytes instead of"):
        load(prepared)


@pytest.fixture
def unfinished(prepared):
    """A corpus as a kill after the fourth shard leaves it."""
    index = read_index(prepared / "index.json")
    (prepared / "index.json").unlink()
    started = dataclasses.replace(index, shards=index.shards[:4], sha256="")
    write_index(prepared / "unfinished.json", started)
    return prepared


def test_a_damaged_shard_is_found_before_a_preparation_resumes(data, unfinished):
    (unfinished / "tokens.bin").write_bytes(b"\0" * 9000)
    with pytest.raises(UserError, match=r"tokens\.bin is damaged \(shard 0"):
        prepare(data, unfinished, 1000, silent)
    (unfinished / "tokens.bin").unlink()
    with pytest.raises(UserError, match=r"tokens\.bin is damaged \(it is empty or missing"):
        prepare(data, unfinished, 1000, silent)


def test_a_changed_tokenizer_is_found_before_a_preparation_resumes(data, unfinished):
    """It would give the remaining shards other ids."""
    save_tokenizer(CharTokenizer(TEXT + "東京Äé\r~"), unfinished / "tokenizer.json")
    before = contents(unfinished)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        prepare(data, unfinished, 1000, silent)
    assert contents(unfinished) == before


@pytest.mark.parametrize("name", ["tokens.bin", "tokenizer.json"])
def test_preparing_reports_a_finished_corpus_that_lacks_a_file(data, prepared, name):
    (prepared / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        prepare(data, prepared, 1000, silent)


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing"])
def test_loading_finds_tokens_of_the_wrong_size(prepared, damage):
    path = prepared / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes({"shorter": content[:-1], "longer": content + b"1", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(
        UserError, match=r"tokens\.bin is damaged \(it has \d+ bytes instead of \d+\)"
    ):
        shards.load(DataConfig(corpus=str(prepared)))


def test_loading_finds_a_changed_tokenizer(prepared):
    path = prepared / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("é", "è") + " ", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        shards.load(DataConfig(corpus=str(prepared)))


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"shards": [{}]}, {"shards": []}, {"dtype": "text"}, {"more": 1}]
)
def test_loading_finds_a_damaged_index(prepared, change):
    path = prepared / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        shards.load(DataConfig(corpus=str(prepared)))
    path.write_text("{")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        shards.load(DataConfig(corpus=str(prepared)))


FOREIGN = ['{"pages": 3}', "[]", "{", '{"format": "html"}', "\xff"]


@pytest.mark.parametrize("name", ["index.json", "unfinished.json"])
@pytest.mark.parametrize("content", FOREIGN)
def test_an_index_of_another_program_does_not_make_a_prepared_corpus(data, tmp_path, name, content):
    """The texts beside it stay usable; preparing into their folder is refused, without harm."""
    (tmp_path / "texts" / name).write_text(content, encoding="latin-1")
    assert not shards.is_prepared(data.corpus)
    before = contents(tmp_path / "texts")
    with pytest.raises(
        UserError, match=rf"{name} belongs to another program: give another"
    ) as error:
        prepare(data, tmp_path / "texts", 1000, silent)
    assert "remove" not in str(error.value)
    assert contents(tmp_path / "texts") == before


@pytest.mark.parametrize("content", ["", '{"format": 2, "tokenizer_sha256": ""}'])
def test_a_corpus_with_a_damaged_index_still_counts_as_prepared(prepared, content):
    (prepared / "index.json").write_text(content)
    assert shards.is_prepared(str(prepared))
    with pytest.raises(UserError, match=r"index\.json is damaged") as error:
        shards.load(DataConfig(corpus=str(prepared)))
    assert "remove" not in str(error.value)


def test_a_tokenizer_setting_that_contradicts_the_prepared_corpus_is_refused(prepared):
    assert shards.is_prepared(str(prepared))
    assert not shards.is_prepared(str(prepared.parent))
    with pytest.raises(UserError, match=r"data\.tokenizer = 'byte', but .* prepared with 'char'"):
        shards.load(DataConfig(corpus=str(prepared), tokenizer="byte"))
