"""After pre-training: instructions, preferences and rewards.

Owns the objectives of tuning, the data they learn from, templates, tasks and their judges. The
loop, the optimizer, checkpoints and the log are those of training/; nothing here writes a file.
Read losses.py first: it has the three losses.
"""

from gpt_jax.tuning.answers import Answer, Drawer
from gpt_jax.tuning.maker import make_maker

__all__ = ["Answer", "Drawer", "answers", "judging", "make_maker", "tasks", "template"]
