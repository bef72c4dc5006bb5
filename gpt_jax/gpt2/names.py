"""GPT-2's names, shapes and options in Hugging Face's format, beside ours.

They are those of transformers 5.24 (models/gpt2). Kernels there have the shape (inputs, outputs),
as here. Their queries, keys and values are one tensor, `c_attn`: side by side, each C wide with its
heads in order.
"""

import re

from gpt_jax.config import GPTConfig
from gpt_jax.model import NORM_EPSILON

# Activations: their names -> ours. The first of two names for one function is GPT-2's.
FROM_GPT2 = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
TO_GPT2 = {ours: theirs for theirs, ours in reversed(FROM_GPT2.items())}

# Options that our model does not have, with the only value that it can read: GPT-2's default.
FIXED = {
    "layer_norm_epsilon": NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

PREFIX = "transformer."  # Of every tensor but the head; old files do not have it.
HEAD = "lm_head.weight"
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # Constants in old files.
PARTS = {"q": 0, "k": 1, "v": 2}  # Of c_attn.
Shape = tuple[int, ...]

MAX_LISTED = 8  # Names of tensors per list in an error message.
MAX_NAME = 80  # Characters of a name there.


def stored_name(path: str) -> tuple[str, int | None]:
    """The tensor that stores one of our parameters, and which third of it, if it is shared.

    "h_3/attn/k/bias" -> ("h.3.attn.c_attn.bias", 1); "ln_f/scale" -> ("ln_f.weight", None).
    """
    *modules, kind = re.sub(r"^h_(\d+)/", r"h/\1/", path).split("/")
    part = PARTS.get(modules[-1])
    if part is not None:
        modules[-1] = "c_attn"
    return ".".join([*modules, "bias" if kind == "bias" else "weight"]), part


def stored_shapes(config: GPTConfig) -> dict[str, Shape]:
    """The tensors of a GPT-2 of this shape, by name without the prefix, with all biases."""
    c, inner, layers = config.n_embd, config.n_inner or 4 * config.n_embd, range(config.n_layer)
    shapes: dict[str, Shape] = {"wte.weight": (config.vocab_size, c)}
    shapes["wpe.weight"] = config.block_size, c
    block = {"ln_1": (c,), "attn.c_attn": (c, 3 * c), "attn.c_proj": (c, c)}
    block |= {"ln_2": (c,), "mlp.c_fc": (c, inner), "mlp.c_proj": (inner, c)}
    modules = {f"h.{i}.{name}": shape for i in layers for name, shape in block.items()}
    for name, shape in (modules | {"ln_f": (c,)}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    return shapes if config.tie_embeddings else shapes | {HEAD: (config.vocab_size, c)}


def listed(names: list[str]) -> str:
    """The first of some names in a line; they can hold any character."""
    more = len(names) - MAX_LISTED
    shown = [ascii(name)[1:-1][:MAX_NAME] for name in names[:MAX_LISTED]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
