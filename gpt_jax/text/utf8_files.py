"""Text files: read as UTF-8, block by block; or what a file is instead, and what makes it UTF-8."""

import codecs
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from gpt_jax.errors import UserError
from gpt_jax.files import open_file

BLOCK_BYTES = 2**20
HEAD = 4096  # Bytes by which a file is judged.

# How files begin that are not text: a program's name for the kind, and what unpacks it.
PACKED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    **{b"BZh%d1AY&SY" % level: ("bzip2", "bzip2 -dc") for level in range(1, 10)},
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"PK\x03\x04": ("zip", "unzip -p"),
}
# Byte-order marks. That of UTF-32 begins like that of UTF-16.
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}
MARKS |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# Which of four bytes are mostly 0 in a text of mostly Latin letters without a mark.
ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}
MOSTLY = 0.7


def text_blocks(files: Iterable[Path], start: int = 0) -> Iterator[str]:
    """The text of some files in blocks, joined by line breaks.

    Line endings stay as they are. A byte-order mark is not part of the text. Raises UserError if a
    file cannot be read or is not UTF-8.

    Args:
      start: position in the UTF-8 bytes of the whole text at which to start, between characters.
    """
    for number, path in enumerate(files):
        if number:
            yield "\n"[start:]
            start = max(start - 1, 0)
        try:
            with open_file(path) as file:
                _check_is_text(file, path)
                mark = len(codecs.BOM_UTF8) * (file.read(3) == codecs.BOM_UTF8)
                skipped = min(start, file.seek(0, os.SEEK_END) - mark)
                file.seek(mark + skipped)
                yield from _decoded(file, path)
                start -= skipped
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): check it and its permissions"
            ) from error


def _decoded(file: BinaryIO, path: Path) -> Iterator[str]:
    """The rest of a file as text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    has_utf8 = False
    try:
        while block := file.read(BLOCK_BYTES):
            has_utf8 |= not (text := decoder.decode(block)).isascii()
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        start = file.tell() - len(error.object) + error.start
        has_utf8 |= not error.object[: error.start].isascii()
        raise _not_utf8(path, error.object[error.start], start, has_utf8) from error


def _check_is_text(file: BinaryIO, path: Path) -> None:
    """Raises UserError if a file begins like one that is compressed, or in UTF-16 or UTF-32.

    Without a mark, these two can be valid UTF-8, with a character of code 0 after each letter. The
    file is read from its beginning, and is there again afterwards.
    """
    head = file.read(HEAD)
    file.seek(0)
    for start, (name, command) in PACKED.items():
        if head.startswith(start):
            raise UserError(
                f"{path} is compressed ({name}): unpack it with {command} {_quoted(path)} > new.txt"
            )
    if encoding := _encoding(head):
        raise UserError(f"{path} is {encoding}, not UTF-8: {_conversion(path, encoding)}")


def _encoding(head: bytes) -> str:
    """The encoding with wide characters in which a text begins; empty if there is none."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    if len(head) < 8:
        return ""
    zeros = tuple(head[i::4].count(0) > MOSTLY * len(head[i::4]) for i in range(4))
    return ZEROS.get(zeros, "")


def _not_utf8(path: Path, byte: int, offset: int, has_utf8: bool) -> UserError:
    """The error for a byte that is not UTF-8, at an offset in a file.

    Args:
      has_utf8: whether the file holds characters of several bytes in UTF-8 before this byte.
    """
    if has_utf8:
        remedy = f"to leave out such bytes, {_conversion(path, 'UTF-8', ' -c')}"
    else:
        remedy = f"if it is Latin-1 or Windows-1252, {_conversion(path, 'WINDOWS-1252')}"
    return UserError(
        f"{path} is not UTF-8: byte {byte:#04x} at offset {offset} is invalid; {remedy}"
    )


def _conversion(path: Path, encoding: str, option: str = "") -> str:
    return f"convert it with iconv{option} -f {encoding} -t UTF-8 {_quoted(path)} > new.txt"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
