"""Serves trained models over HTTP: OpenAI's protocol, and a page for a browser.

    python scripts/serve.py
    python scripts/serve.py --workdir=runs/tiny --port=8000
    python scripts/serve.py --runs=runs

Without --workdir and --runs: the newest run in runs/. The address is printed
when the server answers. Ctrl-C ends it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import command_line
from absl import flags

from gpt_jax.config import POSITIVE, Rule, checked
from gpt_jax.errors import UserError
from gpt_jax.files import absolute, expanded, read_file
from gpt_jax.runs import newest_run

if TYPE_CHECKING:
    from gpt_jax.serving import Library

PORT = Rule("0 to 65535", lambda x: 0 <= x < 2**16)
LOCAL = ("127.0.0.1", "::1", "localhost")
FLAGS: tuple[command_line.Flag, ...] = (
    command_line.WORKDIR,
    command_line.STEP,
    ("runs", str, "", "Serve all runs of this folder, each loaded when first asked for."),
    ("host", str, "127.0.0.1", "Address to listen on; 0.0.0.0 = every network."),
    ("port", int, 8080, "Port to listen on; 0 = a free one."),
    ("slots", int, 32, "Texts to draw at once."),
    ("queue", int, 256, "Texts that may wait; more get status 429."),
    ("api_key_file", str, "", "File with a key that clients must send."),
    ("allow_origin", list, [], "A web page that may use the server, such as https://example.org."),
    ("allow_host", list, [], "A name of this machine by which clients may call it."),
)


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(serve, FLAGS, argv, __doc__ or "")


def serve(values: flags.FlagValues, words: list[str]) -> None:
    """Serves until a signal."""
    checked("port", values.port, int, PORT)
    checked("slots", values.slots, int, POSITIVE)
    checked("queue", values.queue, int, POSITIVE)
    if values.runs and values.workdir:
        raise UserError("--runs and --workdir exclude each other: give one of them")
    key = read_key(values.api_key_file) if values.api_key_file else ""
    command_line.tell("loading JAX")  # Takes seconds.
    try:
        from gpt_jax import serving
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {str(error.name).partition('.')[0]} is missing: install it with "
            "pip install -e '.[serve]'"
        ) from error
    with serving.bind(values.host, values.port) as listening:
        if values.host not in LOCAL and not key:
            command_line.tell("note: everybody on the network may use the server: --api_key_file")
        library = open_library(values)
        app = serving.make_app(
            library, values.allow_host, values.allow_origin, key,
            on_ready=lambda: command_line.say(serving.address(listening)),
        )  # fmt: skip
        serving.run_server(app, listening)


def read_key(path: str) -> str:
    """The key in a file: its one line.

    Raises:
      UserError: if the file cannot be read or does not hold one word.
    """
    try:
        words = read_file(expanded(path)).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api_key_file={path} cannot be read ({error}): name a file") from error
    if len(words) != 1:
        raise UserError(f"--api_key_file={path} must hold one word, the key")
    return words[0]


def open_library(values: flags.FlagValues) -> "Library":
    """The runs to serve. A single run is loaded at once."""
    from gpt_jax import serving
    from gpt_jax.config import MeshConfig
    from gpt_jax.devices import start_devices, usable_cores
    from gpt_jax.devices.compiler import set_up_compiler

    set_up_compiler()
    start_devices(MeshConfig(cpu_devices=min(usable_cores(), values.slots)), values.slots)
    settings = values.step, values.slots, values.queue
    if values.runs:
        folder = absolute(values.runs)
        runs = serving.Library(serving.all_runs(folder), *settings)
        if not (names := ", ".join(runs.folders())):
            raise UserError(f"{folder} holds no runs: name a folder of runs, such as runs")
        command_line.tell(f"serving {names}")
        return runs
    folder = absolute(values.workdir) if values.workdir else absolute(newest_run(Path("runs")))
    command_line.tell(f"loading {folder}")
    library = serving.Library(serving.one_run(folder), *settings)
    model = library.preload(folder).model
    command_line.tell(f"{folder}, step {model.step:,}: {model.described_loss}")
    return library


if __name__ == "__main__":
    sys.exit(main(sys.argv))
