"""What every script's `main` shares: its flags, and one sentence instead of a traceback."""

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from gpt_jax.config import Config, check_field, from_config_dict
from gpt_jax.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
TINY = Path(__file__).parent.parent / "configs" / "tiny.py"


def run(
    main: Callable[[flags.FlagValues, list[str]], int | None],
    define_flags: Callable[[flags.FlagValues, list[str]], None],
    argv: Sequence[str],
    usage: str,
    takes_words: bool = False,
) -> int:
    """Reads the flags and calls `main` with them and with the words that are no flags.

    Args:
      define_flags: adds the script's flags to the values it is given, for the command line `argv`.
      argv: the command line, the script's name first.
      usage: what --help prints above the flags.
      takes_words: whether such words are allowed.

    Returns: the exit status: 0, 2 for what the user can mend (said in one sentence on stderr), 130
      after Ctrl-C, or 143 after SIGTERM where that was taken over.
    """
    _prepare_streams()
    try:
        values, words = _parse(define_flags, list(argv))
        if words and not takes_words:
            raise UserError(f"{words[0]!r} is not a flag: see --help")
        if values.help:
            print(f"{usage}\n{values.get_help()}")
            status = 0
        else:
            status = main(values, words) or 0
        sys.stdout.flush()
    except (UserError, OSError) as error:
        tell(f"error: {_explained(error)}")
        return BAD_INPUT
    except KeyboardInterrupt:
        tell("\ninterrupted")
        return INTERRUPTED
    return status


def tell(line: str) -> None:
    """Prints what is no result on stderr, if that is still open."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class ResultConsole(Console):
    """For tables on standard output: as wide as they are where nobody watches them wrap."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)
        if not self.is_terminal:
            self.width = 1000

    def on_broken_pipe(self) -> None:
        raise  # `run` answers it for every script alike.


def _prepare_streams() -> None:
    """Streams that were closed outright become silent; a terminal without Chinese shows "?"."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _explained(error: UserError | OSError) -> str:
    """One sentence: what is wrong, and what to do."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return (
            "standard output was closed before all was written: let its reader read to the end, or "
            "write to a file"
        )
    return (  # Something about the user's disk that no module foresaw.
        f"{error.filename or 'a file'} cannot be read or written ({error.strerror or error}): "
        "check its folder, its permissions and the space left"
    )


def _parse(
    define_flags: Callable[[flags.FlagValues, list[str]], None], argv: list[str]
) -> tuple[flags.FlagValues, list[str]]:
    """The flags of the command line, and the words that are none.

    Raises:
      UserError: for an unknown flag or config field, a value of the wrong type, or a config file
        that is broken.
    """
    for word in argv[1:]:
        if field := re.match(r"--?(?:no)?config\.(\w*)\.?(\w*)", word):
            check_field(*field.groups())
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        define_flags(values, argv)
        return values, values(argv)[1:]
    except Exception as error:  # The config file is the user's Python: anything can go wrong in it.
        if "config" not in values and not isinstance(error, flags.Error):
            raise
        raise UserError(_sentence(error, argv)) from error


def define_config(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds --config and its overrides. The default is the tutorial's model."""
    # The loader runs a file into the module it made for the last one, if this process made one.
    sys.modules.pop("config_config", None)
    config_flags.DEFINE_config_file(
        "config",
        str(TINY),
        "A recipe from configs/. Any field can be changed behind it: --config.train.steps=500.",
        flag_values=values,
        sys_argv=argv,
    )


def config_file(values: flags.FlagValues) -> str:
    """What --config says: a path, perhaps with `:argument` behind it."""
    return config_flags.get_config_filename(values["config"])


def read_config(values: flags.FlagValues, argv: Sequence[str]) -> Config:
    """The checked configuration of --config and its overrides.

    Raises:
      UserError: for a config file that cannot be read or a value that cannot work.
    """
    try:
        config = values.config
        config.keys()  # A file that was not found is only told of now.
    except Exception as error:
        raise UserError(_sentence(error, argv)) from error
    return from_config_dict(config)


def _sentence(error: Exception, argv: Sequence[str]) -> str:
    """The last line of an error, which says what is wrong, after the name of the config file.

    A flag's own error stands alone; one with a traceback in it came out of the config file.
    """
    lines = re.split(r"\n|\\n", str(error).strip())  # Some errors quote another, line ends too.
    last = lines[-1].strip() or repr(error)
    last = last.strip("'") if last.count("'") % 2 else last
    if isinstance(error, flags.Error) and "Traceback" not in str(error):
        return f"{last.rstrip('.')} (--help shows all flags)"
    named = re.findall(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(argv)) or [TINY]
    return f"{named[-1]} cannot be read as a config file ({last}): mend it"
