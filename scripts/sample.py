"""Continues a prompt with a trained model. It completes text; it does not chat.

    python scripts/sample.py
    python scripts/sample.py --workdir=runs/tiny --prompt="JULIET:" --temperature=0.7 --seed=1
    python scripts/sample.py --interactive

Without --workdir: the newest run in runs/. Only text goes to standard output.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import interactive
from absl import flags

import gpt_jax
from gpt_jax.config import INT32, POSITIVE, MeshConfig, SampleConfig, checked
from gpt_jax.errors import UserError
from gpt_jax.files import replacing
from gpt_jax.runs import newest_run

if TYPE_CHECKING:
    from gpt_jax.api import TrainedModel

OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p")
STREAMED_TOKENS = 4  # At a time on a terminal: smooth, and still thousands a second.


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Which model, how it draws, and where its text goes."""
    own = "the run's own (config.sample) unless given"
    for name, default, meaning in (
        ("workdir", "", "Folder of the run; the newest in runs/ unless given."),
        ("step", "best", "Checkpoint: best (by held-out loss), latest, or the number of a step."),
        ("prompt", None, f"Text to continue; empty = from a line break; {own}."),
        ("stop", "", r"A text ends before this string (a blank line in a shell: $'\n\n')."),
        ("out", "", "File for all texts, in UTF-8, instead of standard output."),
    ):
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    for name, number, meaning in (
        ("max_new_tokens", None, f"Tokens to add; {own}."),
        ("top_k", None, f"Draw among so many likeliest tokens; 0 = all; {own}."),
        ("seed", 0, "The same seed gives the same text."),
        ("num_samples", 1, "Texts to make, all of the same prompt."),
    ):
        flags.DEFINE_integer(name, number, meaning, flag_values=values)
    for name, meaning in (
        ("temperature", f"Logits are divided by it; 0 = greedy; {own}."),
        ("top_p", f"Draw among the likeliest tokens with this total chance; {own}."),
    ):
        flags.DEFINE_float(name, None, meaning, flag_values=values)
    flags.DEFINE_boolean(
        "interactive", False, "Type prompts and see them continued.", flag_values=values
    )


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(sample, define_flags, argv, __doc__ or "")


def sample(values: flags.FlagValues, words: list[str]) -> None:
    """Loads the model and writes its texts to where they are wanted."""
    options = {name: values[name].value for name in OPTIONS if values[name].value is not None}
    check_options(values, options)
    model = load(values)
    if values.interactive:
        settings = options | {"seed": values.seed, "stop": values.stop}
        interactive.converse(model, settings, values.prompt or "")
        return
    pieces = model.stream(
        values.prompt,
        values.num_samples,
        seed=values.seed,
        stop=values.stop,
        piece=STREAMED_TOKENS if sys.stdout.isatty() and not values.out else 0,
        **options,
    )
    if values.out:
        write(pieces, Path(values.out).expanduser())
    else:
        show(pieces)


def check_options(values: flags.FlagValues, options: dict[str, Any]) -> None:
    """Refuses what cannot work before anything is loaded."""
    SampleConfig(**options)
    checked("seed", values.seed, int, INT32)
    checked("num_samples", values.num_samples, int, POSITIVE)
    if values.interactive and (values.num_samples > 1 or values.out):
        raise UserError("--interactive makes one text at a time: leave out --num_samples and --out")


def load(values: flags.FlagValues) -> "TrainedModel":
    """The model, after telling on stderr which one it is."""
    workdir = Path(values.workdir) if values.workdir else newest_run(Path("runs"))
    from gpt_jax.devices.compiler import set_up_compiler

    set_up_compiler()
    if values.num_samples > 1:
        share_cores(values.num_samples)
    model = gpt_jax.load(workdir, values.step)
    command_line.tell(f"{workdir}, step {model.step:,}: {model.described_loss}")
    prompt = model.config.sample.prompt
    if values.prompt is None and not values.interactive and model.sample_config().prompt != prompt:
        command_line.tell(f"note: the vocabulary lacks a character of {prompt!r}: no prompt")
    return model


def share_cores(num_samples: int) -> None:
    """Makes each core a device, before JAX starts: they share the samples."""
    from gpt_jax.devices import start_devices, usable_cores

    count = min(usable_cores(), num_samples)
    start_devices(MeshConfig(cpu_devices=count), num_samples)


def show(pieces: Iterable[list[str]]) -> None:
    """Prints the first text as it is made, then the others."""
    made = []
    for piece in pieces:
        print(piece[0], end="", flush=True)
        made.append(piece)
    texts = ["".join(parts) for parts in zip(*made, strict=True)]
    print(joined(texts)[len(texts[0]) :], end="")


def write(pieces: Iterable[list[str]], path: Path) -> None:
    """Writes all texts into a file, as a whole or not at all.

    Raises:
      UserError: when the file cannot be written; told before a text is made.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with replacing(path) as file:
            texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
            file.write(joined(texts).encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"--out={path} cannot be written ({error.strerror}): name a file in a folder that "
            "exists and may be written to"
        ) from error
    command_line.tell(f"written to {path}")


def joined(texts: list[str]) -> str:
    """The texts with a line between each two that occurs in none of them."""
    bar = "=" * 8
    while any(f"\n{bar}" in f"\n{text}" for text in texts):
        bar += "="
    parts = [texts[0]]
    for number, text in enumerate(texts[1:], start=2):
        parts += [f"{bar} sample {number} of {len(texts)} {bar}", text]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
