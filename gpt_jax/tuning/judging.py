"""How many answers of a model are right: a task's prompts, its judge, and an interval.

Also makes preferences of the answers: pairs of a better and a worse one.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt_jax.tuning.answers import Answer
from gpt_jax.tuning.tasks import Prompt, Task, Verdict

Groups = Sequence[Sequence[Answer]]  # The answers to each prompt.


@dataclass(frozen=True)
class Share:
    """A share of some answers, with its 95 % interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """hits / total; 0 of 0 counts as 0."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval, which is right near 0 and 1, too."""
        n, p, z = max(self.total, 1), self.value, 1.96
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Report:
    """What a judge says of the answers to many prompts.

    Attributes:
      fulfilled: answers that fulfil everything and end by themselves.
      conditions: for each condition, the answers that fulfil it, of those that were asked to.
      ended: answers that end by themselves.
      pass_at_k: the share of prompts with at least one right answer; k = answers to each prompt.
    """

    fulfilled: Share
    conditions: dict[str, Share]
    ended: Share
    pass_at_k: Share


def judge(task: Task, prompts: Sequence[Prompt], groups: Groups) -> Report:
    """Judges the answers to every prompt."""
    judged = [
        [(task.judge(prompt, answer.text), answer.ended) for answer in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    right = [[verdict.fulfilled and ended for verdict, ended in group] for group in judged]
    every = [pair for group in judged for pair in group]
    return Report(
        fulfilled=_share([flag for group in right for flag in group]),
        conditions=_by_condition([verdict for verdict, _ in every]),
        ended=_share([ended for _, ended in every]),
        pass_at_k=_share([any(group) for group in right]),
    )


def _share(flags: Sequence[bool]) -> Share:
    return Share(sum(flags), len(flags))


def _by_condition(verdicts: Sequence[Verdict]) -> dict[str, Share]:
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.conditions)
    return {
        name: _share([v.conditions[name] for v in verdicts if name in v.conditions])
        for name in names
    }


def preferences(task: Task, prompts: Sequence[Prompt], groups: Groups) -> Iterator[str]:
    """JSON lines of prompt, chosen and rejected: the best and the worst answer to each prompt.

    Of equally good ones, the first that was drawn. Only answers that ended by themselves are used,
    because the template adds the end. A prompt whose answers all score the same gives no pair.
    """
    for prompt, group in zip(prompts, groups, strict=True):
        texts = [answer.text for answer in group if answer.ended]
        scores = [task.judge(prompt, text).score for text in texts]
        if scores and min(scores) < max(scores):
            rejected, chosen = (texts[scores.index(bound(scores))] for bound in (min, max))
            row = {"prompt": prompt.text, "chosen": chosen, "rejected": rejected}
            yield json.dumps(row, ensure_ascii=False)
