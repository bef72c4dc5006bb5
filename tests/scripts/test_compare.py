"""compare.py: one line and one curve for each run."""

import json
import re
import shutil

import compare
import pytest
from support import GPT2_TINY

from gpt_jax.config import Config
from gpt_jax.training import pictures
from gpt_jax.training.log import read_metrics


@pytest.fixture
def other(trained, tmp_path):
    """A copy of a run that claims to be wider, with a worse log."""
    copy = shutil.copytree(trained, tmp_path / "other")
    record = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    record["config"]["model"]["n_embd"] = 64
    record["config"]["sample"]["prompt"] = "else"
    del record["digests"]  # As in an older version; otherwise the edit is refused.
    (copy / "config.json").write_text(json.dumps(record), encoding="utf-8")
    entries = [
        {"step": 10, "train/loss": 4.0, "val/loss": 3.5, "tokens_per_s": None, "elapsed_s": 5.0},
        {"step": 20, "train/loss": 3.0, "val/loss": 3.75, "tokens_per_s": 1200, "elapsed_s": 65.4},
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    return copy


def test_the_table_has_a_line_for_each_run_and_the_picture_is_drawn(
    trained, other, tmp_path, capsys
):
    out = tmp_path / "curves.png"
    assert compare.main(["scripts/compare.py", str(trained), f"{other}/", f"--out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", lines[0].strip()) == ["run", *compare.COLUMNS]
    entries = read_metrics(trained / "metrics.jsonl")
    assert lines[1].split()[:3] == [str(trained), "200", f"{entries[-1]['val/loss']:.4f}"]
    row = [str(other), "20", "3.7500", "3.5000", "10", "1:05", "1,200"]
    assert lines[2].split() == row
    assert lines[3].strip() == "n_embd=64"
    assert lines[-1] == f"curves: {out}"
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no run is named"),
        (["/nothing"], "/nothing holds no run"),
        (
            ["{run}", "--out=/nothing/x.png"],
            "--out=/nothing/x.png cannot be written .*No such file",
        ),
        (["{run}", "--uot=x.png"], "uot.*out"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(trained, flags, words, capsys):
    flags = [flag.format(run=trained) for flag in flags]
    assert compare.main(["scripts/compare.py", *flags]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_the_table_fits_80_columns_and_breaks_no_name():
    entries = [{"step": 3_000, "val/loss": 1.5, "tokens_per_s": 123_456, "elapsed_s": 40_000}]
    model = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2}
    wide = Config.from_dict({"model": model, "optimizer": {"learning_rate": 1e-3, "b2": 0.95}})
    names = ["runs/tiny", "runs/a-name-much-longer-than-its-column"]
    lines = compare.table(
        {name: (config, entries) for name, config in zip(names, (Config(), wide), strict=True)}, 80
    ).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("runs/tiny ")
    assert lines[2] == names[1]
    assert lines[3].split() == ["3,000", "1.5000", "1.5000", "3,000", "11:06:40", "123,456"]
    assert "".join(lines[4:]).replace(" ", "").split(",") == [
        *("block_size=256", "n_layer=6", "n_head=6", "n_embd=384", "dropout=0.2"),
        *("learning_rate=0.001", "b2=0.95"),
    ]
    assert all(line.startswith("    ") for line in lines[4:])


def test_what_is_no_run_is_left_out_with_a_note(trained, other, tmp_path, capsys):
    """As in compare.py runs/*, where an exported model, a text and a broken run may lie."""
    (other / "metrics.jsonl").unlink()
    empty, text, folder = tmp_path / "empty", tmp_path / "play.txt", tmp_path / "folder"
    empty.mkdir()
    text.write_text("A king")
    shutil.copytree(trained, folder)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    odd = {GPT2_TINY: "config.json cannot be read", text: "is a file", empty: "holds no run"}
    odd |= {other: "has no log yet", broken: "config.json cannot be read", folder: "metrics.jsonl"}
    odd |= {tmp_path / "nothing": "holds no run"}
    words = [str(empty), str(trained), *map(str, odd)]
    out = tmp_path / "x.png"
    assert compare.main(["scripts/compare.py", *words, f"--out={out}"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[1:2]] == [str(trained)]
    assert len(printed.out.splitlines()) == 4
    notes = printed.err.splitlines()[1:]
    assert len(notes) == len(odd)
    for note, (path, reason) in zip(notes, odd.items(), strict=True):
        assert re.search(f"note: left out: .*{path}.*{reason}|{reason}.*{path}", note), note
    assert out.exists()


def test_nothing_but_folders_without_a_run_is_an_error(tmp_path, capsys):
    words = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert compare.main(["scripts/compare.py", *words]) == 2
    assert re.fullmatch(r"error: none of \S+/a, \S+/b is a run .*\n", capsys.readouterr().err)


def logged(tokenizer, ratio=None, **data):
    """A configuration, and a log with losses of 2 and 3 nats per token."""
    entry = {"step": 10, "train/loss": 3.0, "val/loss": 2.0, "elapsed_s": 5.0}
    entry |= {} if ratio is None else {"val/bits_per_byte": 2.0 * ratio}
    return Config().with_values("data", tokenizer=tokenizer, **data), [entry]


@pytest.mark.parametrize(
    ("runs", "unit", "losses"),
    [
        ([logged("char", 1.4), logged("char", 1.3)], "nats per character", [2.0, 2.0]),
        ([logged("byte"), logged("byte", 1.4)], "nats per byte", [2.0, 2.0]),
        ([logged("bpe", 0.5), logged("bpe", 0.5)], "nats per token", [2.0, 2.0]),
        ([logged("char", 1.4), logged("byte", 1.4)], "bits per byte", [2.8, 2.8]),
        ([logged("char", 1.4), logged("bpe", 0.5)], "bits per byte", [2.8, 1.0]),
        ([logged("bpe", 0.5), logged("bpe", 0.4, bpe_vocab_size=999)], "bits per byte", [1.0, 0.8]),
        ([logged("bpe", 0.5), logged("bpe", 0.4, corpus="x")], "bits per byte", [1.0, 0.8]),
        ([logged("/a", 0.5), logged("/b", 0.4)], "bits per byte", [1.0, 0.8]),
        ([logged("char", 1.4), logged("byte")], "nats per token", [2.0, 2.0]),
        ([logged("char", 1e30), logged("byte", 1.4)], "nats per token", [2.0, 2.0]),
    ],
)
def test_losses_of_different_tokenizers_become_bits_per_byte(runs, unit, losses, capsys):
    found, found_unit = compare.in_one_unit(dict(zip("ab", runs, strict=True)))
    assert found_unit == unit
    assert [entries[0]["val/loss"] for _, entries in found.values()] == losses
    training = [entries[0]["train/loss"] for _, entries in found.values()]
    assert training == pytest.approx([1.5 * loss for loss in losses])
    is_lacking = unit == "nats per token" and runs[0][0].data.tokenizer == "char"
    assert ("cannot be compared" in capsys.readouterr().err) == is_lacking


def test_the_unit_of_the_losses_is_printed_and_drawn(trained, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "draw_comparison", lambda *given: drawn.append(given))
    runs = {"a": logged("char", 1.4), "b": logged("bpe", 0.5)}
    monkeypatch.setattr(compare, "read_run", lambda workdir: runs[workdir.name])
    assert compare.main(["scripts/compare.py", "a", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[2:4] == ["2.8000", "2.8000"]
    assert "losses: bits per byte of the text, because the tokenizers differ" in lines
    [(logs, _, unit)] = drawn
    assert unit == "bits per byte"
    assert logs["b"][0]["val/loss"] == 1.0


def test_a_run_without_a_log_is_named(other, capsys):
    (other / "metrics.jsonl").unlink()
    assert compare.main(["scripts/compare.py", str(other)]) == 2
    assert re.fullmatch(r"error: .*other has no log yet .*\n", capsys.readouterr().err)


UNTRUSTED = ["NaN", "-Infinity", "1e999", "1" + "0" * 400, "1e308", "3e38", "1" + "0" * 30, "true"]
KEYS = ["step", "train/loss", "val/loss", "tokens_per_s", "elapsed_s"]


@pytest.mark.parametrize("number", UNTRUSTED)
def test_untrusted_numbers_in_a_log_end_neither_the_table_nor_a_picture(
    other, tmp_path, capsys, recwarn, number
):
    """Each key but the step has the number in one line, all have it in the next; then the step."""
    lines = [dict.fromkeys(KEYS, "1") | {"step": str(step)} for step in range(1, 8)]
    lines += [{**lines[-1], key: number} for key in KEYS[1:]]
    lines.append({**dict.fromkeys(KEYS, number), "step": "9"})
    lines.append({**lines[0], "step": number})
    rows = [", ".join(f'"{name}": {value}' for name, value in line.items()) for line in lines]
    (other / "metrics.jsonl").write_text("".join(f"{{{row}}}\n" for row in rows))
    out, config = tmp_path / "x.png", Config().with_values("model", vocab_size=65)
    assert compare.main(["scripts/compare.py", str(other), f"--out={out}"]) == 0
    pictures.draw_loss_curve(read_metrics(other / "metrics.jsonl"), config, out, "run")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list


def test_all_that_follows_an_unreadable_line_of_a_log_is_compared(other, tmp_path, capsys):
    first, second = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text(f"{first}\n?\n{second}\n")
    assert compare.main(["scripts/compare.py", str(other), f"--out={tmp_path / 'x.png'}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split()[1:3] == ["20", "3.7500"]
    assert printed.err.count("note: ") == printed.err.count("cannot be read") == 1
