"""A file is opened without waiting, replaced whole or not at all, named as its user means."""

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from gpt_jax.errors import UserError
from gpt_jax.files import absolute, cache_folder, open_file, read_json, replacing, special_kind


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush a folder")
def test_a_file_is_flushed_before_its_name_and_the_name_before_replacing_ends(
    tmp_path, monkeypatch
):
    """Else a power cut leaves an empty file, or the old one."""
    done, fsync, replace = [], os.fsync, Path.replace

    def flush(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("flush the folder" if is_folder else "flush the file")
        fsync(descriptor)

    def rename(path, target):
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert done == ["flush the file", "rename", "flush the folder"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_pipe_that_somebody_reads_is_written_and_another_is_refused(tmp_path, mkfifo):
    mkfifo(path := tmp_path / "pipe")
    with pytest.raises(OSError), replacing(path):
        pass
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.closing(os.fdopen(reader, "rb")) as read, replacing(path) as file:
        file.write(b"text")
        file.flush()
        assert read.read(4) == b"text"
    assert special_kind(path) == "a pipe"


@pytest.fixture
def odd(tmp_path, mkfifo):
    """Something that is not a file, by its kind."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "a socket"))
        mkfifo(tmp_path / "a pipe")
        (tmp_path / "a device").symlink_to("/dev/zero")
        (tmp_path / "a folder").mkdir()
        (tmp_path / "a loop").symlink_to(tmp_path / "a loop")
        yield lambda kind: tmp_path / kind


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
def test_only_files_are_opened(odd, kind):
    assert special_kind(odd(kind)) == kind
    with pytest.raises(OSError, match=rf"it is {kind}, not a file"):
        open_file(odd(kind))


@pytest.mark.parametrize("kind", ["a folder", "a loop", "nothing"])
def test_what_cannot_be_opened_is_an_error_at_once(odd, kind):
    assert special_kind(odd(kind)) == ""
    with pytest.raises(OSError):
        open_file(odd(kind))


def test_a_link_to_itself_is_replaced(odd):
    with replacing(odd("a loop")) as file:
        file.write(b"text")
    assert odd("a loop").read_text() == "text"


ODD_JSON = [b"", b"{", b"[]", b"1", b"null", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000]
ODD_JSON += [b'{"a":' * 100_000, b"9" * 10_000]


@pytest.mark.parametrize("content", ODD_JSON)
def test_odd_json_is_a_value_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "file")


def test_a_path_is_what_its_user_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    assert absolute("~/a") == tmp_path / "me" / "a"
    assert absolute("b/../c/") == tmp_path / "c"
    assert absolute("./~nobody-here/a") == tmp_path / "~nobody-here" / "a"


@pytest.mark.parametrize("path", ["~nobody-here/a", "~nobody-here", "a\0b"])
def test_a_path_that_cannot_be_meant_is_refused(path):
    with pytest.raises(UserError, match=r"give the path without ~|remove the character of code 0"):
        absolute(path)


def test_the_cache_folder_is_chosen_or_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("GPT_JAX_CACHE", "~nobody-here/cache")
    with pytest.raises(UserError, match="~nobody-here/cache begins with a home folder"):
        cache_folder()
    monkeypatch.delenv("GPT_JAX_CACHE")
    assert cache_folder().name == "gpt_jax"


def test_without_a_home_folder_there_is_no_cache_folder(monkeypatch):
    monkeypatch.delenv("GPT_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OSError, match="there is no home folder: set GPT_JAX_CACHE"):
        cache_folder()
