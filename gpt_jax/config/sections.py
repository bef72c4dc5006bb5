"""The groups of settings: each field's name, its default, its range, its meaning.

Defaults stand here and nowhere else; together they are the tutorial's model, `configs/tiny.py`.
No jax.
"""

import dataclasses
from typing import ClassVar

from gpt_jax.config.setting import (
    ALLOWED,
    ANY,
    BELOW_ONE,
    BPE_SIZE,
    FILLED,
    FIXED,
    FREE,
    INSIDE_ONE,
    INT32,
    NOT_NEGATIVE,
    POSITIVE,
    REST_OR_POSITIVE,
    TOKENIZER,
    UP_TO_256,
    UP_TO_1000,
    UP_TO_ONE,
    Section,
    one_of,
    setting,
)
from gpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class GPTConfig(Section):
    """The shape of the model. Names are GPT-2's."""

    SECTION: ClassVar[str] = "model"
    ON_RESUME: ClassVar[str] = FIXED

    vocab_size: int = setting(
        0, INT32, "ids; 0 = as many as the tokenizer has; more: padded", is_choice=True
    )
    block_size: int = setting(128, POSITIVE, "context length, in tokens")
    n_layer: int = setting(4, UP_TO_256, "blocks")  # Describing 1,000 takes a minute.
    n_head: int = setting(4, POSITIVE, "attention heads per block; must divide n_embd")
    n_embd: int = setting(128, POSITIVE, "width of the residual stream")
    dropout: float = setting(
        0.1, BELOW_ONE, "chance that an activation is dropped in training", on_resume=ALLOWED
    )
    bias: bool = setting(True, ANY, "biases in LayerNorm, MLP and attention's output projection")
    qkv_bias: bool = setting(False, ANY, "biases in the query, key and value projections")
    tie_embeddings: bool = setting(False, ANY, "the head reuses the token embedding")
    n_inner: int = setting(0, NOT_NEGATIVE, "width of the MLP; 0 = four times n_embd")
    n_kv_head: int = setting(0, NOT_NEGATIVE, "heads of keys and values; 0 = n_head")
    position: str = setting("learned", one_of("learned", "rotary"), "how positions are told")
    norm: str = setting("layer", one_of("layer", "rms"), "LayerNorm, or RMSNorm: scale only")
    qk_norm: bool = setting(False, ANY, "RMSNorm of every query and key")
    activation: str = setting(
        "gelu", one_of("gelu", "gelu_tanh", "relu2", "swiglu"),
        "of the MLP: exact or GPT-2's GELU, squared ReLU, or a gate of its own",
    )  # fmt: skip
    zero_init: bool = setting(False, ANY, "blocks begin as the identity: output projections at 0")
    embedding_skip: bool = setting(
        False, ANY, "the embedding is added to the stream again before every block"
    )
    logit_softcap: float = setting(
        0.0, NOT_NEGATIVE, "logits are kept within this by tanh; 0 = they are not"
    )
    matmul_dtype: str = setting(
        "auto", one_of("auto", "float32", "bfloat16"),
        "factors of matrix products; auto = bfloat16 if the hardware has it, else float32",
        on_resume=ALLOWED, is_choice=True,)  # fmt: skip
    attention: str = setting(
        "xla", one_of("xla", "cudnn"),
        "what computes it in training; cudnn = a kernel for NVIDIA GPUs: bfloat16, no dropout",
        on_resume=ALLOWED,)  # fmt: skip
    remat: bool = setting(
        False,
        ANY,
        "the backward pass computes the blocks again: less memory, more work",
        on_resume=ALLOWED,
    )
    scan_layers: bool = setting(
        False, ANY, "one block is compiled and runs n_layer times; its parameters are stacked"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd = {self.n_embd} cannot be shared among model.n_head = "
                f"{self.n_head} heads: choose a width that is a multiple of the heads"
            )
        if self.n_head % self.kv_heads:
            raise UserError(
                f"model.n_head = {self.n_head} cannot share model.n_kv_head = {self.n_kv_head} "
                "heads of keys and values evenly: choose a divisor of the heads"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.position = 'rotary' turns pairs of numbers, but a head has {self.head_dim} "
                "(model.n_embd / model.n_head): choose an even width"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """What text is read, and how it is cut."""

    SECTION: ClassVar[str] = "data"
    ON_RESUME: ClassVar[str] = FIXED

    corpus: str = setting(
        "tinyshakespeare",
        FILLED,
        "tinyshakespeare, builtin, a file, folder or glob of UTF-8 text, or a prepared corpus",
    )
    tokenizer: str = setting("char", TOKENIZER, "what a token is; a prepared corpus has its own")
    bpe_vocab_size: int = setting(1024, BPE_SIZE, "most tokens of bpe, made of the training part")
    val_fraction: float = setting(
        0.1, INSIDE_ONE, "share of the text, at its end, held out", on_resume=ALLOWED
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """How gradients become updates."""

    SECTION: ClassVar[str] = "optimizer"

    name: str = setting(
        "adam", one_of("adam", "adamw", "muon"),
        "update rule; muon = Muon for the matrices of the blocks, AdamW for the rest",
        on_resume=FIXED,)  # fmt: skip
    learning_rate: float = setting(3e-3, POSITIVE, "peak learning rate, reached after warm-up")
    min_learning_rate: float = setting(0.0, NOT_NEGATIVE, "learning rate at the last step")
    warmup_steps: int = setting(100, NOT_NEGATIVE, "steps of linear warm-up")
    schedule: str = setting(
        "linear", one_of("linear", "cosine", "stable", "constant"),
        "learning rate after warm-up: a line or half a cosine down to the minimum; stable = "
        "constant, and the line over the last decay_fraction of the run",
    )  # fmt: skip
    decay_fraction: float = setting(0.2, UP_TO_ONE, "share of the run in which stable decays")
    matrix_learning_rate: float = setting(
        0.02, POSITIVE, "peak learning rate of Muon's matrices; learning_rate is of the rest"
    )
    matrix_momentum: float = setting(0.95, BELOW_ONE, "decay of Muon's mean of gradients")
    b1: float = setting(0.9, BELOW_ONE, "decay of Adam's mean of gradients")
    b2: float = setting(0.99, BELOW_ONE, "decay of Adam's mean of squared gradients")
    weight_decay: float = setting(0.0, NOT_NEGATIVE, "decoupled decay of matrices (not adam)")
    grad_clip: float = setting(
        1.0, NOT_NEGATIVE, "largest global norm of the gradient; 0 = no clipping"
    )
    average_decay: float = setting(
        0.0, BELOW_ONE,
        "an exponential average of the parameters is evaluated and sampled; 0 = they themselves",
        on_resume=FIXED,)  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate = {self.min_learning_rate} is above "
                f"optimizer.learning_rate = {self.learning_rate}: lower one or raise the other"
            )
        if self.weight_decay and self.name == "adam":
            raise UserError(
                f"optimizer.weight_decay = {self.weight_decay} has no place in plain Adam: "
                "set optimizer.name=adamw, or the decay to 0"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """How long, on how much at a time, and what happens on the way."""

    SECTION: ClassVar[str] = "train"

    seed: int = setting(0, INT32, "seed of parameters, batches and dropout")
    steps: int = setting(3000, NOT_NEGATIVE, "updates in the whole run; 0 = only evaluate")
    batch_size: int = setting(32, POSITIVE, "windows of text per update, over all devices")
    microbatch_size: int = setting(
        0, NOT_NEGATIVE, "windows at a time on one device; 0 = chosen", on_resume=FREE
    )
    log_every: int = setting(10, POSITIVE, "steps between lines of metrics.jsonl", on_resume=FREE)
    eval_every: int = setting(300, POSITIVE, "steps between evaluations", on_resume=FREE)
    checkpoint_every: int = setting(300, POSITIVE, "steps between checkpoints", on_resume=FREE)
    max_skipped: int = setting(
        10,
        POSITIVE,
        "steps in a row with a loss or gradient that is not finite, then the run stops",
        on_resume=FREE,
    )


@dataclasses.dataclass(frozen=True)
class SampleConfig(Section):
    """How text is drawn: by a run at its end, and later unless told otherwise."""

    SECTION: ClassVar[str] = "sample"
    ON_RESUME: ClassVar[str] = FREE

    prompt: str = setting("ROMEO:", ANY, "text to continue; empty = a line break")
    max_new_tokens: int = setting(400, NOT_NEGATIVE, "tokens to add")
    temperature: float = setting(0.8, UP_TO_1000, "logits are divided by it; 0 = greedy")
    top_k: int = setting(40, NOT_NEGATIVE, "draw among this many likeliest tokens; 0 = all")
    top_p: float = setting(1.0, UP_TO_ONE, "draw among the likeliest tokens with this total chance")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """How the work is laid over devices. Changes nothing but the order of sums."""

    SECTION: ClassVar[str] = "mesh"
    ON_RESUME: ClassVar[str] = FREE

    cpu_devices: int = setting(
        0,
        NOT_NEGATIVE,
        "devices the CPU's cores are shown as, in each process; 0 = chosen",
        is_choice=True,
    )
    data: int = setting(-1, REST_OR_POSITIVE, "devices that share the batch; -1 = the rest")
    fsdp: int = setting(1, POSITIVE, "devices that share the batch and the parameters")
    tensor: int = setting(1, POSITIVE, "devices that share each matrix product")
