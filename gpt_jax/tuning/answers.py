"""Prompts -> answers: draws, ends and decodes them, on all devices.

Used while a run learns from rewards, to judge it, to make preferences, and by Python.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import GPTConfig, SampleConfig
from gpt_jax.devices import processes
from gpt_jax.errors import UserError
from gpt_jax.text import Tokenizer
from gpt_jax.tuning.drawing import Prompts, Rule, aligned, draw_over, exact

ROWS_AT_ONCE = 128  # More answers are drawn in several batches.
ROOM = 32  # The room for prompts is a multiple of this, so that few sizes are compiled.


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer: its ids with the end, its text without it, and whether it ended by itself."""

    ids: np.ndarray
    text: str
    ended: bool


@dataclasses.dataclass(frozen=True)
class Drawer:
    """Draws answers with one model.

    Attributes:
      mesh: all its devices share the answers.
      end_ids: the ids that end an answer.
      longest: tokens of the longest answer, its end included. An answer also ends where its own
        prompt and it fill the window.
      room: tokens of the longest prompt.
    """

    config: GPTConfig
    tokenizer: Tokenizer
    mesh: Mesh
    end_ids: np.ndarray
    longest: int
    room: int

    def draw(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        keys: Array,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[Answer]:
        """An answer to every prompt, each with its own key. No prompt is longer than `room`."""
        params = jax.device_put(params, NamedSharding(self.mesh, PartitionSpec()))
        rows = min(ROWS_AT_ONCE, len(prompts))
        rows = math.ceil(rows / self.mesh.size) * self.mesh.size
        answers: list[Answer] = []
        for first in range(0, len(prompts), rows):
            # The last batch is filled up with answers that are not kept.
            chosen = np.resize(np.arange(first, min(first + rows, len(prompts))), rows)
            batch = [prompts[int(i)] for i in chosen]
            answers += self._draw_batch(params, batch, keys[chosen], temperature, top_k, top_p)
        return answers[: len(prompts)]

    def _draw_batch(
        self,
        params: Any,
        prompts: list[np.ndarray],
        keys: Array,
        temperature: float,
        top_k: int,
        top_p: float,
    ) -> list[Answer]:
        limits = [min(self.longest, self.config.block_size - len(prompt)) for prompt in prompts]
        rows = Prompts(*aligned(prompts, self.room), keys, np.array(limits, np.int32))
        spec = PartitionSpec(self.mesh.axis_names)
        rows = jax.device_put(rows, NamedSharding(self.mesh, spec))
        rule = Rule(self.end_ids, temperature, top_p)
        drawn = draw_over(
            self.mesh, exact(self.config), params, rows, rule,
            self.longest, self.tokenizer.vocab_size, top_k,
        )  # fmt: skip
        new_BN, length_B = map(np.asarray, processes.gathered(drawn))
        return [self._answer(new_N[:n]) for new_N, n in zip(new_BN, length_B, strict=True)]

    def _answer(self, ids: np.ndarray) -> Answer:
        size = len(self.end_ids)
        ended = np.array_equal(ids[-size:], self.end_ids)
        return Answer(ids, self.tokenizer.decode(ids[:-size] if ended else ids), ended)


def room_for_answer(prompt: np.ndarray, block_size: int) -> int:
    """Tokens that an answer can have: it ends where the window is full, so that the whole prompt
    stays in view. Raises UserError if there is no room.
    """
    if len(prompt) >= block_size:
        raise UserError(
            f"an instruction has {len(prompt)} tokens, which leaves no room for an answer in a "
            f"window of {block_size}: give a shorter one"
        )
    return block_size - len(prompt)


def answer_all(
    config: GPTConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    params: Any,
    prompts: Sequence[np.ndarray],
    end_ids: np.ndarray,
    options: SampleConfig,
    size: int,
    seed: int,
) -> list[list[Answer]]:
    """`size` answers to each prompt, with the random numbers that `sampling.stream` would use.

    Every prompt is shorter than a window.
    """
    if not prompts or not size:
        return [[] for _ in prompts]
    room = min(math.ceil(max(map(len, prompts)) / ROOM) * ROOM, config.block_size)
    longest = min(options.max_new_tokens, config.block_size)
    rows = [prompt for prompt in prompts for _ in range(size)]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(len(rows)))
    answers = Drawer(config, tokenizer, mesh, end_ids, longest, room).draw(
        params, rows, keys, options.temperature, options.top_k, options.top_p
    )
    return [answers[i : i + size] for i in range(0, len(answers), size)]
