"""Reading the log of a run, and what of a damaged log the next start keeps."""

import contextlib
import errno
import json
import os
import resource

import pytest

from gpt_jax.training import log as log_module
from gpt_jax.training.log import MetricsLog, elapsed_s, read_metrics

LINE = b'{"step": 1, "elapsed_s": 0.5}\n'
LATER = b'{"step": 9, "elapsed_s": 4.5}\n'
ENTRIES = [{"step": 1, "elapsed_s": 0.5}, {"step": 9, "elapsed_s": 4.5}]
UNREADABLE = [
    b'{"step": 2, "ela',
    b"[" * 100_000,
    b"3",
    b"",
    b'{"elapsed_s": 2}',
    b'{"step": null, "elapsed_s": 2}',
    b'{"step": 2, "elapsed_s": 1.0, "lr": ' + b"9" * 5000 + b"}",
    b"\x00\xff\xfe not UTF-8",
    *(
        b'{"step": %s, "elapsed_s": 1}' % step
        for step in (b"true", b"-1", b"2.0", b"1" + b"0" * 99)
    ),
]
UNTRUSTED = ["NaN", "Infinity", "1e999", "-1e999", "1e308", "1" + "0" * 400, "true", '"1"', "[1]"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_missing_file_has_no_entries(path, capsys):
    assert read_metrics(path, notes=True) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", UNREADABLE)
def test_an_unreadable_line_in_the_middle_is_skipped_with_one_note(path, capsys, line):
    path.write_bytes(LINE + line + b"\n" + line + b"\n" + LATER)
    assert read_metrics(path) == ENTRIES
    assert capsys.readouterr().err == ""
    read_metrics(path, notes=True)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "2 line(s) cannot be read (first: line 2)" in err


@pytest.mark.parametrize("line", UNREADABLE)
def test_the_next_start_keeps_an_unreadable_line_in_the_middle(path, capsys, line):
    path.write_bytes(LINE + line + b"\n" + LATER)
    log = MetricsLog(path, 9, writes=True)
    assert path.read_bytes() == LINE + line + b"\n" + LATER
    assert log.last == ENTRIES[-1]
    assert capsys.readouterr().err.count("cannot be read") == 1
    log.append({"step": 10, "elapsed_s": 5.0})
    assert log.extend_last(**{"val/loss": 2.0})["step"] == 10
    expected = LINE + line + b"\n" + LATER + b'{"step": 10, "elapsed_s": 5.0, "val/loss": 2.0}\n'
    assert path.read_bytes() == expected


@pytest.mark.parametrize("torn", [b'{"step": 9, "ela', b"\x00\x00", b"\xff"])
def test_the_next_start_drops_a_torn_last_line_without_a_note(path, capsys, torn):
    path.write_bytes(LINE + torn)
    assert read_metrics(path, notes=True) == ENTRIES[:1]
    MetricsLog(path, 9, writes=True)
    assert path.read_bytes() == LINE
    assert capsys.readouterr().err == ""


def test_a_last_line_that_only_lacks_its_line_break_is_kept(path):
    path.write_bytes(LINE + LATER.rstrip())
    MetricsLog(path, 9, writes=True)
    assert path.read_bytes() == LINE + LATER


def test_later_entries_are_dropped_and_unreadable_lines_among_them_are_kept(path):
    path.write_bytes(LINE + b"?\n" + LATER + b"?\n" + LATER)
    assert MetricsLog(path, 8, writes=True).last == ENTRIES[0]
    assert path.read_bytes() == LINE + b"?\n" + b"?\n"


def test_a_process_that_does_not_write_changes_and_prints_nothing(path, capsys):
    content = LINE + b"?\n" + LATER + b"torn"
    path.write_bytes(content)
    assert MetricsLog(path, 1, writes=False).last == ENTRIES[0]
    assert path.read_bytes() == content
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", UNTRUSTED)
def test_a_number_that_no_run_logs_is_missing_and_stays_in_the_file(path, number):
    line = f'{{"step": 9, "elapsed_s": {number}, "train/loss": {number}, "lr": 0.5}}\n'.encode()
    path.write_bytes(LINE + line)
    assert read_metrics(path) == [ENTRIES[0], {"step": 9, "lr": 0.5}]
    log = MetricsLog(path, 9, writes=True)
    assert log.elapsed_s == elapsed_s(read_metrics(path)) == 0.5
    assert path.read_bytes() == LINE + line


def test_an_untrusted_validation_loss_of_the_last_line_is_measured_again(path):
    path.write_bytes(LINE + b'{"step": 9, "elapsed_s": 4.5, "val/loss": 1e999}\n')
    log = MetricsLog(path, 9, writes=True)
    assert "val/loss" not in log.last
    log.extend_last(**{"val/loss": 2.0})
    assert read_metrics(path) == [ENTRIES[0], ENTRIES[1] | {"val/loss": 2.0}]


def test_null_stays_null(path):
    path.write_bytes(b'{"step": 9, "elapsed_s": null, "val/loss": null}\n')
    assert MetricsLog(path, 9, writes=True).last == {"step": 9, "elapsed_s": None, "val/loss": None}


def test_a_negative_or_endless_time_is_missing(path):
    for seconds in (-1, 1e11):
        path.write_text(json.dumps({"step": 1, "elapsed_s": seconds}) + "\n")
        assert elapsed_s(read_metrics(path)) == 0


def test_every_float32_is_a_number(path):
    values = {"train/loss": 3.4028234663852886e38, "grad_norm": -1e-45, "lr": 0}
    path.write_text(json.dumps(ENTRIES[0] | values) + "\n")
    assert read_metrics(path) == [ENTRIES[0] | values]


@contextlib.contextmanager
def largest_file(size):
    """No file may become larger, as on a full disk: what fits is written, then comes an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_that_do_not_fit_on_the_disk_are_written_later_and_named_once(path, capsys):
    log = MetricsLog(path, 0, writes=True)
    entries = [{"step": step, "elapsed_s": 0.5} for step in range(1, 6)]
    log.append(entries[0])
    with largest_file(path.stat().st_size + 5):
        log.append(entries[1])
        log.flush()
        log.append(entries[2])
        assert read_metrics(path) == entries[:1]
        assert path.read_bytes().endswith(b"\n")
    assert log.last == entries[2]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"note: {path} cannot be written (File too large): its new lines are kept" in err
    log.append(entries[3])
    assert read_metrics(path) == entries[:4]
    with largest_file(path.stat().st_size):
        log.append(entries[4])
    assert capsys.readouterr().err.count("cannot be written") == 1
    log.flush()
    assert read_metrics(path) == entries


def test_a_log_that_cannot_be_flushed_does_not_end_the_run(path, monkeypatch, capsys):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log = MetricsLog(path, 0, writes=True)
    log.append(ENTRIES[0])
    monkeypatch.setattr(log_module, "flush", fail)
    log.flush()
    assert "cannot be written (Input/output error)" in capsys.readouterr().err
    assert read_metrics(path) == ENTRIES[:1]
