"""What all scripts share: flags, --help, and one sentence instead of a traceback."""

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import early_exit
import flag_errors
from absl import flags
from flag_errors import TINY
from ml_collections import config_flags
from rich.console import Console

from gpt_jax.config import Config, check_field, from_config_dict
from gpt_jax.errors import UserError, out_of_memory
from gpt_jax.files import expanded, remove_unfinished, replacing, special_kind
from gpt_jax.training.display import facts, harmless
from gpt_jax.training.stopping import SIGNALS, handling

BAD_INPUT = 2
CLOSED_PIPE = 141  # What a shell reports for a program that SIGPIPE ended.

# A flag: name, type, default and meaning. The type is str, int, float, bool, list (a text that can
# be given several times), or the tuple of the words that may be given.
Flag = tuple[str, Any, Any, str]
WORKDIR: Flag = ("workdir", str, "", "Folder of the run; default: the newest run in runs/.")
STEP: Flag = ("step", str, "best", "Checkpoint: best (by validation loss), latest, or a step.")
TASKS = ("play", "sums")  # Of tuning/tasks, which would load JAX.
TYPES: dict[type, Callable[..., object]] = {
    **{str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float},
    **{bool: flags.DEFINE_boolean, list: flags.DEFINE_multi_string},
}


def run(
    main: Callable[[flags.FlagValues, list[str]], int | None],
    own_flags: Sequence[Flag],
    argv: Sequence[str],
    usage: str,
    takes_config: bool = False,
    takes_words: bool = False,
) -> int:
    """Reads the flags and calls `main` with them and with the words that are not flags.

    Args:
      argv: the command line; the script's name comes first.
      usage: what --help prints above the flags.
      takes_config: whether --config and its overrides are allowed.
      takes_words: whether words that are not flags are allowed.

    Returns: the exit status: what `main` returns or 0; 2 for an error that the user can correct
      (one sentence on stderr); 128 plus the number of the signal that ended it, such as 130 after
      Ctrl-C; 141 if the reader of standard output closed it.
    """
    _prepare_streams()
    try:
        with handling(_interrupt):
            values, words = _parse(own_flags, list(argv), takes_config)
            if words and not takes_words:
                raise UserError(f"{words[0]!r} is not a flag: see --help")
            if values.help:
                print(f"{usage}\nFlags:\n{flags_help(values)}")
                status = 0
            else:
                status = main(values, words) or 0
            sys.stdout.flush()
    except BrokenPipeError:  # As in `sample.py | head`: the reader wants no more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        if not (sentence := _explained(error)):
            raise
        tell(f"error: {sentence}")
        return BAD_INPUT
    except early_exit.Interrupted as interrupted:
        tell("\ninterrupted")
        return interrupted.status
    return status


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Handles the first signal: the script cleans up and ends. A second one ends it at once."""
    if early_exit.is_in_a_library(frame):
        remove_unfinished()
        early_exit.leave(signum)
    for each in SIGNALS:
        signal.signal(each, early_exit.leave)
    raise early_exit.Interrupted(signum)


VALUES = {"int": "N", "float": "X", "string": "TEXT", "multi string": "TEXT"}


def flags_help(values: flags.FlagValues) -> str:
    """The script's own flags in the order of their definition, for 80 columns."""
    own = [values[name] for name in values if "." not in name and name not in ("h", "help")]
    return facts([(f"  {_form(flag)}", _meaning(flag)) for flag in own], 80, 28)


def _form(flag: flags.Flag) -> str:
    """How a flag is given, such as --steps=N."""
    if flag.boolean:
        return f"--{flag.name}"
    if isinstance(flag, flags.EnumFlag):
        return f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    return f"--{flag.name}={VALUES.get(flag.flag_type(), 'FILE')}"


def _meaning(flag: flags.Flag) -> str:
    """What a flag does, without absl's additions, and its default if it has one."""
    text = re.sub(r"^<.*?>: |;\s+repeat this option.*", "", flag.help, flags=re.DOTALL)
    has_default = type(flag.default) in (int, float, str) and flag.default != ""
    return f"{text} Default: {flag.default}." if has_default else text


