"""Text files: read from any character on; what is not UTF-8 is named, with what makes it UTF-8."""

import bz2
import gzip
import io
import lzma
import re
import shlex
import zipfile

import pytest

from gpt_jax.errors import UserError
from gpt_jax.text import utf8_files
from gpt_jax.text.utf8_files import text_blocks

TEXT = "Don't panic: \u201cÄrger\u201d costs 5 €, naïve café.\n" * 30


def read(*paths):
    return "".join(text_blocks(paths))


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_text_blocks_start_at_any_character(tmp_path, monkeypatch, block):
    monkeypatch.setattr(utf8_files, "BLOCK_BYTES", block)
    contents = ["a東b", "", "\ufeff\U0001f600é", "\ufeff", "end"]
    files = [tmp_path / str(number) for number in range(5)]
    for path, content in zip(files, contents, strict=True):
        path.write_text(content, encoding="utf-8")
    text = "a東b\n\n\U0001f600é\n\nend"
    for place in range(len(text) + 1):
        left = "".join(text_blocks(files, len(text[:place].encode())))
        assert left == text[place:]


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"ab\xff", "0xff at offset 2"),
        (b"\xef\xbb\xbfab\xff", "0xff at offset 5"),
        (b"ab\xe6\x9d", "0xe6 at offset 2"),
        (b"abc\xe6\x9dabc", "0xe6 at offset 3"),
    ],
)
def test_the_error_locates_invalid_utf8(content, place, block, tmp_path, monkeypatch):
    monkeypatch.setattr(utf8_files, "BLOCK_BYTES", block)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt is not UTF-8: byte {place} is invalid"):
        read(tmp_path / "a.txt")


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("zip", zipped),
        ("zstd", lambda content: b"\x28\xb5\x2f\xfd" + content),
    ],
)
def test_a_compressed_file_is_named_even_if_it_is_utf8(name, pack, tmp_path):
    path = tmp_path / "my text"
    path.write_bytes(pack(b"text" * 10))
    with pytest.raises(UserError, match=rf"compressed \({name}\): unpack .* '{path}' > new\.txt"):
        read(path)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *(("utf-16", "UTF-16"), ("utf-32", "UTF-32")),
        *(("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")),
        *(("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE")),
        *(("cp1252", "WINDOWS-1252"), ("latin-1", "WINDOWS-1252")),
    ],
)
def test_the_error_names_the_encoding_and_a_command_that_converts_it(encoding, name, tmp_path):
    path = tmp_path / "a.txt"
    content = (
        TEXT if encoding != "latin-1" else TEXT.translate({0x201C: "", 0x201D: "", 0x20AC: ""})
    )
    path.write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt is .*UTF-8: ") as error:
        read(path)
    (command,) = re.findall("convert it with (.*)", str(error.value))
    assert shlex.split(command) == [*f"iconv -f {name} -t UTF-8".split(), str(path), ">", "new.txt"]
    assert path.read_bytes().decode(name) == content  # What iconv does.


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_a_byte_order_mark_is_enough(mark, tmp_path):
    (tmp_path / "a.txt").write_bytes(mark)
    with pytest.raises(UserError, match="is UTF-16, not UTF-8"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("block", [3, 1000])
def test_a_broken_byte_in_utf8_is_not_taken_for_another_encoding(block, tmp_path, monkeypatch):
    monkeypatch.setattr(utf8_files, "BLOCK_BYTES", block)
    (tmp_path / "a.txt").write_bytes("東京 and more".encode() + b"\xff")
    with pytest.raises(
        UserError, match=r"invalid; to leave out such bytes, .* iconv -c -f UTF-8 -t"
    ):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["\0" * 100, "a\0b", "PK", "BZh", "\0a" * 3, "東" * 10 + "\0" * 3])
def test_utf8_that_only_looks_odd_is_read(text, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt") == text


def test_what_cannot_be_opened_is_an_error(tmp_path, mkfifo):
    mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nothing", "."):
        with pytest.raises(UserError, match=r"cannot be read \(.*\): check it"):
            read(tmp_path / name)
