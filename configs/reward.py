"""Rewards for the play: the instructed model draws answers, and the judge scores them.

    python scripts/train.py --config=configs/reward.py --init_from=runs/play-instruct

Three minutes on 2 cores (AMD Zen 4). The share of answers that fulfil all conditions rises from 81
to 83 %, the mean of three seeds, and from 47 to 56 % at temperature 1 (docs/tuning.md).
"""

from ml_collections import ConfigDict

from gpt_jax.config import default_config


def get_config() -> ConfigDict:
    """32 prompts with 8 answers each per step. A higher rate, or fewer answers, unlearns."""
    config = default_config()
    config.tune.objective = "rewards"
    config.tune.task = "play"
    config.tune.group_size = 8
    config.tune.answer_tokens = 60
    # As answers are drawn in use. At 1, the words that are asked for improve half as much.
    config.tune.temperature = 0.8
    config.model.dropout = 0.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 5
    config.optimizer.schedule = "linear"
    config.train.steps = 100
    config.train.batch_size = 256
    config.train.log_every = 1
    config.train.eval_every = 20
    config.train.checkpoint_every = 20
    return config
