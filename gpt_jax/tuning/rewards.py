"""Rewards: answers are drawn, scored, and made likelier or less likely (GRPO). What a batch is."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from gpt_jax.config import Config
from gpt_jax.devices import processes
from gpt_jax.errors import UserError
from gpt_jax.training.objective import Parts, Poll
from gpt_jax.training.state import TrainState
from gpt_jax.tuning.answers import Answer, Drawer
from gpt_jax.tuning.examples import read_prompts
from gpt_jax.tuning.losses import reward_losses
from gpt_jax.tuning.reward import Reward
from gpt_jax.tuning.rows import Dropped, Row, padded
from gpt_jax.tuning.scoring import make_score
from gpt_jax.tuning.source import Source, Tuning, in_epochs, split_rows
from gpt_jax.tuning.tasks import Prompt

VALIDATION_PROMPTS = 128


class Rewards(Tuning):
    """The objective."""

    needs_reference = True
    shown = ("reward", "kl")
    panels = (("reward", "val/reward"), ("kl",), ("val/corpus_loss",))

    def __init__(self, parts: Parts, source: Source, reward: Reward | None) -> None:
        """`reward`: the user's; None = the task's judge. Raises UserError if data is unusable."""
        c = parts.config.tune
        _check(parts.config)
        self.losses = lambda model, params, rows, keys: reward_losses(c, model, params, rows)
        self._prompts, self._val = _read(source)
        super().__init__(parts, source, source.prompt_ids(self._val[0].text))
        self._reward, self._score = reward, make_score(parts, c.temperature)
        self._drawer = Drawer(
            parts.config.model,
            source.tokenizer,
            cast(Mesh, parts.layout.sharding.mesh),
            source.template.end_ids(source.tokenizer),
            c.answer_tokens,
            _room(parts.config),
        )
        self._drawn: tuple[int, Any] = -1, None

    def batch(self, step: int, state: TrainState) -> Any:
        """Answers to the prompts of a step with their advantages, used for `tune.updates` steps."""
        first = step - step % self._parts.config.tune.updates
        if self._drawn[0] != first:
            self._drawn = first, self._draw_batch(first, state)
        return self._drawn[1]

    def evaluate(self, params: Any, poll: Poll) -> dict[str, float]:
        """The mean reward of one answer to each validation prompt; its negative is the loss."""
        poll()
        keys = jax.random.split(jax.random.key(0), len(self._val))
        ids = [self._source.prompt_ids(prompt.text) for prompt in self._val]
        answers = self._drawer.draw(params, ids, keys, self._parts.config.tune.temperature)
        reward = float(self._rewards(self._val, answers).mean())
        ended = float(np.mean([answer.ended for answer in answers]))
        return {"loss": -reward, "reward": reward, "ended": ended}

    def may_stop(self, step: int) -> bool:
        """Only when all updates of the answers at hand are made: they are not saved."""
        return step % self._parts.config.tune.updates == 0

    def _draw_batch(self, step: int, state: TrainState) -> Any:
        c, tune = self._parts.config.train, self._parts.config.tune
        distinct = self._step_prompts(step, c.batch_size // tune.group_size)
        _check_room(self._source, distinct)
        prompts = [prompt for prompt in distinct for _ in range(tune.group_size)]
        ids = [self._source.prompt_ids(prompt.text) for prompt in prompts]
        keys = jax.random.split(jax.random.fold_in(state.key, step), len(prompts))
        answers = self._drawer.draw(state.params, ids, keys, tune.temperature)
        rows = [_row(prompt, answer.ids) for prompt, answer in zip(ids, answers, strict=True)]
        tokens_BW, mask_BT = padded(rows, self._source.width)
        old_BT, reference_BT = self._log_probabilities(state, tokens_BW)
        rewards_B = self._rewards(prompts, answers)
        kept_B = penalized(rewards_B, old_BT, reference_BT, mask_BT, tune.kl_weight)
        divisor_B = divisors(tune.divisor, mask_BT.sum(-1), tune.answer_tokens)
        batch = {
            "tokens": tokens_BW,
            "mask": mask_BT,
            "weights": mask_BT / divisor_B[:, None],
            "advantages": advantages(kept_B, tune.group_size, tune.standardize),
            "old": old_BT,
            "reference": reference_BT,
            "metrics": _metrics(rewards_B.reshape(-1, tune.group_size), mask_BT, answers),
        }
        return self._parts.layout.place(batch)

    def _log_probabilities(
        self, state: TrainState, tokens_BW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """log p of the tokens, (B, T), by the policy that drew them and by the reference."""
        placed = self._parts.layout.place(tokens_BW)

        def scored(params: Any) -> np.ndarray:
            logps_AMT = processes.gathered(jax.block_until_ready(self._score(params, placed)))
            return np.asarray(logps_AMT).reshape(len(tokens_BW), -1)

        return scored(state.params), scored(self._parts.reference())

    def _step_prompts(self, step: int, count: int) -> list[Prompt]:
        if self._source.task is not None:
            return [self._source.prompt(i) for i in range(step * count, (step + 1) * count)]
        chosen = in_epochs(len(self._prompts), count, self._parts.config.train.seed, step)
        return [self._prompts[i] for i in chosen]

    def _rewards(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> np.ndarray:
        """The score of every answer, float32."""
        pairs = zip(prompts, answers, strict=True)
        return np.array([self._reward_of(prompt, answer) for prompt, answer in pairs], np.float32)

    def _reward_of(self, prompt: Prompt, answer: Answer) -> float:
        if self._reward is not None:
            return self._reward(prompt.text, answer.text)
        assert self._source.task is not None
        return self._source.task.judge(prompt, answer.text).score if answer.ended else 0.0


def _room(config: Config) -> int:
    """Tokens of the longest prompt that leaves room for an answer."""
    return config.model.block_size - config.tune.answer_tokens


def _check(config: Config) -> None:
    """Raises UserError for settings of rewards that contradict each other."""
    c, train = config.tune, config.train
    if train.batch_size % c.group_size:
        raise UserError(
            f"train.batch_size = {train.batch_size} answers are no multiple of tune.group_size = "
            f"{c.group_size}: change one of them"
        )
    if _room(config) < 1:
        raise UserError(
            f"tune.answer_tokens = {c.answer_tokens} leaves no room for a prompt in a window of "
            f"model.block_size = {config.model.block_size}: give fewer"
        )
    # Drawn answers are not saved, so a run can only resume where new ones are drawn.
    for name in ("steps", "eval_every", "checkpoint_every"):
        if (value := getattr(train, name)) % c.updates:
            raise UserError(
                f"train.{name} = {value} is no multiple of tune.updates = {c.updates}: change one "
                "of them"
            )


def _read(source: Source) -> tuple[list[Prompt], list[Prompt]]:
    """The training prompts and the validation prompts; a task makes its own step by step."""
    if source.task is not None:
        val = [source.prompt(i, held_out=True) for i in range(VALIDATION_PROMPTS)]
        _check_room(source, val)
        return [], val
    prompts = source.usable(read_prompts(source.name), lambda text: _prompt(source, text))
    training, val = split_rows(prompts, source.config.data.val_fraction, source.name)
    return training, val[:VALIDATION_PROMPTS]


def _prompt(source: Source, text: str) -> Prompt:
    """Raises Dropped for a prompt without room for an answer."""
    if len(source.prompt_ids(text)) > (room := _room(source.config)):
        raise Dropped(f"longer than the {room} tokens that tune.answer_tokens leaves for a prompt")
    return Prompt(text, "")


def _check_room(source: Source, prompts: Sequence[Prompt]) -> None:
    """Raises UserError for a prompt of a task without room for an answer."""
    try:
        for prompt in prompts:
            _prompt(source, prompt.text)
    except Dropped as reason:
        raise UserError(f"a prompt of {source.name} is {reason}: give fewer of them") from None


def penalized(
    rewards_B: np.ndarray,
    old_BT: np.ndarray,
    reference_BT: np.ndarray,
    mask_BT: np.ndarray,
    kl_weight: float,
) -> np.ndarray:
    """Rewards less kl_weight (log p - log p_reference) of the whole answer, shape (B,).

    So the best policy is p_reference exp(reward / kl_weight), normalised (Ziegler et al., 2019).
    GRPO adds k3 to the loss instead; its gradient is another one and has another best policy.
    """
    return rewards_B - kl_weight * (mask_BT * (old_BT - reference_BT)).sum(-1)


def advantages(rewards_B: np.ndarray, group_size: int, standardize: bool) -> np.ndarray:
    """r - mean of its group, (B,); divided by the group's standard deviation if asked.

    A group whose answers all score the same has advantages of 0.
    """
    rewards_GN = rewards_B.reshape(-1, group_size)
    centered_GN = rewards_GN - rewards_GN.mean(-1, keepdims=True)
    if standardize:
        centered_GN = centered_GN / (rewards_GN.std(-1, keepdims=True) + 1e-4)
    return centered_GN.reshape(-1)


def divisors(divisor: str, length_B: np.ndarray, longest: int) -> np.ndarray:
    """What each answer's tokens are divided by, (B,), before the mean over answers.

    "constant" has no bias towards any length (Liu et al., 2025, Dr. GRPO).
    """
    if divisor == "sequence":
        return length_B
    return np.full_like(length_B, length_B.mean() if divisor == "tokens" else longest)


def _metrics(
    rewards_GN: np.ndarray, mask_BT: np.ndarray, answers: Sequence[Answer]
) -> dict[str, np.ndarray]:
    """Figures of every answer under TRL's names, (B,); the step takes their means."""
    std_G1 = rewards_GN.std(-1, keepdims=True)
    figures = {
        "reward": rewards_GN,
        "reward_std": np.broadcast_to(std_G1, rewards_GN.shape),
        "frac_reward_zero_std": np.broadcast_to(std_G1 == 0, rewards_GN.shape),
        "completions/mean_length": mask_BT.sum(-1),
        "completions/clipped_ratio": np.array([not answer.ended for answer in answers]),
    }
    return {name: np.asarray(x, np.float32).reshape(-1) for name, x in figures.items()}


def _row(prompt: np.ndarray, answer: np.ndarray) -> Row:
    """A row of which the answer, its end included, is learned."""
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    return Row(ids, np.arange(len(ids)) >= len(prompt), len(prompt))
