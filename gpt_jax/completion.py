"""Text that a trained model writes: prompts and their continuations, whole or piece by piece.

`Completer` is the part of `gpt_jax.api.TrainedModel` that every run has, tuned or not.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.config import (
    ANY,
    INT32,
    NOT_NEGATIVE,
    POSITIVE,
    Config,
    MeshConfig,
    SampleConfig,
    check_field,
    checked,
)
from gpt_jax.devices import make_mesh, pinned_settings, pinned_steps
from gpt_jax.sampling import encode_prompt, known_prompt, stream
from gpt_jax.text import TextStream, Tokenizer
from gpt_jax.training.memory import check_sampling
from gpt_jax.tuning.template import Template


@dataclasses.dataclass(frozen=True, eq=False)
class Completer:
    """A trained model and everything that belongs to it.

    Attributes:
      workdir: the run's folder.
      config: as the run recorded it, but for the unrolled model (see model/stacking.py).
      params: float32 arrays under GPT-2's names, unrolled.
      step: finished updates.
      val_loss: validation loss at that step, in nats per token; inf = unknown.
      template: how an instruction becomes text, for a tuned run; None for others.
    """

    workdir: Path
    config: Config
    tokenizer: Tokenizer
    params: Any = dataclasses.field(repr=False)
    step: int
    val_loss: float
    template: Template | None = None

    @property
    def described_loss(self) -> str:
        """The validation loss in words."""
        if math.isinf(self.val_loss):
            return "validation loss unknown"
        return f"validation loss {self.val_loss:.4f} nats per token"

    def generate(
        self,
        prompt: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str = "",
    ) -> str:
        """A prompt with its continuation.

        An argument that is None has the value in `config.sample`.

        Args:
          prompt: text to continue; empty = start from a line break.
          max_new_tokens: tokens to add.
          temperature: divides the logits; 0 = greedy.
          top_k: draw from this many likeliest tokens; 0 = from all.
          top_p: draw from the likeliest tokens that have this probability together.
          seed: the same seed gives the same text.
          stop: the text ends before this string; empty = no such string.

        Raises:
          UserError: if a character of the prompt is not in the vocabulary, or a value is out of
            range.
        """
        names = ("max_new_tokens", "temperature", "top_k", "top_p")
        options = zip(names, (max_new_tokens, temperature, top_k, top_p), strict=True)
        given: dict[str, Any] = {name: value for name, value in options if value is not None}
        [text] = self.generate_batch(prompt, 1, seed=seed, stop=stop, **given)
        return text

    def generate_batch(
        self, prompt: str | None = None, num_samples: int = 1, **options: Any
    ) -> list[str]:
        """Several continuations of one prompt, drawn together. The first equals `generate`'s.

        `options` are `generate`'s, `seed` and `stop` too. Raises UserError as `generate`, and for
        an unknown option.
        """
        pieces = self.stream(prompt, num_samples, **options)
        return ["".join(texts) for texts in zip(*pieces, strict=True)]

    def stream(
        self,
        prompt: str | None = None,
        num_samples: int = 1,
        *,
        seed: int = 0,
        stop: str = "",
        piece: int = 0,
        **options: Any,
    ) -> Iterator[list[str]]:
        """Yields what `generate_batch` returns while it is drawn: the prompt, then piece by piece.

        Each item is a list with the next part of each sample. Raises UserError as `generate_batch`,
        at the call and not at the first piece.

        Args:
          piece: most tokens per piece; 0 = as many as fit into the window.
        """
        chosen = self.sample_config(prompt, **options)
        checked("seed", seed, int, INT32)
        checked("num_samples", num_samples, int, POSITIVE)
        checked("piece", piece, int, NOT_NEGATIVE)
        checked("stop", stop, str, ANY)
        devices = jax.local_devices() if num_samples > 1 else self._devices
        check_sampling(self.config.model, num_samples, devices)
        ids = encode_prompt(self.tokenizer, chosen.prompt)
        texts = [TextStream(self.tokenizer, stop) for _ in range(num_samples)]
        return self._pieces(chosen, ids, texts, seed, piece)

    def _pieces(
        self, chosen: SampleConfig, ids: np.ndarray, texts: list[TextStream], seed: int, piece: int
    ) -> Iterator[list[str]]:
        yield [chosen.prompt] * len(texts)
        params = self.params if len(texts) == 1 else self._params_everywhere
        drawn = stream(
            self.config.model, params, ids, chosen, seed, len(texts), piece,
            self.tokenizer.vocab_size,
        )  # fmt: skip
        for new_BT in pinned_steps(drawn):
            yield [text.add(new_T) for text, new_T in zip(texts, new_BT, strict=True)]
            if all(text.stopped for text in texts):
                return
        yield [text.add([], final=True) for text in texts]

    @property
    def _devices(self) -> list[jax.Device]:
        """Where the parameters are: the first device."""
        return list(jax.tree.leaves(self.params)[0].devices())

    @functools.cached_property
    @pinned_settings()
    def _params_everywhere(self) -> Any:
        """The parameters on every device. The devices share the samples of a batch."""
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        return jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))

    def sample_config(self, prompt: str | None = None, **options: Any) -> SampleConfig:
        """`config.sample` with some values replaced, checked.

        Without a prompt, the run's own is used, or an empty one if the tokenizer cannot encode it.
        """
        for name in options:
            check_field("sample", name)
        if prompt is None:
            prompt = known_prompt(self.tokenizer, self.config.sample.prompt)
        return dataclasses.replace(self.config.sample, prompt=prompt, **options)
