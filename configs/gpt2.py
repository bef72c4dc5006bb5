"""GPT-2, from nothing, in its four sizes: small has 124,439,808 parameters.

    python scripts/train.py --config=configs/gpt2.py:small --config.data.corpus=my.txt
    python scripts/train.py --config=configs/gpt2.py:small --plan

Sizes: small, medium, large, xl. It is for GPUs; no run of it was made. What you give: a large text,
and GPT-2's tokenizer, a folder `gpt2` with its tokenizer.json (or vocab.json and merges.txt) beside
which the command runs, or --config.data.tokenizer=PATH (with =bpe byte pairs of your own text, of
--config.data.bpe_vocab_size=50257).

Architecture: Radford et al. (2019), but for one thing: GPT-2 drops out after the embeddings, too.
Its paper does not tell learning rates; these, Adam's second decay, weight decay and the batch (here
of 512 x 1024 tokens) are those of GPT-3's models of these sizes (Brown et al., 2020, table 2.1 and
appendix B). 20,000 steps are 10.5 billion tokens. The many blocks of large and xl are scanned and
computed again in the backward pass: docs/gpt2.md, "Long models", has what that saves.
"""

from ml_collections import ConfigDict

from gpt_jax.config import UserError, default_config

# Blocks, heads, width, peak learning rate.
SIZES = {
    "small": (12, 12, 768, 6e-4),
    "medium": (24, 16, 1024, 3e-4),
    "large": (36, 20, 1280, 2.5e-4),
    "xl": (48, 25, 1600, 2e-4),
}
LONG = ("large", "xl")


def get_config(size: str = "small") -> ConfigDict:
    """Context 1024, 50,257 tokens, tied embeddings, all biases, GELU by tanh, dropout 0.1.

    Raises:
      UserError: for another size.
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
