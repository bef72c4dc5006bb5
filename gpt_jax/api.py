"""A trained model for Python, in a notebook or a script: text in, text and losses out.

    run = gpt_jax.load("runs/tiny")
    print(run.generate("ROMEO:", max_new_tokens=200))
    print(run.loss("To be, or not to be"))
    print(gpt_jax.load("runs/tuned").answer("Let ZEBEDEE speak of the sea."))

Needs only the run's folder: no corpus, no flags. The model is on the first device. If there are
more devices, they share the samples of a batch.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax import inspection
from gpt_jax.completion import Completer
from gpt_jax.config import ANY, INT32, NOT_NEGATIVE, POSITIVE, MeshConfig, SampleConfig, checked
from gpt_jax.devices import make_mesh, own_devices, pinned_settings
from gpt_jax.errors import UserError
from gpt_jax.files import absolute
from gpt_jax.model import unrolled
from gpt_jax.runs import existing_record, matching_tokenizer
from gpt_jax.runs.recovery import restore_for_reading
from gpt_jax.sampling import encode_prompt
from gpt_jax.text import TextStream
from gpt_jax.training.memory import check_sampling, check_windows
from gpt_jax.training.state import abstract_state
from gpt_jax.tuning import Answer
from gpt_jax.tuning.answers import ROWS_AT_ONCE, answer_all, room_for_answer
from gpt_jax.tuning.template import USER, Template, Turn


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


class TrainedModel(Completer):
    """A `Completer` that also answers instructions, and tells what it makes of a text.

    Made by `load`.
    """

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
        room = room_for_answer(ids, self.config.model.block_size)
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
        for ids in found:
            room_for_answer(ids, self.config.model.block_size)
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
        check_windows(self.config.model, inspection.WINDOWS_AT_ONCE, self._devices)
        return inspection.text_losses(self.config.model, self.params, ids)

    def loss(self, text: str) -> float:
        """Mean of `token_losses`, in nats per token. Raises UserError as `token_losses` does."""
        return float(self.token_losses(text).mean(dtype=np.float64))

    @pinned_settings()
    def next_token(self, prompt: str) -> list[tuple[str, float]]:
        """Every token and its probability after `prompt`, likeliest first. Raises as `generate`."""
        check_windows(self.config.model, 1, self._devices)
        ids = encode_prompt(self.tokenizer, checked("prompt", prompt, str, ANY))
        n_tokens = self.tokenizer.vocab_size  # The model's vocabulary may be padded.
        p_V = inspection.next_probabilities(self.config.model, self.params, ids, n_tokens)
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
        return inspection.attention_maps(self.config.model, self.params, ids)
