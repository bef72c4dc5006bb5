"""GPT-2 from scratch, in its four sizes: small has 124,439,808 parameters.

    python scripts/train.py --config=configs/gpt2.py:small --config.data.corpus=my.txt
    python scripts/train.py --config=configs/gpt2.py:small --plan

The sizes are small, medium, large and xl. The recipe is for GPUs: an H100 trains small at 364,000
tokens/s (docs/scaling.md), but no whole run was made. You give a large text and GPT-2's tokenizer:
a folder `gpt2` in the current directory with its tokenizer.json (or vocab.json and merges.txt), or
--config.data.tokenizer=PATH. For byte pairs of your own text give --config.data.tokenizer=bpe
--config.data.bpe_vocab_size=50257.

The architecture is that of Radford et al. (2019) with one exception: GPT-2 also drops out after the
embeddings. Their paper gives no learning rates. The learning rates, Adam's second decay, the weight
decay and the batch (here 512 x 1024 tokens) are those of GPT-3's models of these sizes (Brown et
al., 2020, table 2.1 and appendix B). 20,000 steps are 10.5 billion tokens. In large and xl the
blocks are scanned, and recomputed in the backward pass: docs/gpt2.md, "Long models", has the
savings.
"""

from ml_collections import ConfigDict

from gpt_jax.config import default_config
from gpt_jax.errors import UserError

# Blocks, heads, width, peak learning rate.
SIZES = {
    "small": (12, 12, 768, 6e-4),
    "medium": (24, 16, 1024, 3e-4),
    "large": (36, 20, 1280, 2.5e-4),
    "xl": (48, 25, 1600, 2e-4),
}
LONG = ("large", "xl")


def get_config(size: str = "small") -> ConfigDict:
    """Context 1024, 50,257 tokens, tied embeddings, all biases, tanh GELU, dropout 0.1.

    Raises:
      UserError: for any other size.
    """
    if size not in SIZES:
        raise UserError(f"there is no GPT-2 of size {size!r}: choose one of {', '.join(SIZES)}")
    config = default_config()
    config.model.n_layer, config.model.n_head, config.model.n_embd, peak = SIZES[size]
    config.model.vocab_size = 50257
    config.model.block_size = 1024
    config.model.qkv_bias = True
    config.model.tie_embeddings = True
    config.model.activation = "gelu_tanh"
    config.model.scan_layers = config.model.remat = size in LONG
    config.data.tokenizer = "gpt2"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = peak
    config.optimizer.min_learning_rate = peak / 10
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 700
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.train.steps = 20_000
    config.train.batch_size = 512
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    config.sample.prompt = ""
    return config
