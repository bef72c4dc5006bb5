"""What can happen to a file or a folder, drawn from a seed, and how to undo it."""

import contextlib
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.0, -0.0, 0.5, 1.5, 1e-300, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
)
ODD_TEXTS = (
    *("", " ", "a", "nan", "null", "..", "../../x", "~nobody/x", "~", "a" * 1000, "%s{0}$HOME"),
    *("\ud800", "\0", "\x1b[31m", "\u202e", "ä", "e\u0301", "\U0001f600", "\ufeff", "*", "[", "\\"),
)
ODD_JSON = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [None], [[]], {"a": {}}, ["a", 1])
ODD_NAMES = (
    *(
        "999",
        "0",
        "-1",
        "00070",
        "1e3",
        "٣",
        "70",
        "70.orbax-checkpoint-tmp",
        "70 (copy)",
        "latest",
    ),
    *(".DS_Store", ".hidden", "a b", "x\ny", "\udcff", "[0]", "*", "a" * 200, "damaged-70", "tmp"),
    *("config.json.1.part", "index.json", "commit_success.txt", "state", "metrics", "d", "-x"),
)


def flip(path: Path, dice: random.Random) -> str:
    """Flips a bit, or replaces a byte."""
    content = bytearray(path.read_bytes())
    place = dice.randrange(len(content) or 1)
    if content:
        content[place] ^= dice.choice((1 << dice.randrange(8), dice.randrange(1, 256)))
        path.write_bytes(content)
    return f"at byte {place}"


def damage(path: Path, dice: random.Random) -> str:
    """Cuts off, empties, zeroes or lengthens a file; deletes, doubles or moves a file or folder."""
    if path.is_file() and dice.random() < 0.5:
        content = path.read_bytes()
        cut = content[: dice.randrange(len(content) + 1)]
        changed = dice.choice((cut, cut, b"", b"\0" * len(content), content + b"\0x", content * 2))
        path.write_bytes(changed)
        return f"{len(content)} -> {len(changed)} bytes"
    way = dice.choice(("delete", "move", "double"))
    other = path.with_name(dice.choice((f"{path.name} (copy)", "70", f"{path.name}.bak", ".copy")))
    while os.path.lexists(other):
        other = other.with_name(f"{other.name}_")
    if way == "delete":
        remove(path)
    elif way == "move":
        path.rename(other)
    elif path.is_dir():
        shutil.copytree(path, other)
    else:
        shutil.copyfile(path, other)
    return way if way == "delete" else f"{way} to {other.name}"


def _listen(path: Path) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))  # Its name may be too long.


ODD_FILES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "socket": _listen,
    "dangling": lambda path: path.symlink_to("nothing"),
    "parent": lambda path: path.symlink_to(".."),
    "empty": lambda path: path.write_bytes(b""),
}


def replace(path: Path, dice: random.Random) -> str:
    """Puts something odd in place of a file or folder, or a link to where its content is now."""
    moved = path.with_name(f"{path.name}.moved")
    path.rename(moved)
    name = dice.choice((*ODD_FILES, "link"))
    if name == "link":
        path.symlink_to(moved.name)
    else:
        remove(moved)
        ODD_FILES[name](path)
    return name


def add(folder: Path, dice: random.Random) -> str:
    """Puts something odd into a folder."""
    path, name = folder / dice.choice(ODD_NAMES), dice.choice([*ODD_FILES])
    if not os.path.lexists(path):
        ODD_FILES[name](path)
    return f"{path.name!r} as {name}"


def change_json(path: Path, dice: random.Random) -> str:
    """Changes one place in a JSON file, or in a line of JSON lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = dice.randrange(len(lines))
    if dice.random() < 0.03:
        depth = dice.choice((900, 100_000))
        lines[number], done = "[" * depth + "]" * depth, f"nested {depth:,} deep"
    else:
        tree = [json.loads(lines[number])]  # In a list, so that the whole can be replaced, too.
        done = _change(*dice.choice(_places(tree)), dice)
        lines[number] = json.dumps(tree[0]) if tree else ""
    path.write_text("\n".join(lines), encoding="utf-8")
    return done


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree: the object or list, and the key or index."""
    keys = [*tree] if isinstance(tree, dict) else [*range(len(tree))]
    below = [_places(tree[key]) for key in keys if isinstance(tree[key], dict | list)]
    return [(tree, key) for key in keys] + [place for places in below for place in places]


def _change(tree: Any, key: Any, dice: random.Random) -> str:
    """Deletes, renames, wraps, nudges or replaces the value at a place."""
    old, way = tree[key], dice.randrange(8)
    if way == 0:
        del tree[key]
        return f"deleted {key!r}"
    if way == 1 and isinstance(tree, dict):
        tree[f"{key}_"] = tree.pop(key)
        return f"renamed {key!r}"
    if way == 2:
        tree[key] = [old]
    elif way == 3 and isinstance(old, int | float):
        tree[key] = old + dice.choice((1, -1))
    elif way == 4 and isinstance(old, str):
        tree[key] = old[1:] + dice.choice("aZ0ä")
    else:
        tree[key] = dice.choice(ODD_JSON)
    return f"{key!r}: {str(old)[:40]!r} -> {str(tree[key])[:40]!r}"


def remove(path: Path) -> None:
    """Removes whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Everything in a folder: the content of files, the target of links, the kind of the rest."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            content = f"link to {os.readlink(path)}".encode("utf-8", "surrogateescape")
        elif path.is_file():
            content = path.read_bytes()
        else:
            content = b"folder" if path.is_dir() else b"special"
        found[str(path.relative_to(folder))] = content
    return found


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """The names in which two snapshots differ."""
    return sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))


def undo(folder: Path, untouched: Path, names: list[str]) -> None:
    """Puts back what is at these names in the untouched folder, and checkpoints set aside."""
    for name in names:
        if not (untouched / name).is_dir() or (folder / name).is_symlink():
            remove(folder / name) if os.path.lexists(folder / name) else None
    for aside in (folder / "checkpoints").glob("damaged-*"):
        step = aside.name.split("-")[1]
        if not (aside.parent / step).exists():
            aside.rename(aside.parent / step)
    for name in names:
        if (untouched / name).is_dir():
            if not (folder / name).is_dir():
                remove(folder / name)
            (folder / name).mkdir(parents=True, exist_ok=True)
        elif (untouched / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(untouched / name, folder / name)
