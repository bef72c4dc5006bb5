"""A trained model for Python, in a notebook or a script: text in, text and losses out.

    run = gpt_jax.load("runs/tiny")
    print(run.generate("ROMEO:", max_new_tokens=200))
    print(run.loss("To be, or not to be"))
    print(gpt_jax.load("runs/tuned").answer("Let ZEBEDEE speak of the sea."))

Needs only the run's folder: no corpus, no flags. The model is on the first device. If there are
more devices, they share the samples of a batch.

Shapes (the suffix of a name): N windows, T block_size, W = T + 1, V vocabulary.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
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
from gpt_jax.devices import make_mesh, own_devices, pinned_settings, pinned_steps
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.model import GPT, attention_maps, unrolled
from gpt_jax.runs import existing_record, matching_tokenizer
from gpt_jax.runs.recovery import restore_for_reading
from gpt_jax.sampling import encode_prompt, known_prompt, stream
from gpt_jax.text import TextStream, Tokenizer
from gpt_jax.text.windows import evaluation_windows
from gpt_jax.training.memory import check_sampling, check_windows
from gpt_jax.training.state import abstract_state
from gpt_jax.training.step import token_losses
from gpt_jax.tuning import Answer
from gpt_jax.tuning.answers import ROWS_AT_ONCE, answer_all
from gpt_jax.tuning.template import USER, Template, Turn

WINDOWS_AT_ONCE = 8


@pinned_settings()
def load(folder: str | os.PathLike[str], step: str | int = "best") -> "TrainedModel":
    """Loads a run's model from one of its checkpoints, onto the first device.

    Args:
      folder: the run's folder, such as "runs/tiny".
      step: "best" (by validation loss), "latest", or the number of a step.

    Raises:
      TypeError: if `folder` is not a path.
      UserError: if there is no such run or checkpoint, or if it cannot be read.
    """
    workdir = absolute(Path(folder))
    record = existing_record(workdir)
    config, template = record.config, record.template and Template.from_dict(record.template)
    tokenizer = matching_tokenizer(workdir, config)
    alone = make_mesh(MeshConfig(), own_devices()[:1])
    abstract = abstract_state(config, alone)
    saved, params = restore_for_reading(workdir / "checkpoints", str(step), abstract)
    model, params = unrolled(config.model, params)
    config = dataclasses.replace(config, model=model)
    found = saved.step, saved.val_loss, template or None
    return TrainedModel(workdir, config, tokenizer, params, *found)


@functools.partial(jax.jit, static_argnames="config")
def _token_losses(config: GPTConfig, params: Any, windows_NW: jax.Array) -> jax.Array:
    return token_losses(GPT(config), params, windows_NW)


@functools.partial(jax.jit, static_argnames=("config", "n_tokens"))
def _probabilities(
    config: GPTConfig, params: Any, window_T: jax.Array, length: int, n_tokens: int
) -> jax.Array:
    config = dataclasses.replace(config, matmul_dtype="float32")  # As in sampling.
    logits_1TV = cast(jax.Array, GPT(config).apply({"params": params}, window_T[None]))
    return jax.nn.softmax(logits_1TV[0, length - 1, :n_tokens])


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model and everything that belongs to it. Made by `load`.

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

    def answer(self, instruction: str, **options: Any) -> str:
        """The answer of a tuned run to an instruction.

        `options` are `generate`'s, without `stop`. Raises UserError as `generate`, and for a run
        that was not tuned or an instruction that leaves no room for an answer.
        """
        return "".join(self.stream_answer(instruction, **options))

    def stream_answer(
        self, instruction: str, *, seed: int = 0, piece: int = 0, **options: Any
    ) -> Iterator[str]:
        """Yields what `answer` returns while it is drawn. See `stream`."""
        [ids] = self._instruction_ids([instruction])
        chosen = self._answer_config(options)
        # An answer ends where the window is full: the instruction would leave it otherwise.
        room = self.config.model.block_size - len(ids)
        chosen = dataclasses.replace(chosen, max_new_tokens=min(chosen.max_new_tokens, room))
        checked("seed", seed, int, INT32)
        checked("piece", piece, int, NOT_NEGATIVE)
        texts = [TextStream(self.tokenizer, self._tuned_template.end)]
        return (text for [text] in self._pieces(chosen, ids, texts, seed, piece))

    def answers(self, instructions: Sequence[str], **options: Any) -> list[str]:
        """The answers to many instructions, drawn together. The first equals `answer`'s.

        Raises UserError as `answer`.
        """
        groups = self.answer_groups(instructions, 1, **options)
        return [answer.text for [answer] in groups]

    @pinned_settings()
    def answer_groups(
        self, instructions: Sequence[str], size: int, *, seed: int = 0, **options: Any
    ) -> list[list[Answer]]:
        """`size` answers to each of many instructions, with whether they ended by themselves.

        Raises UserError as `answer`.
        """
        checked("seed", seed, int, INT32)
        chosen = self._answer_config(options)
        prompts = self._instruction_ids(instructions)
        rows = min(len(prompts) * size, ROWS_AT_ONCE)
        devices = jax.local_devices() if rows > 1 else self._devices
        check_sampling(self.config.model, rows, devices)
        params = self._params_everywhere if rows > 1 else self.params
        mesh, end_ids = make_mesh(MeshConfig(), devices), self._end_ids
        return answer_all(
            self.config.model, self.tokenizer, mesh, params, prompts, end_ids, chosen, size, seed
        )  # fmt: skip

    def _instruction_ids(self, instructions: Sequence[str]) -> list[np.ndarray]:
        """The instructions in the run's template. Raises UserError for one that has no room."""
        texts = [checked("instruction", text, str, ANY) for text in instructions]
        found = [
            self._tuned_template.prompt_ids(self.tokenizer, (Turn(USER, text),)) for text in texts
        ]
        longest, window = max(map(len, found), default=0), self.config.model.block_size
        if longest >= window:
            raise UserError(
                f"an instruction has {longest} tokens, which leaves no room for an answer in a "
                f"window of {window}: give a shorter one"
            )
        return found

    @property
    def _tuned_template(self) -> Template:
        if self.template is None:
            raise UserError(
                f"{self.workdir} was not tuned to answer: use a tuned run (docs/tuning.md), or "
                "give a prompt to complete"
            )
        return self.template

    @property
    def _end_ids(self) -> np.ndarray:
        """The ids that end an answer."""
        return self._tuned_template.end_ids(self.tokenizer)

    def _answer_config(self, options: Mapping[str, Any]) -> SampleConfig:
        chosen = self.sample_config("", **options)
        checked("max_new_tokens", chosen.max_new_tokens, int, POSITIVE)
        return chosen

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

    @pinned_settings()
    def token_losses(self, text: str) -> np.ndarray:
        """-ln p of every token of `text` but the first, in nats, shape (tokens - 1,).

        The text is evaluated as in training: in windows of T tokens, with `config.model`'s
        matmul_dtype. Each token is predicted from those before it in its window. `np.exp(-losses)`
        are the probabilities.

        Raises:
          UserError: for fewer than two tokens, a character that is not in the vocabulary, or
            another type than str.
        """
        ids = self.tokenizer.encode(checked("text", text, str, ANY))
        if len(ids) < 2:
            raise UserError(
                f"{text!r} has {len(ids)} token(s), but a loss needs two: give a longer text"
            )
        size = self.config.model.block_size
        check_windows(self.config.model, WINDOWS_AT_ONCE, self._devices)
        count = -(-(len(ids) - 1) // size)
        padded = np.pad(ids, (0, count * size + 1 - len(ids)))
        windows_NW = evaluation_windows(padded, size)
        batches = [
            self._batch_losses(windows_NW[first : first + WINDOWS_AT_ONCE])
            for first in range(0, count, WINDOWS_AT_ONCE)
        ]
        return np.concatenate(batches).reshape(-1)[: len(ids) - 1]

    def _batch_losses(self, windows_NW: np.ndarray) -> np.ndarray:
        """Losses of up to WINDOWS_AT_ONCE windows, padded to that many: one shape to compile."""
        filled = np.resize(windows_NW, (WINDOWS_AT_ONCE, windows_NW.shape[1])).astype(np.int32)
        return np.asarray(_token_losses(self.config.model, self.params, filled))[: len(windows_NW)]

    def loss(self, text: str) -> float:
        """Mean of `token_losses`, in nats per token. Raises UserError as `token_losses` does."""
        return float(self.token_losses(text).mean(dtype=np.float64))

    @pinned_settings()
    def next_token(self, prompt: str) -> list[tuple[str, float]]:
        """Every token and its probability after `prompt`, likeliest first. Raises as `generate`."""
        size = self.config.model.block_size
        check_windows(self.config.model, 1, self._devices)
        ids = encode_prompt(self.tokenizer, checked("prompt", prompt, str, ANY))[-size:]
        window_T = np.pad(ids, (0, size - len(ids)))
        n_tokens = self.tokenizer.vocab_size  # The model's vocabulary may be padded.
        p_V = np.asarray(
            _probabilities(self.config.model, self.params, window_T, len(ids), n_tokens)
        )
        order = np.argsort(-p_V, kind="stable")
        return [(self.tokenizer.decode([i]), float(p_V[i])) for i in order]

    @pinned_settings()
    def attention(self, text: str) -> np.ndarray:
        """What every head attends to while the model reads `text`, shape (layers, heads, T, T).

        T is the number of tokens. `[layer, head, t]` says how much token t attends to each token:
        the weights sum to 1, and are 0 for later tokens.

        Raises:
          UserError: as `token_losses`, or if there is no token or more than block_size.
        """
        ids = self.tokenizer.encode(checked("text", text, str, ANY))
        if not 0 < len(ids) <= self.config.model.block_size:
            raise UserError(
                f"the text has {len(ids)} tokens, but a window has 1 to "
                f"{self.config.model.block_size}: give a text of that length"
            )
        return attention_maps(self.config.model, self.params, ids)
