"""Preferences for the play: of its own answers, the instructed model prefers the better ones.

    python scripts/pairs.py --workdir=runs/play-instruct --task=play --out=pairs.jsonl
    python scripts/train.py --config=configs/prefer.py --init_from=runs/play-instruct \\
        --config.tune.data=pairs.jsonl

On 2 cores (AMD Zen 4): 2 minutes, seed 0; it made the model worse so far (docs/tuning.md).
"""

from ml_collections import ConfigDict

from gpt_jax.config import default_config


def get_config() -> ConfigDict:
    """AdamW at a small rate."""
    config = default_config()
    config.tune.objective = "preferences"
    config.tune.beta = 0.1
    config.model.dropout = 0.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 10
    config.optimizer.schedule = "linear"
    config.train.steps = 80
    config.train.eval_every = 20
    config.train.checkpoint_every = 20
    return config
