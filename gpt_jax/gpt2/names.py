"""GPT-2's names, shapes and options beside ours."""

import re

from gpt_jax.config import GPTConfig

FROM_GPT2 = {"gelu_new": "gelu_tanh", "gelu": "gelu"}  # Activations: their names -> ours.
TO_GPT2 = {ours: theirs for theirs, ours in FROM_GPT2.items()}


EPSILON = 1e-5  # Of LayerNorm, as in layers.py.


# What our model does not do: the option's only value that can be read, which is its default, too.
FIXED = {
    "layer_norm_epsilon": EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # Constants that old files hold.


PREFIX = "transformer."


HEAD = "lm_head.weight"


PARTS = {"q": 0, "k": 1, "v": 2}  # Of c_attn.


Shape = tuple[int, ...]


def stored_name(path: str) -> tuple[str, int | None]:
    """Where one of our parameters is stored: the tensor's name, and which third of it, if one.

    "h_3/attn/k/bias" is ("h.3.attn.c_attn.bias", 1), "ln_f/scale" is ("ln_f.weight", None).
    """
    *modules, kind = re.sub(r"^h_(\d+)/", r"h/\1/", path).split("/")
    part = PARTS.get(modules[-1])
    if part is not None:
        modules[-1] = "c_attn"
    return ".".join([*modules, "bias" if kind == "bias" else "weight"]), part


def stored_shapes(config: GPTConfig) -> dict[str, Shape]:
    """The tensors of a GPT-2 of this shape, without the prefix, all biases included."""
    c, inner, layers = config.n_embd, config.n_inner or 4 * config.n_embd, range(config.n_layer)
    shapes: dict[str, Shape] = {"wte.weight": (config.vocab_size, c)}
    shapes["wpe.weight"] = config.block_size, c
    block = {"ln_1": (c,), "attn.c_attn": (c, 3 * c), "attn.c_proj": (c, c)}
    block |= {"ln_2": (c,), "mlp.c_fc": (c, inner), "mlp.c_proj": (inner, c)}
    modules = {f"h.{i}.{name}": shape for i in layers for name, shape in block.items()}
    for name, shape in (modules | {"ln_f": (c,)}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    return shapes if config.tie_embeddings else shapes | {HEAD: (config.vocab_size, c)}
