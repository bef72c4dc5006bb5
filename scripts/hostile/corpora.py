"""Texts that are odd, and files that are none."""

import bz2
import gzip
import random
from collections.abc import Callable
from pathlib import Path

from hostile.harm import ODD_FILES

PLAIN = "The king is dead, long live the king! äö 中文\n"
Content = Callable[[random.Random], bytes]
CONTENTS: dict[str, Content] = {
    "plain": lambda dice: (PLAIN * 300).encode(),
    "random": lambda dice: dice.randbytes(dice.choice((1, 50, 5000))),
    "utf-16": lambda dice: (PLAIN * 99).encode(dice.choice(("utf-16", "utf-16-le", "utf-16-be"))),
    "utf-32": lambda dice: (PLAIN * 99).encode(dice.choice(("utf-32", "utf-32-le"))),
    "latin-1": lambda dice: ("café naïve\n" * 500).encode("latin-1"),
    "compressed": lambda dice: dice.choice((gzip.compress, bz2.compress))(PLAIN.encode() * 999),
    "short": lambda dice: (PLAIN * 9).encode()[: dice.randrange(300)],
    "one character": lambda dice: (
        dice.choice((b"a", b"\n", b"\0", b" ")) * dice.choice((1, 20_000))
    ),
    "no spaces": lambda dice: "中文字".encode() * dice.choice((200, 50_000)),
    "controls": lambda dice: bytes(range(128)) * 50,
    "escapes": lambda dice: b"\x1b[31mred\x1b]0;title\x07" * 300,
    "line ends": lambda dice: b"one\r\ntwo\rthree\n\x0b\x0c\xe2\x80\xa8" * 300,
    "mark": lambda dice: (
        b"\xef\xbb\xbf" * dice.choice((1, 2)) + PLAIN.encode() * dice.choice((0, 99))
    ),
    "surrogates": lambda dice: b"a" * 3000 + b"\xed\xa0\x80" + b"b" * 50,
    "overlong": lambda dice: b"a" * 70_000 + b"\xc0\xaf",
    "cut off": lambda dice: PLAIN.encode() * 99 + b"\xe4\xb8",
    "distinct": lambda dice: "".join(
        map(chr, range(0x4E00, 0x4E00 + dice.choice((50, 9000))))
    ).encode(),
    "joined": lambda dice: "\U0001f468\u200d\U0001f469\u202e\u0301".encode() * 500,
    "markers": lambda dice: b"<|endoftext|>" * 900 + b"text<|endof" * 300,
    "zeros": lambda dice: b"\0" * 9000,
    "json": lambda dice: b'{"text": "\\ud800", "n": 1e999}\n' * 300,
    "picture": lambda dice: b"\x89PNG\r\n\x1a\n" + dice.randbytes(4000),
}


def write(folder: Path, dice: random.Random) -> Path:
    """Writes an odd corpus into a folder: a file, a folder or glob of files, or something else."""
    name, way = (
        dice.choice([*CONTENTS]),
        dice.choice(("file", "file", "file", "folder", "glob", "odd")),
    )
    path = folder / f"{way} of {name}"
    if way == "file":
        path.write_bytes(CONTENTS[name](dice))
    elif way == "odd":
        ODD_FILES[odd := dice.choice([*ODD_FILES])](path := folder / odd)
    else:
        path.mkdir()
        for number in range(dice.randint(1, 3)):
            (path / f"{number}.txt").write_bytes(CONTENTS[dice.choice([*CONTENTS])](dice))
        if dice.random() < 0.5:
            ODD_FILES[dice.choice([*ODD_FILES])](path / "odd.txt")
    return path / "*" if way == "glob" else path
