"""A small GPT in JAX and Flax linen: text -> tokens -> batch -> logits -> loss -> update -> text.

    run = gpt_jax.load("runs/tiny")
    run.generate("ROMEO:", max_new_tokens=200)

Importing this package touches no file, no device and no environment variable, and loads nothing
heavy. Import the package you need: `gpt_jax.config`, `gpt_jax.model`, ... README.md shows how they
build on one another.
"""

import os
import typing

if typing.TYPE_CHECKING:
    from gpt_jax.api import TrainedModel

__version__ = "0.1.0"


def load(folder: str | os.PathLike[str], step: str | int = "best") -> "TrainedModel":
    """Loads the trained model in a run's folder; see `gpt_jax.api.load`."""
    from gpt_jax import api

    return api.load(folder, step)
