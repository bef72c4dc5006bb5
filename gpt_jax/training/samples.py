"""The samples of a run: what its model writes, at each evaluation and at the end.

    samples/<step>.txt

The sample at the end marks the run as finished: its number is that of the last step (patience.py).
No sample on the way may have this number. If the last step changes on resume, `drop_samples`
removes such a sample before the change is recorded.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from gpt_jax.devices import processes
from gpt_jax.errors import note, out_of_memory
from gpt_jax.files import flush, replacing
from gpt_jax.model import unrolled
from gpt_jax.sampling import stream
from gpt_jax.text import TextStream
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState
from gpt_jax.training.stopping import Stopper

PIECE = 32  # Tokens between two looks at the stopper: seconds for a large model on a CPU.


def sample_path(workdir: Path, step: int) -> Path:
    """The file of the sample after `step` updates."""
    return workdir / "samples" / f"{step}.txt"


def last_sample(run: Run, state: TrainState, stopper: Stopper) -> str:
    """Writes the sample at the end of a run, of `sample.max_new_tokens` tokens, and returns it.

    Raises:
      Stopped: if asked to stop; the resumed run writes the sample.
      OSError: if it cannot be written.
    """
    draw, tokens = processes.on_first(_draw), run.config.sample.max_new_tokens
    text = draw(run, processes.gathered(state.evaluated), tokens, stopper)
    stopper.check()
    processes.on_first(_write)(sample_path(run.workdir, int(state.step)), text)
    return text


def sample_on_the_way(run: Run, step: int, state: TrainState, stopper: Stopper) -> None:
    """Writes the sample of an evaluation, of `train.sample_tokens` tokens.

    If asked to stop, it writes none, and the resumed run does. If the sample cannot be drawn or
    written, it prints a note: training matters more.
    """
    _try_to_sample(run, step, processes.gathered(state.evaluated), stopper)


@processes.on_first
def _try_to_sample(run: Run, step: int, params: Any, stopper: Stopper) -> None:
    try:
        text = _draw(run, params, run.config.train.sample_tokens, stopper)
        if not stopper.signum:
            _write(sample_path(run.workdir, step), text)
    except OSError as error:
        _note_missing(step, error.strerror or str(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (sentence := out_of_memory(error)):
            raise
        _note_missing(step, sentence)


def _note_missing(step: int, reason: str) -> None:
    note(f"there is no sample of step {step} ({reason}); training continues")


def _draw(run: Run, params: Any, tokens: int, stopper: Stopper) -> str:
    """The prompt and its continuation, on one device. Ends early if this process got a signal."""
    c, prompt = run.config, run.objective.prompt()
    options = dataclasses.replace(c.sample, max_new_tokens=tokens)
    model, params = unrolled(c.model, jax.device_put(params, run.device))
    text, stream_of_text = prompt.text, TextStream(run.tokenizer, prompt.stop)
    pieces = stream(
        model, params, prompt.ids, options, c.train.seed,
        piece=PIECE, n_tokens=run.tokenizer.vocab_size,
    )  # fmt: skip
    for [new] in pieces:
        text += stream_of_text.add(new)
        if stopper.signum or stream_of_text.stopped:
            break
    return text + stream_of_text.add([], final=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # A file cut short would count as finished.
        file.write((text + "\n").encode("utf-8"))


@processes.on_first
def drop_samples(workdir: Path, step: int, last: int) -> None:
    """Removes the samples from `step` on, which a run that is there writes again.

    Also the one of step `last`, after which the run ends: with it, the run would be finished.
    """
    folder = workdir / "samples"
    numbers = {int(path.stem) for path in folder.glob("*.txt") if path.stem.isdecimal()}
    dropped = {number for number in numbers if number >= step or number == last}
    for number in dropped:
        sample_path(workdir, number).unlink(missing_ok=True)
    if dropped:
        flush(folder)
