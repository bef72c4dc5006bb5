"""`sample.py --interactive`: reads prompts and prints their continuations, or answers."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from command_line import say, tell

from gpt_jax.config import INT32, SampleConfig, checked
from gpt_jax.errors import UserError

if TYPE_CHECKING:
    from gpt_jax.api import TrainedModel

SHORT = {"t": "temperature", "k": "top_k", "p": "top_p", "n": "max_new_tokens", "s": "seed"}
TYPES: dict[str, type] = {
    field.name: type(field.default)
    for field in dataclasses.fields(SampleConfig)
    if field.name != "prompt"
} | {"seed": int, "stop": str}

COMPLETES = """This model completes text, it does not chat: type the beginning of one.
  Enter alone     continues the last text"""
ANSWERS = """This model was tuned to answer: type an instruction. It forgets the one before.
  Enter alone     another answer to the last instruction"""
HELP = r"""  \n in a prompt  is a line break
  /t 0.7          temperature (0 = greedy)     /k 40    top-k (0 = all)
  /p 0.9          top-p (1 = all)              /n 200   tokens to add
  /s 5            seed of the next text        /stop X  stop before X
  /show  the settings    /help    /quit (or Ctrl-D)    Ctrl-C stops a text"""


def converse(model: "TrainedModel", settings: dict[str, Any], prompt: str = "") -> None:
    """Reads prompts and commands until the end of input.

    Args:
      settings: seed, stop, and the given options of `TrainedModel.generate`. The seed increases by
        one with every text.
      prompt: continued first, if not empty.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C stops a text only.
    tell_help(model)
    text, line = "", prompt or read_line()
    while line not in (None, "/quit", "/q"):
        try:
            if line.startswith("/"):
                command(model, settings, line[1:])
            elif model.template:
                text = line or text
                answer(model, settings, text)
            else:
                text = complete(model, settings, text, line)
        except UserError as error:
            tell(f"error: {error}")
        line = read_line()


def tell_help(model: "TrainedModel") -> None:
    """Prints what to type."""
    tell(f"{ANSWERS if model.template else COMPLETES}\n{HELP}")


def read_line() -> str | None:
    """The next line, with each typed \\n as a line break; None at the end of input."""
    while True:
        try:
            return _input().strip("\r").replace(r"\n", "\n")
        except EOFError:
            return None
        except KeyboardInterrupt:
            tell("\n(/quit or Ctrl-D leaves)")
        except UnicodeDecodeError as error:
            tell(f"error: this line is not {error.encoding}, at byte {error.start}: type it again")


def _input() -> str:
    """A line of standard input, with a prompt sign if a person types it."""
    if sys.stdin is None:
        raise EOFError
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input("> ")  # Readline must know the prompt sign.
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return input()


def command(model: "TrainedModel", settings: dict[str, Any], line: str) -> None:
    """Runs a command, given without its slash.

    Raises:
      UserError: for an unknown command or a bad value.
    """
    name, _, value = line.partition(" ")
    name = SHORT.get(name, name)
    if name == "show":
        shown = dataclasses.asdict(model.sample_config("")) | settings
        tell("  ".join(f"{key}={shown[key]!r}" for key in TYPES))
    elif name == "help":
        tell_help(model)
    elif name in TYPES:
        settings[name] = checked_value(name, value)
    else:
        raise UserError(f"/{name} is not a command: /help lists them")


def checked_value(name: str, value: str) -> Any:
    """The value of a setting, from its text."""
    try:
        parsed = TYPES[name](value)
    except ValueError:
        raise UserError(
            f"{name} = {value!r} is not a number: give one, such as /{name} 1"
        ) from None
    if name == "seed":
        return checked(name, parsed, int, INT32)
    if name != "stop":
        SampleConfig(**{name: parsed})
    return parsed


def complete(model: "TrainedModel", settings: dict[str, Any], text: str, prompt: str) -> str:
    """Prints a prompt and its continuation while it is drawn; an empty prompt continues `text`.

    Returns: the whole text, or what there was when Ctrl-C stopped it.
    """
    pieces = (piece for [piece] in model.stream(prompt or text, piece=1, **settings))
    # The last text is on the screen already.
    shown = "" if prompt else next(pieces)
    return shown + show(pieces, settings)


def answer(model: "TrainedModel", settings: dict[str, Any], instruction: str) -> None:
    """Prints the answer to an instruction while it is drawn."""
    options = {name: value for name, value in settings.items() if name != "stop"}
    show(model.stream_answer(instruction, piece=1, **options), settings)


def show(pieces: Iterator[str], settings: dict[str, Any]) -> str:
    """Prints the pieces of a text, until Ctrl-C. The next text gets the next seed.

    Returns: what was printed.
    """
    whole: list[str] = []
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            say(piece, end="")
            whole.append(piece)
    with contextlib.suppress(KeyboardInterrupt):  # From a second Ctrl-C.
        say("")
    settings["seed"] = (settings["seed"] + 1) % 2**31
    return "".join(whole)
