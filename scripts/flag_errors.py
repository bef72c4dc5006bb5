"""What is wrong with a command line or a config file, in one sentence."""

import difflib
import re
from pathlib import Path

from absl import flags

from gpt_jax.config import SECTIONS
from gpt_jax.config.table import section_rows
from gpt_jax.errors import UserError
from gpt_jax.training.display import short_path

TINY = Path(__file__).parent.parent / "configs" / "tiny.py"
OURS = f"{UserError.__module__}.{UserError.__name__}: "  # Before its sentence in a traceback.
# The words of absl and Python about a value, and ours.
VALUES = {
    "invalid literal for int": "is not a whole number in digits: give one such as 5000",
    "could not convert string to float": "is not a number: give one such as 0.003",
    "Non-boolean argument": "is neither true nor false: give one of them",
}


def sentence(error: Exception, config_file: str | Path, takes_config: bool = True) -> str:
    """The error in one sentence. One that is not about a flag names the config file.

    If a flag's error contains a traceback, the config file raised it.
    """
    lines = re.split(r"\n|\\n", str(error).strip())  # Some errors quote others with "\\n".
    last = lines[-1].strip() or repr(error)
    last = last.strip("'") if last.count("'") % 2 else last
    if isinstance(error, flags.Error) and "Traceback" not in str(error):
        setting = _setting(error) if takes_config else ""
        return setting or _value(last) or f"{last.rstrip('.')} (--help shows all flags)"
    if known := _missing(str(config_file)) or _variant(str(config_file), last):
        return known
    return f"{config_file} cannot be read as a config file ({last}): correct it"


def _variant(config_file: str, last: str) -> str:
    """A sentence about what follows the colon in --config=gpt2.py:small; else empty."""
    if last.startswith(OURS):
        return f"--config={config_file}: {last.removeprefix(OURS)}"
    if "get_config() takes 0 positional arguments but 1 was given" in last:
        path = config_file.partition(":")[0]
        return f"{path} has no sizes to choose from: leave out what follows its name in --config"
    return ""


def _value(message: str) -> str:
    """A sentence about a value of the wrong type; empty for other errors."""
    for words, rule in VALUES.items():
        if match := re.fullmatch(rf"flag (.*?): .*{words}.*", message):
            return f"{match[1]} {rule}"
    return ""


def _setting(error: flags.Error) -> str:
    """A sentence about a flag such as --steps or --train.steps, whose name is a setting's."""
    given = getattr(error, "flagname", "")
    for name in (row[0] for section in SECTIONS for row in section_rows(section)):
        if given in (name, name.partition(".")[2]):
            return f"--{given} does not exist: did you mean --config.{name}?"
    return ""


def _missing(config_file: str) -> str:
    """A sentence with the nearest config file if this one does not exist; else empty."""
    path, colon, argument = config_file.partition(":")
    if Path(path).exists() and not Path(path).is_dir():
        return ""
    folders = dict.fromkeys((Path(path).absolute().parent, TINY.parent))
    known = {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}
    near = difflib.get_close_matches(Path(path).stem, known, n=1)
    if near:
        file = short_path(known[near[0]], 200)
        return f"there is no file {path!r}: did you mean --config={file}{colon}{argument}?"
    recipes = ", ".join(short_path(file, 200) for file in sorted(TINY.parent.glob("*.py")))
    return f"there is no file {path!r}: choose one of {recipes}, or write a file like them"
