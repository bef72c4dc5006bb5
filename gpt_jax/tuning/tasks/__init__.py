"""Built-in tasks: each writes prompts, knows right answers, and judges. Read sums.py first."""

from gpt_jax.tuning.tasks.play import Play
from gpt_jax.tuning.tasks.sums import Sums
from gpt_jax.tuning.tasks.task import Prompt, Task, Verdict

TASKS: dict[str, type[Task]] = {"play": Play, "sums": Sums}

__all__ = ["TASKS", "Prompt", "Task", "Verdict"]
