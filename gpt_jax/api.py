"""A trained model to call from Python, in a notebook or a script: text in, text and losses out.

    run = gpt_jax.load("runs/tiny")
    print(run.generate("ROMEO:", max_new_tokens=200))
    print(run.loss("To be, or not to be"))

Needs the run's folder and nothing else: no corpus, no flags. The model is on the first device;
where there are more, they share the samples of a batch.

Shapes: N windows, T block_size, W = T + 1, V vocabulary.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.config import (
    ANY,
    INT32,
    NOT_NEGATIVE,
    POSITIVE,
    Config,
    GPTConfig,
    MeshConfig,
    SampleConfig,
    check_field,
    checked,
)
from gpt_jax.devices import make_mesh
from gpt_jax.errors import UserError
from gpt_jax.model import GPT, unrolled
from gpt_jax.runs import existing_record, matching_tokenizer
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.sampling import encode_prompt, known_prompt, stream
from gpt_jax.text import TextStream, Tokenizer
from gpt_jax.text.windows import evaluation_windows
from gpt_jax.training.state import abstract_state
from gpt_jax.training.step import token_losses

WINDOWS_AT_ONCE = 8


def load(folder: str | os.PathLike[str], step: str | int = "best") -> "TrainedModel":
    """The model of a run, with the parameters of one of its checkpoints, on the first device.

    Args:
      folder: of the run, such as "runs/tiny".
      step: "best" (by held-out loss), "latest", or the number of a step.

    Raises:
      UserError: when there is no such run or checkpoint, or it cannot be read.
    """
    workdir = Path(folder).expanduser().absolute()
    config = existing_record(workdir).config
    tokenizer = matching_tokenizer(workdir, config)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        saved = checkpoints.find(str(step))
        alone = make_mesh(MeshConfig(), jax.local_devices()[:1])
        params = checkpoints.restore_evaluated(saved.step, abstract_state(config, alone))
    model, params = unrolled(config.model, params)
    config = dataclasses.replace(config, model=model)
    return TrainedModel(workdir, config, tokenizer, params, saved.step, saved.val_loss)


@functools.partial(jax.jit, static_argnames="config")
def _token_losses(config: GPTConfig, params: Any, windows_NW: jax.Array) -> jax.Array:
    return token_losses(GPT(config), params, windows_NW)


@functools.partial(jax.jit, static_argnames=("config", "n_tokens"))
def _chances(
    config: GPTConfig, params: Any, window_T: jax.Array, length: int, n_tokens: int
) -> jax.Array:
    config = dataclasses.replace(config, matmul_dtype="float32")  # As texts are drawn.
    logits_1TV = cast(jax.Array, GPT(config).apply({"params": params}, window_T[None]))
    return jax.nn.softmax(logits_1TV[0, length - 1, :n_tokens])


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model and all that belongs to it. Made by `load`.

    Attributes:
      workdir: the run's folder.
      config: as recorded by the run, but of the unrolled model, see stacking.py.
      params: float32 arrays under GPT-2's names.
      step: finished updates; val_loss: held-out loss then, in nats per token (inf: not known).
    """

    workdir: Path
    config: Config
    tokenizer: Tokenizer
    params: Any = dataclasses.field(repr=False)
    step: int
    val_loss: float

    @property
    def described_loss(self) -> str:
        """The held-out loss in words."""
        if math.isinf(self.val_loss):
            return "held-out loss not known"
        return f"held-out loss {self.val_loss:.4f} nats per token"

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

        Args:
          prompt: text to continue; empty = from a line break. None, here and below, is what
            `config.sample` says.
          max_new_tokens: tokens to add.
          temperature: logits are divided by it; 0 = greedy.
          top_k: draw among so many likeliest tokens; 0 = all.
          top_p: draw among the likeliest tokens with this total chance.
          seed: the same seed gives the same text.
          stop: the text ends before this string; empty = it does not.

        Raises:
          UserError: for a character of the prompt outside the vocabulary, or a value that is out
            of range.
        """
        options = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        given = {name: value for name, value in options.items() if value is not None}
        [text] = self.generate_batch(prompt, 1, seed=seed, stop=stop, **given)
        return text

    def generate_batch(
        self,
        prompt: str | None = None,
        num_samples: int = 1,
        *,
        seed: int = 0,
        stop: str = "",
        **options: Any,
    ) -> list[str]:
        """Several continuations of one prompt, made together; the first is that of `generate`.

        Args:
          options: max_new_tokens, temperature, top_k, top_p.

        Raises:
          UserError: as `generate`, and for an option that does not exist.
        """
        pieces = self.stream(prompt, num_samples, seed=seed, stop=stop, **options)
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
        """What `generate_batch` returns, as it is made: first the prompt, then piece after piece.

        Args:
          piece: most tokens at a time; 0 = as many as the window has room for.

        Yields: as many strings as samples, the next part of each.

        Raises:
          UserError: as `generate_batch`, at the call and not at the first piece.
        """
        chosen = self.sample_config(prompt, **options)
        checked("seed", seed, int, INT32)
        checked("num_samples", num_samples, int, POSITIVE)
        checked("piece", piece, int, NOT_NEGATIVE)
        checked("stop", stop, str, ANY)
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
        for new_BT in drawn:
            yield [text.add(new_T) for text, new_T in zip(texts, new_BT, strict=True)]
            if all(text.stopped for text in texts):
                return
        yield [text.add([], final=True) for text in texts]

    @functools.cached_property
    def _params_everywhere(self) -> Any:
        """The parameters on every device, which share the samples of a batch."""
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        return jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))

    def sample_config(self, prompt: str | None = None, **options: Any) -> SampleConfig:
        """`config.sample` with some values replaced, checked.

        Where neither the caller nor the tokenizer knows the run's own prompt, it is empty.
        """
        for name in options:
            check_field("sample", name)
        if prompt is None:
            prompt = known_prompt(self.tokenizer, self.config.sample.prompt)
        return dataclasses.replace(self.config.sample, prompt=prompt, **options)

    def token_losses(self, text: str) -> np.ndarray:
        """-ln p of every token of `text` but the first, in nats, shape (tokens - 1,).

        The text is read as in an evaluation, in windows of T tokens and with the products of
        training: a token is predicted from those before it in its window. `np.exp(-losses)` are
        the probabilities.

        Raises:
          UserError: for fewer than two tokens, or a character outside the vocabulary.
        """
        ids = self.tokenizer.encode(text)
        if len(ids) < 2:
            raise UserError(
                f"{text!r} has {len(ids)} token(s): a loss needs two or more, one to predict from"
            )
        size = self.config.model.block_size
        count = -(-(len(ids) - 1) // size)
        padded = np.pad(ids, (0, count * size + 1 - len(ids)))
        windows_NW = evaluation_windows(padded, size)
        batches = [
            self._batch_losses(windows_NW[first : first + WINDOWS_AT_ONCE])
            for first in range(0, count, WINDOWS_AT_ONCE)
        ]
        return np.concatenate(batches).reshape(-1)[: len(ids) - 1]

    def _batch_losses(self, windows_NW: np.ndarray) -> np.ndarray:
        """Losses of up to WINDOWS_AT_ONCE windows, filled up so that there is one shape."""
        filled = np.resize(windows_NW, (WINDOWS_AT_ONCE, windows_NW.shape[1])).astype(np.int32)
        return np.asarray(_token_losses(self.config.model, self.params, filled))[: len(windows_NW)]

    def loss(self, text: str) -> float:
        """Mean of `token_losses`, in nats per token. Raises UserError as it does."""
        return float(self.token_losses(text).mean(dtype=np.float64))

    def next_token(self, prompt: str) -> list[tuple[str, float]]:
        """Every token with its probability right after `prompt`, the likeliest first.

        Raises:
          UserError: for a character of the prompt outside the vocabulary.
        """
        size = self.config.model.block_size
        ids = encode_prompt(self.tokenizer, prompt)[-size:]
        window_T = np.pad(ids, (0, size - len(ids)))
        n_tokens = self.tokenizer.vocab_size  # The model's vocabulary may be padded.
        chances_V = np.asarray(
            _chances(self.config.model, self.params, window_T, len(ids), n_tokens)
        )
        order = np.argsort(-chances_V, kind="stable")
        return [(self.tokenizer.decode([i]), float(chances_V[i])) for i in order]
