"""All settings in seven groups: the name, default, range and meaning of each.

The defaults are here and nowhere else. Together they are the tutorial's model, `configs/tiny.py`.
No jax.
"""

import dataclasses

from gpt_jax.config.setting import (
    ABOVE_ZERO_TO_1000,
    ALLOWED,
    ANY,
    BELOW_ONE,
    BPE_SIZE,
    FILLED,
    FIXED,
    FREE,
    GROUP,
    INSIDE_ONE,
    INT32,
    NOT_NEGATIVE,
    POSITIVE,
    REST_OR_POSITIVE,
    TOKENIZER,
    UP_TO_16,
    UP_TO_256,
    UP_TO_1000,
    UP_TO_1024,
    UP_TO_ONE,
    Section,
    nearest_divisors,
    one_of,
    setting,
)
from gpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class GPTConfig(Section, name="model", on_resume=FIXED):
    """The model, with GPT-2's names."""

    vocab_size: int = setting(
        0, INT32, "vocabulary size; 0 = the tokenizer's; more pads the tables", automatic=True
    )
    block_size: int = setting(128, POSITIVE, "context length in tokens")
    # Working out the shapes of 1,000 blocks takes a minute.
    n_layer: int = setting(4, UP_TO_256, "transformer blocks")
    n_head: int = setting(4, POSITIVE, "attention heads per block; must divide n_embd")
    n_embd: int = setting(128, POSITIVE, "width of the residual stream")
    dropout: float = setting(
        0.1, BELOW_ONE, "probability of dropping an activation in training", on_resume=ALLOWED
    )
    bias: bool = setting(True, ANY, "biases in LayerNorm, MLP and attention's output projection")
    qkv_bias: bool = setting(False, ANY, "biases in the query, key and value projections")
    tie_embeddings: bool = setting(False, ANY, "the output head shares the token embedding")
    n_inner: int = setting(0, NOT_NEGATIVE, "hidden width of the MLP; 0 = 4 times n_embd")
    n_kv_head: int = setting(0, NOT_NEGATIVE, "key and value heads; 0 = n_head")
    position: str = setting(
        "learned", one_of("learned", "rotary"), "position encoding: a learned table, or rotary"
    )
    norm: str = setting("layer", one_of("layer", "rms"), "LayerNorm, or RMSNorm (scale only)")
    qk_norm: bool = setting(False, ANY, "RMSNorm on every query and key")
    exclusive_attention: bool = setting(
        False, ANY, "a head's output loses its component along the position's own value"
    )
    short_convolution: int = setting(
        0, UP_TO_16,
        "positions, this one included, that a convolution before attention and MLP reads; 0 = none",
    )  # fmt: skip
    activation: str = setting(
        "gelu", one_of("gelu", "gelu_tanh", "relu2", "swiglu"),
        "activation of the MLP: exact GELU, GPT-2's GELU, squared ReLU, or SwiGLU with its own "
        "gate matrix",
    )  # fmt: skip
    zero_init: bool = setting(
        False, ANY, "output projections start at 0, so every block starts as the identity"
    )
    embedding_skip: bool = setting(
        False, ANY, "the embedding is added to the residual stream again before every block"
    )
    logit_softcap: float = setting(0.0, NOT_NEGATIVE, "tanh bound of the logits; 0 = no bound")
    matmul_dtype: str = setting(
        "auto", one_of("auto", "float32", "bfloat16"),
        "dtype of factors in matrix products; auto = bfloat16 if the hardware has it, else float32",
        on_resume=ALLOWED, automatic=True,
    )  # fmt: skip
    attention: str = setting(
        "xla", one_of("xla", "cudnn"),
        "attention kernel in training; cudnn needs an NVIDIA GPU, bfloat16 and no dropout",
        on_resume=ALLOWED,
    )  # fmt: skip
    remat: bool = setting(
        False, ANY, "the backward pass recomputes blocks: less memory, more work", on_resume=ALLOWED
    )
    scan_layers: bool = setting(
        False, ANY, "one block is compiled and runs n_layer times; its parameters are stacked"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd = {self.n_embd} is not a multiple of model.n_head = {self.n_head}: "
                f"set model.n_head to {nearest_divisors(self.n_embd, self.n_head)}, or change the "
                "width"
            )
        if self.n_head % self.kv_heads:
            raise UserError(
                f"model.n_head = {self.n_head} is not a multiple of model.n_kv_head = "
                f"{self.n_kv_head}: set model.n_kv_head to "
                f"{nearest_divisors(self.n_head, self.n_kv_head)}"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.position = 'rotary' rotates pairs, but a head has {self.head_dim} numbers "
                "(model.n_embd / model.n_head): choose an even width"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_head or self.n_head


@dataclasses.dataclass(frozen=True)
class DataConfig(Section, name="data", on_resume=FIXED):
    """Which text is read, and how it becomes tokens."""

    corpus: str = setting(
        "tinyshakespeare", FILLED,
        "tinyshakespeare, builtin, a file, folder or glob of UTF-8 text, or a prepared corpus",
    )  # fmt: skip
    tokenizer: str = setting("char", TOKENIZER, "what a token is; a prepared corpus has its own")
    bpe_vocab_size: int = setting(
        1024, BPE_SIZE, "maximum vocabulary size of bpe, which is learned from the training text"
    )
    val_fraction: float = setting(
        0.1, INSIDE_ONE, "share, at the end of the text, held out for validation", on_resume=ALLOWED
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section, name="optimizer"):
    """How gradients become updates."""

    name: str = setting(
        "adam", one_of("adam", "adamw", "muon"),
        "update rule; muon = Muon for the matrices of the blocks, AdamW for the rest",
        on_resume=FIXED,
    )  # fmt: skip
    learning_rate: float = setting(3e-3, POSITIVE, "peak learning rate, reached after warm-up")
    min_learning_rate: float = setting(0.0, NOT_NEGATIVE, "learning rate at the last step")
    warmup_steps: int = setting(
        100, NOT_NEGATIVE, "steps of linear warm-up; a run of fewer than 100 shortens the default"
    )
    schedule: str = setting(
        "linear", one_of("linear", "cosine", "stable", "constant"),
        "learning rate after warm-up: linear or cosine decay to the minimum; stable = constant, "
        "then linear decay over the last decay_fraction of the run",
    )  # fmt: skip
    decay_fraction: float = setting(0.2, UP_TO_ONE, "stable decays over this last share of the run")
    matrix_learning_rate: float = setting(
        0.02, POSITIVE, "peak learning rate of Muon's matrices; learning_rate is for the rest"
    )
    matrix_momentum: float = setting(0.95, BELOW_ONE, "decay rate of Muon's mean of gradients")
    b1: float = setting(0.9, BELOW_ONE, "decay rate of Adam's mean of gradients")
    b2: float = setting(0.99, BELOW_ONE, "decay rate of Adam's mean of squared gradients")
    weight_decay: float = setting(0.0, NOT_NEGATIVE, "decoupled decay of matrices; not with adam")
    grad_clip: float = setting(1.0, NOT_NEGATIVE, "maximum global gradient norm; 0 = no clipping")
    average_decay: float = setting(
        0.0, BELOW_ONE,
        "decay rate of an exponential average of the parameters, which is evaluated and sampled; "
        "0 = no average",
        on_resume=FIXED,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate = {self.min_learning_rate} is above "
                f"optimizer.learning_rate = {self.learning_rate}: lower one or raise the other"
            )
        if self.weight_decay and self.name == "adam":
            raise UserError(
                f"optimizer.weight_decay = {self.weight_decay} does not apply to adam: set "
                "optimizer.name=adamw, or the weight decay to 0"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section, name="train"):
    """How long and how much at a time, and what happens along the way."""

    seed: int = setting(0, INT32, "seed of parameters, batches and dropout")
    steps: int = setting(3000, NOT_NEGATIVE, "updates in the whole run; 0 = only evaluate")
    batch_size: int = setting(32, POSITIVE, "windows of text per update, over all devices")
    microbatch_size: int = setting(
        0, NOT_NEGATIVE, "windows at a time on one device; 0 = automatic", on_resume=FREE
    )
    temperature: float = setting(
        1.0, ABOVE_ZERO_TO_1000,
        "pre-training: the loss divides the logits by it; below 1, the trained model is less sure "
        "of itself",
    )  # fmt: skip
    teachers: str = setting(
        "", ANY,
        "folders of runs, separated by commas: the mean of their distributions is learned instead "
        "of the text (distillation)",
    )  # fmt: skip
    log_every: int = setting(10, POSITIVE, "steps between lines of metrics.jsonl", on_resume=FREE)
    eval_every: int = setting(300, POSITIVE, "steps between evaluations", on_resume=FREE)
    checkpoint_every: int = setting(300, POSITIVE, "steps between checkpoints", on_resume=FREE)
    max_skipped: int = setting(
        10, POSITIVE,
        "the run stops after this many steps in a row with a loss or gradient that is not finite",
        on_resume=FREE,
    )  # fmt: skip
    sample_tokens: int = setting(
        200, NOT_NEGATIVE,
        "tokens of the sample at each evaluation; 0 = only the sample at the end of the run",
        on_resume=FREE,
    )  # fmt: skip
    patience: int = setting(
        0, NOT_NEGATIVE,
        "the run ends after this many evaluations in a row without a lower validation loss; "
        "0 = never",
    )  # fmt: skip
    max_minutes: float = setting(
        0.0, NOT_NEGATIVE,
        "the command saves and stops after the first step that ends after so many minutes; the "
        "same command resumes the run; 0 = no limit",
        on_resume=FREE,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TuneConfig(Section, name="tune"):
    """What is optimised. All but `objective=language` is tuning: docs/tuning.md."""

    objective: str = setting(
        "language", one_of("language", "instructions", "preferences", "rewards"),
        "language = the next token of the corpus; instructions = answers (SFT); preferences = "
        "chosen over rejected answers (DPO); rewards = a score of drawn answers (GRPO)",
        on_resume=FIXED,
    )  # fmt: skip
    data: str = setting("", ANY, "a file or glob of JSON lines")
    task: str = setting("", one_of("", "play", "sums"), "a built-in task", on_resume=FIXED)
    template: str = setting(
        "", ANY,
        "how prompts and answers become text: play, paragraph, line, chatml, alpaca, or a JSON "
        "file; empty = as in the run it begins from, or the task's, or else chatml for byte pairs "
        "and play for characters and bytes",
        on_resume=FIXED,
    )  # fmt: skip
    mask_prompt: bool = setting(True, ANY, "instructions: only answers are learned, not prompts")
    beta: float = setting(0.1, POSITIVE, "preferences: how closely the reference is kept to")
    chosen_weight: float = setting(
        0.0, NOT_NEGATIVE, "preferences: weight of the chosen answer's own loss; 0 = DPO"
    )
    reward: str = setting("", ANY, "rewards: path:function, instead of the task's judge")
    group_size: int = setting(8, GROUP, "rewards: answers per prompt; divides train.batch_size")
    answer_tokens: int = setting(256, POSITIVE, "rewards: tokens of the longest answer")
    temperature: float = setting(
        1.0, ABOVE_ZERO_TO_1000, "rewards: answers are drawn at this temperature"
    )
    divisor: str = setting(
        "constant", one_of("constant", "tokens", "sequence"),
        "rewards: a token counts 1 / (answers x answer_tokens), 1 / (tokens of all answers), or "
        "1 / (answers x tokens of its answer)",
    )  # fmt: skip
    standardize: bool = setting(False, ANY, "rewards: divide advantages by their group's deviation")
    clip: float = setting(0.2, INSIDE_ONE, "rewards: bound of p / p_old around 1")
    updates: int = setting(1, POSITIVE, "rewards: updates for every answer that is drawn")
    kl_weight: float = setting(0.0, NOT_NEGATIVE, "rewards: weight of KL(policy, reference)")


@dataclasses.dataclass(frozen=True)
class SampleConfig(Section, name="sample", on_resume=FREE):
    """How text is sampled at the end of a run, and the defaults of the commands that sample."""

    prompt: str = setting("ROMEO:", ANY, "text to continue; empty = a line break")
    max_new_tokens: int = setting(400, NOT_NEGATIVE, "tokens to generate")
    temperature: float = setting(0.8, UP_TO_1000, "the logits are divided by it; 0 = greedy")
    top_k: int = setting(40, NOT_NEGATIVE, "draw among this many likeliest tokens; 0 = all")
    top_p: float = setting(1.0, UP_TO_ONE, "draw among the likeliest with this total probability")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section, name="mesh", on_resume=FREE):
    """How the work is spread over devices. It changes only the order of sums."""

    cpu_devices: int = setting(
        0, UP_TO_1024, "devices into which each process splits the CPU's cores; 0 = automatic",
        automatic=True,
    )  # fmt: skip
    data: int = setting(-1, REST_OR_POSITIVE, "devices that split the batch; -1 = the rest")
    fsdp: int = setting(1, POSITIVE, "devices that split the batch and the parameters")
    tensor: int = setting(1, POSITIVE, "devices that split each matrix product")
