"""What every script's `main` shares: its flags, and one sentence instead of a traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import flags

from gpt_jax.config import UserError

BAD_INPUT = 2
INTERRUPTED = 130


def run(
    main: Callable[[flags.FlagValues], None],
    define_flags: Callable[[flags.FlagValues], None],
    argv: Sequence[str],
    usage: str,
) -> int:
    """Reads the flags and calls `main` with them.

    Args:
      define_flags: adds the script's flags to the values it is given.
      argv: the command line, the script's name first.
      usage: what --help prints above the flags.

    Returns: the exit status: 0, 2 for what the user can mend (said in one sentence on stderr), or
      130 after Ctrl-C.
    """
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    define_flags(values)
    try:
        _parse(values, argv)
        if values.help:
            print(f"{usage}\n{values.get_help()}")
        else:
            main(values)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parses the command line.

    Raises:
      UserError: for an unknown flag or config field, a value of the wrong type, or a config file
        that is missing or broken.
    """
    try:
        rest = values(argv)[1:]
    except Exception as error:  # The config file is the user's Python: anything can go wrong in it.
        raise UserError(" ".join(str(error).split()) or repr(error)) from error
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: see --help")
