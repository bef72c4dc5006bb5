"""The score of an answer: by the judge of a task, or by a function of the user's own.

    --config.tune.reward=my_reward.py:score        def score(prompt: str, answer: str) -> float

A user's function runs only if the command line names it. A record names it, too, but a stranger's
run must not make this machine run a stranger's code.
"""

import importlib.util
import numbers
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.files import expanded

LARGEST = float(np.finfo(np.float32).max)
Reward = Callable[[str, str], float]
HOW = "give --config.tune.reward=my_reward.py:score with a function of (prompt, answer)"


def load_reward(name: str) -> Reward:
    """The function that `path:function` names, checked at every call.

    Raises:
      UserError: if there is no such file or function, or the file does not run.
    """
    path, _, function = name.rpartition(":")
    file = expanded(path).absolute()
    if not path or not file.is_file():
        raise UserError(f"tune.reward = {name!r} names no file {path!r}: {HOW}")
    spec = importlib.util.spec_from_file_location("the_users_reward", file)
    if spec is None or spec.loader is None:
        raise UserError(f"tune.reward = {name!r}: {file} is no Python file: {HOW}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{_line_of(file, error)} fails ({error!r}): correct the file") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{file} has no function {function!r}: {HOW}")
    return lambda prompt, answer: _checked(file, found, prompt, answer)


def _checked(file: Path, function: Any, prompt: str, answer: str) -> float:
    """The score. Raises UserError, with the prompt, if there is none."""
    try:
        score: Any = function(prompt, answer)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{_line_of(file, error)} fails for the prompt {prompt!r} ({error!r}): correct the "
            "file; the same command resumes from the last checkpoint"
        ) from error
    if not isinstance(score, numbers.Real | np.bool_) or not _is_finite(score):
        raise UserError(
            f"{file} scores {score!r} for the prompt {prompt!r}: return a number, finite in "
            "float32; the same command resumes from the last checkpoint"
        )
    return float(score)


def _is_finite(score: Any) -> bool:
    """Whether a number is one in float32. An int may be larger than any float."""
    return -LARGEST <= score <= LARGEST


def _line_of(file: Path, error: BaseException) -> str:
    """The last line of the user's file on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file]
    return f"line {lines[-1]} of {file}" if lines else str(file)
