"""Continues a prompt with a trained model; a tuned one answers an instruction.

    python scripts/sample.py
    python scripts/sample.py --prompt="JULIET:" --temperature=0.7 --seed=1
    python scripts/sample.py --interactive
    python scripts/sample.py --instruction="Let ZEBEDEE speak of the sea."

Without --workdir: the newest run in runs/. Standard output gets only text,
stderr all messages.
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
from gpt_jax.files import expanded
from gpt_jax.runs import newest_run

if TYPE_CHECKING:
    from gpt_jax.api import TrainedModel

OWN = "default: the run's"
FLAGS = (
    command_line.WORKDIR,
    command_line.STEP,
    ("prompt", str, None, f"Text to continue; empty = a line break; {OWN}."),
    ("instruction", str, None, "Instruction to answer, instead of --prompt; for a tuned run."),
    ("stop", str, "", r"Stop before this string (in a shell, $'\n\n' is a blank line)."),
    ("out", str, "", "File for all texts (UTF-8), instead of standard output."),
    ("max_new_tokens", int, None, f"Tokens to add; {OWN}."),
    ("top_k", int, None, f"Sample from this many most likely tokens; 0 = all; {OWN}."),
    ("seed", int, 0, "The same seed gives the same text."),
    ("num_samples", int, 1, "Texts to draw from the same prompt."),
    ("temperature", float, None, f"Divides the logits; 0 = greedy; {OWN}."),
    ("top_p", float, None, f"Sample from the most likely tokens of this total probability; {OWN}."),
    ("interactive", bool, False, "Type prompts and read their continuations."),
)
OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p")
STREAMED_TOKENS = 4  # At a time on a terminal: smooth, and still thousands per second.


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(sample, FLAGS, argv, __doc__ or "")


def sample(values: flags.FlagValues, words: list[str]) -> None:
    """Loads the model and writes its texts."""
    options = {name: values[name].value for name in OPTIONS if values[name].value is not None}
    check_options(values, options)
    model = load(values)
    if values.interactive:
        settings = options | {"seed": values.seed, "stop": values.stop}
        interactive.converse(model, settings, values.prompt or "")
        return
    pieces = texts_of(model, values, options)
    if values.out:
        write(pieces, expanded(values.out))
    else:
        show(pieces)


def texts_of(
    model: "TrainedModel", values: flags.FlagValues, options: dict[str, Any]
) -> Iterable[list[str]]:
    """The texts, or the answers, piece by piece."""
    piece = STREAMED_TOKENS if sys.stdout.isatty() and not values.out else 0
    if values.instruction is None:
        return model.stream(
            values.prompt, values.num_samples, seed=values.seed, stop=values.stop, piece=piece,
            **options,
        )  # fmt: skip
    if values.num_samples == 1:
        drawn = model.stream_answer(values.instruction, seed=values.seed, piece=piece, **options)
        return ([text] for text in drawn)
    [group] = model.answer_groups(
        [values.instruction], values.num_samples, seed=values.seed, **options
    )
    return [[answer.text for answer in group]]


def check_options(values: flags.FlagValues, options: dict[str, Any]) -> None:
    """Refuses bad options before anything is loaded."""
    SampleConfig(**options)
    checked("seed", values.seed, int, INT32)
    checked("num_samples", values.num_samples, int, POSITIVE)
    if values.interactive and (values.num_samples > 1 or values.out):
        raise UserError("--interactive draws one text at a time: leave out --num_samples and --out")
    if values.instruction is not None and (values.prompt is not None or values.stop):
        raise UserError(
            "--instruction takes the place of a prompt, and its answer ends by itself: leave out "
            "--prompt and --stop"
        )
    if values.instruction is not None and values.interactive:
        raise UserError("--interactive asks for instructions: leave out --instruction")


def load(values: flags.FlagValues) -> "TrainedModel":
    """The model. Prints on stderr which one it is."""
    workdir = Path(values.workdir) if values.workdir else newest_run(Path("runs"))
    command_line.tell(f"loading {workdir}")  # Loading JAX takes seconds.
    from gpt_jax.devices.compiler import set_up_compiler

    set_up_compiler()
    if values.num_samples > 1:
        share_cores(values.num_samples)
    model = gpt_jax.load(workdir, values.step)
    command_line.tell(f"{workdir}, step {model.step:,}: {model.described_loss}")
    prompt = model.config.sample.prompt
    is_own = values.prompt is None and values.instruction is None and not values.interactive
    if is_own and model.sample_config().prompt != prompt:
        command_line.tell(
            f"note: the vocabulary lacks a character of {prompt!r}: no prompt is used"
        )
    return model


def share_cores(num_samples: int) -> None:
    """Makes each core a device that draws some of the samples. Call it before JAX starts."""
    from gpt_jax.devices import start_devices, usable_cores

    count = min(usable_cores(), num_samples)
    start_devices(MeshConfig(cpu_devices=count), num_samples)


def show(pieces: Iterable[list[str]]) -> None:
    """Prints the first text while it is drawn, then the others."""
    made = []
    for piece in pieces:
        command_line.say(piece[0], end="")
        made.append(piece)
    texts = ["".join(parts) for parts in zip(*made, strict=True)]
    command_line.say(joined(texts)[len(texts[0]) :], end="")


def write(pieces: Iterable[list[str]], path: Path) -> None:
    """Writes all texts into a file, whole or not at all.

    Raises:
      UserError: if the file cannot be written. This is found before a text is drawn.
    """
    with command_line.new_file("out", path) as file:
        texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
        file.write(joined(texts).encode("utf-8"))
    command_line.tell(f"written to {path}")


def joined(texts: list[str]) -> str:
    """The texts, separated by lines that occur in none of them."""
    bar = "=" * 8
    while any(f"\n{bar}" in f"\n{text}" for text in texts):
        bar += "="
    parts = [texts[0]]
    for number, text in enumerate(texts[1:], start=2):
        parts += [f"{bar} sample {number} of {len(texts)} {bar}", text]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
