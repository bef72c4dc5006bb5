"""Trials of settings, flags and calls: names from their tables, values odd or extreme."""

import dataclasses
import importlib
import inspect
import random
import re
from typing import Any

import gpt_jax
from gpt_jax.config import SECTIONS
from gpt_jax.errors import UserError
from hostile.harm import ODD_FILES, ODD_JSON, ODD_NUMBERS, ODD_TEXTS
from hostile.trial import Bad, Trial, settings

SCRIPTS = (
    "train",
    "train",
    "train",
    "sample",
    "evaluate",
    "compare",
    "export",
    "prepare",
    "benchmark",
)
ODD_WORDS = (
    "5k",
    "1e3",
    "0x10",
    "1_000",
    "",
    " ",
    "٣",
    "None",
    "[1]",
    "1,5",
    "9" * 5000,
    "--",
    "1e999",
)
PATHS = (
    *("pipe", "loop", "folder", "null", "full", "text", "text/x", "nothing", "nothing/x/y", "."),
    *("-", "~nobody/x", "~", "a" * 300, "\udcff", "x\ny", "a[0]*", ""),
)
BROKEN = (
    "--nonsense",
    "--nonsense=1",
    "--",
    "-",
    "word",
    "--config.train",
    "--config=x.py",
    "--=",
    "",
)
FIELDS = {
    f"config.{section}.{field.name}": field
    for section, group in SECTIONS.items()
    for field in dataclasses.fields(group)
}


def flags(t: Trial) -> None:
    """A command with one to three odd settings or flags. If it is refused, the good one works."""
    script, run = t.dice.choice(SCRIPTS), t.folder / "run"
    for name in ("pipe", "loop", "folder", "null", "full"):
        ODD_FILES[name](t.folder / name)
    (t.folder / "text").write_text("The king " * 300)
    good, odd = good_words(script, t), odd_words(script, t.dice)
    done = t.run(script, *good, *odd, patience_s=8.0 if may_be_long(odd) else 0.0)
    if done.status != 2 or done.stopped:
        return
    if left := [path.name for path in t.folder.rglob("*") if path.name.endswith((".part", ".tmp"))]:
        raise Bad(f"the command is refused, but this is left: {left}")
    began = (run / "metrics.jsonl").exists() or (run / "checkpoints").exists()
    if script == "train" and not began and run.exists():
        t.new_run(run)
    if script in ("prepare", "export") and t.run(script, *good).status:
        raise Bad("the corrected command is refused")


def good_words(script: str, t: Trial) -> list[str]:
    """A command line that works. `odd_words` come after it, so they replace its values."""
    if script == "train":
        words = ["--config.train.steps=2", "--workdir=run", "--join_timeout=1"]
        return [*settings(t.base.folder), *words]
    if script == "benchmark":
        return [*settings(t.base.folder), "--steps=2", "--tokens=3"]
    if script == "prepare":
        return [f"--corpus={t.base.folder / 'corpus.txt'}", "--out=out"]
    run = t.copy("finished", "run")
    words = [str(run) if script == "compare" else f"--workdir={run}"]
    return words + ["--out=out"] * (script == "export")


def odd_words(script: str, dice: random.Random) -> list[str]:
    """One to three settings or flags of a script with odd values, and now and then no flag."""
    own = {f"{name}": kind for name, kind, *_ in importlib.import_module(script).FLAGS}
    words = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        if script in ("train", "benchmark") and dice.random() < 0.7:
            name = dice.choice([*FIELDS])
            words.append(f"--{name}={odd_setting(FIELDS[name], dice)}")
        else:
            name = dice.choice([*own])
            words.append(f"--{name}={odd_value(own[name], dice)}")
    return words + ([dice.choice(BROKEN)] if dice.random() < 0.05 else [])


def odd_setting(field: dataclasses.Field[Any], dice: random.Random) -> str:
    """A value for a setting: often one that its rule allows."""
    rule = field.metadata["rule"]
    if "one of " in rule.text and dice.random() < 0.7:
        return dice.choice(rule.text.removeprefix("one of ").split(", "))
    allowed = [n for n in ODD_NUMBERS if type(n) is type(field.default) and rule.holds(n)]
    if allowed and dice.random() < 0.75:
        return str(dice.choice(allowed))
    return odd_value(type(field.default), dice)


def odd_value(kind: Any, dice: random.Random) -> str:
    """A value for a flag: mostly of its kind, sometimes of another."""
    pools: dict[Any, tuple[Any, ...]] = {
        bool: ("true", "false", "1", "0", "yes", "", "None"),
        int: tuple(number for number in ODD_NUMBERS if type(number) is int),
        float: ODD_NUMBERS,
        str: (*PATHS, *ODD_TEXTS),
        list: ("train.steps", "model.n_layer", "x", ""),
    }
    pool = kind if isinstance(kind, tuple) else pools[kind]
    value = dice.choice(pool if dice.random() < 0.85 else (*ODD_WORDS, *ODD_TEXTS))
    return str(value).replace("\0", "").replace("\ud800", "\udcff")  # No command line has these.


def may_be_long(words: list[str]) -> bool:
    """Whether a command may be right to work for hours or to wait: for large numbers."""
    signs = r"\d\d\d|e\+|mode=start|distributed|interactive"
    return any(re.search(signs, word) for word in words)


def calls(t: Trial) -> None:
    """Ten calls of the Python API with odd arguments: a result, or a clear error."""
    t.run(call_often, str(t.base.folder / "finished"), str(t.dice.getrandbits(32)))


def call_often(folder: str, seed: str) -> int:
    """The calls. An error that is not clear ends the process with a traceback."""
    dice, run = random.Random(seed), gpt_jax.load(folder)
    methods = [n for n in dir(run) if n[0] != "_" and inspect.ismethod(getattr(run, n))]
    good = {"folder": folder, "prompt": "The ", "text": "The king", "max_new_tokens": 3}
    for _ in range(10):
        method = gpt_jax.load if dice.random() < 0.2 else getattr(run, dice.choice(methods))
        names = [*inspect.signature(method).parameters]
        extra = ["max_new_tokens", "top_k", "seed", "stop"] if "options" in names else []
        given = {name: good[name] for name in names + extra if name in good}
        odd = dice.choice([name for name in names + extra if name != "options"])
        value = dice.choice((*ODD_JSON, b"The", object(), [1, 2], 1j))
        if (odd, value) != ("max_new_tokens", 2**31 - 1):  # Who asks for so many gets them.
            call(method, given | {odd: value})
    return 0


def call(method: Any, given: dict[str, Any]) -> None:
    """One call. It stands on stdout above its traceback."""
    print(method.__name__, {name: repr(value)[:60] for name, value in given.items()}, flush=True)
    try:
        result = method(**given)
        for _ in zip(range(20), result if inspect.isgenerator(result) else (), strict=False):
            pass
    except UserError:
        return
    except TypeError as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is not None and "site-packages" in last.tb_frame.f_code.co_filename:
            raise  # Raised deep inside JAX or NumPy, it does not say which argument is wrong.