def say(text: str, end: str = "\n") -> None:
    """Prints a result on standard output: on a terminal without control characters."""
    print(harmless(text, sys.stdout.isatty()), end=end, flush=True)


@contextmanager
def new_file(flag: str, path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write, which replaces the one at `path` at the end of the block.

    Raises:
      UserError: with the flag that named it, if it cannot be written. Found before the block.
    """
    path = expanded(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"--{flag}={path} cannot be written ({error.strerror}): name a file in a folder that "
            "exists and may be written to"
        ) from error


def tell(line: str) -> None:
    """Prints a message, which is not a result, on stderr if that is still open. See `say`."""
    try:
        print(harmless(line, sys.stderr.isatty()), file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class ResultConsole(Console):
    """Standard output for tables. They never wrap in a file or a pipe."""

    def __init__(self) -> None:
        # Only a terminal gets escape sequences, even if FORCE_COLOR is set.
        super().__init__(markup=False, highlight=False, force_terminal=sys.stdout.isatty())
        if not self.is_terminal:
            self.width = 1000

    def on_broken_pipe(self) -> None:
        raise  # `run` handles it for all scripts.


def _prepare_streams() -> None:
    """Replaces closed streams by silent ones. Characters a terminal lacks become "?"."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _explained(error: Exception) -> str:
    """The error in one sentence: what is wrong and what to do. Empty for one that is our fault."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError):
        return out_of_memory(error)
    what = error.filename or "standard output or another file"
    return (  # A problem with the user's disk that no module expects.
        f"{what} cannot be read or written ({error.strerror or error}): check its folder, its "
        "permissions and the space left"
    )


def _parse(
    own_flags: Sequence[Flag], argv: list[str], takes_config: bool
) -> tuple[flags.FlagValues, list[str]]:
    """The flags of the command line, and the words that are not flags.

    Raises:
      UserError: for an unknown flag or config field, a value of the wrong type, or a broken config
        file.
    """
    for word in argv[1:]:
        if field := re.match(r"--?(?:no)?config\.(\w*)\.?(\w*)", word):
            check_field(*field.groups())
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        if takes_config:
            _define_config(values, argv)
        _define_flags(values, own_flags)
        return values, values(argv)[1:]
    except Exception as error:  # A config file is Python and can raise anything.
        if "config" not in values and not isinstance(error, flags.Error):
            raise
        files = _config_files(argv) or [str(TINY)]
        raise UserError(flag_errors.sentence(error, files[-1], takes_config)) from error


def _config_files(argv: list[str]) -> list[str]:
    """The values of --config in a command line."""
    return re.findall(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(argv))


def _define_flags(values: flags.FlagValues, own_flags: Sequence[Flag]) -> None:
    """Adds a script's own flags to `values`."""
    for name, kind, default, meaning in own_flags:
        if isinstance(kind, tuple):
            flags.DEFINE_enum(name, default, kind, meaning, flag_values=values)
        else:
            TYPES[kind](name, default, meaning, flag_values=values)


def _define_config(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds --config and its overrides. The default is the tutorial's model."""
    for file in _config_files(argv):
        if kind := special_kind(Path(file.partition(":")[0])):
            raise UserError(f"--config={file} is {kind}: name a file, such as configs/tiny.py")
    # The loader would reuse the module of the last config file that this process loaded.
    sys.modules.pop("config_config", None)
    config_flags.DEFINE_config_file(
        "config",
        str(TINY),
        "A recipe from configs/. --config.train.steps=500 changes one of its settings. Default: "
        "configs/tiny.py.",
        flag_values=values,
        sys_argv=argv,
    )


def config_file(values: flags.FlagValues) -> str:
    """The value of --config: a path, perhaps with `:argument` after it."""
    return config_flags.get_config_filename(values["config"])


def read_config(values: flags.FlagValues) -> Config:
    """The checked configuration of --config and its overrides.

    Raises:
      UserError: for a config file that cannot be read or a value that cannot work.
    """
    try:
        config = values.config
        config.keys()  # Raises if the file was not found.
    except Exception as error:
        raise UserError(flag_errors.sentence(error, config_file(values))) from error
    return from_config_dict(config)
