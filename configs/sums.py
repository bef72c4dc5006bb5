"""Three-digit sums from random parameters: the smallest complete example of tuning.

python scripts/train.py --config=configs/sums.py
python scripts/evaluate.py --workdir=runs/sums --task=sums
"""

from ml_collections import ConfigDict

from gpt_jax.config import default_config


def get_config() -> ConfigDict:
    """2 blocks of width 64; a window holds one sum."""
    config = default_config()
    config.tune.objective = "instructions"
    config.tune.task = "sums"
    config.model.block_size = 16
    config.model.n_layer = 2
    config.model.n_head = 4
    config.model.n_embd = 64
    config.model.dropout = 0.0
    config.model.bias = False
    config.model.position = "rotary"
    config.model.norm = "rms"
    config.model.qk_norm = True
    config.model.activation = "relu2"
    config.model.zero_init = True
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.matrix_learning_rate = 0.02
    config.optimizer.warmup_steps = 20
    config.optimizer.schedule = "linear"
    config.optimizer.b1 = 0.8
    config.optimizer.b2 = 0.95
    config.train.steps = 600
    config.train.batch_size = 256
    config.train.eval_every = 100
    config.train.checkpoint_every = 300
    config.sample.temperature = 0.0
    return config
