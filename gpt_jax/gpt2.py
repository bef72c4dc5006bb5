"""GPT-2 in the folders of Hugging Face: its parameters' names there beside ours, and reading them.

    gpt2/  config.json  model.safetensors  tokenizer.json (or vocab.json and merges.txt)

A kernel there is (inputs, outputs), as here. Queries, keys and values are one there, `c_attn`: C
wide each, side by side, heads in a row. Names, shapes and options are those of transformers 5.24
(models/gpt2).

The only module that knows the library safetensors, which is loaded when needed: the extra `gpt2`.
"""

import contextlib
import dataclasses
import errno
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config import GPTConfig
from gpt_jax.setting import UserError

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu"}  # Theirs -> ours.
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
MOST_NAMED = 8
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


@dataclasses.dataclass(frozen=True)
class Folder:
    """A GPT-2 in a folder. Made by `open_folder`; reads its tensors when asked for them.

    Attributes:
      config: the shape of the model; what is no matter of shape stands at its default.
      files: by the name of a tensor without the prefix: its file, and its name there.
    """

    path: Path
    config: GPTConfig
    files: Mapping[str, tuple[Path, str]]

    def read(self, path: str, shape: Shape) -> np.ndarray:
        """One of our parameters by its path, such as "h_0/attn/q/kernel", as float32."""
        name, part = stored_name(path)
        tensor = _read(*self.files[name], part)
        tensor = tensor.T if name == HEAD else tensor
        return np.ascontiguousarray(tensor.reshape(shape), np.float32)


def open_folder(path: Path) -> Folder:
    """A folder whose model is ours to the last tensor.

    Raises:
      UserError: for a folder without the files, a model that is no GPT-2 or does what ours does
        not, and for tensors that are missing, of another shape, or not known, all of them named.
    """
    content = _read_json(path / "config.json")
    files = _find_tensors(path)
    found = {name: _shape(*place) for name, place in files.items()}
    config = _model_config(path, content)
    if content.get("tie_word_embeddings", True) and not _has_own_head(files, found):
        config = dataclasses.replace(config, tie_embeddings=True)
        files.pop(HEAD, None)
        found.pop(HEAD, None)
    if told := _differences(stored_shapes(config), found):
        raise UserError(
            f"{path} does not hold the GPT-2 that its config.json describes ({told}): get the "
            "folder anew, or mend its config.json"
        )
    return Folder(path, config, files)


def _model_config(path: Path, content: dict[str, Any]) -> GPTConfig:
    """The shape that a config.json describes, with a head of its own."""
    if content.get("model_type") != "gpt2":
        raise UserError(
            f"{path} holds a model of type {content.get('model_type')!r}: only 'gpt2' can be read"
        )
    activation = content.get("activation_function", "gelu_new")
    unlike = [
        f"{name} = {content[name]!r}"
        for name, value in FIXED.items()
        if content.get(name, value) != value
    ]
    unlike += [] if activation in ACTIVATIONS else [f"activation_function = {activation!r}"]
    if unlike:
        raise UserError(
            f"{path} holds a GPT-2 that computes something else ({', '.join(unlike)}): there is no "
            "such option here, choose another model"
        )
    try:
        width, inner = content["n_embd"], content.get("n_inner") or 0
        return GPTConfig(
            vocab_size=content["vocab_size"],
            block_size=content["n_positions"],
            n_layer=content["n_layer"],
            n_head=content["n_head"],
            n_embd=width,
            n_inner=0 if inner == 4 * width else inner,
            qkv_bias=True,
            activation=ACTIVATIONS[activation],
        )
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} lacks {error}: get the file anew") from error


def _has_own_head(files: Mapping[str, tuple[Path, str]], found: Mapping[str, Shape]) -> bool:
    """Whether there is a head that is not the token embedding once more."""
    if HEAD not in files or "wte.weight" not in files:
        return False
    return not np.array_equal(_read(*files[HEAD]), _read(*files["wte.weight"]))


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """What is wrong with the tensors found; nothing where they are as expected."""
    told = {
        "missing": sorted(expected.keys() - found.keys()),
        "of another shape": [
            f"{name} {found[name]}, not {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
        "not known": sorted(found.keys() - expected.keys()),
    }
    return "; ".join(f"{what}: {_listed(names)}" for what, names in told.items() if names)


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _find_tensors(folder: Path) -> dict[str, tuple[Path, str]]:
    """Every tensor but the masks: by its name without the prefix, its file and its name there."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = _read_json(index).get("weight_map", {})
        found = {name: folder / file for name, file in places.items()}
    else:
        file = folder / "model.safetensors"
        if not file.exists():
            raise UserError(
                f"{folder} has no model.safetensors: name a folder of GPT-2's weights in this "
                "format, as Hugging Face has them (pickled ones can hold code and are not read)"
            )
        found = dict.fromkeys(_names(file), file)
    bare = {name.removeprefix(PREFIX): (file, name) for name, file in found.items()}
    return {name: place for name, place in bare.items() if not MASKS.fullmatch(name)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a folder with GPT-2's config.json and "
            "model.safetensors, as Hugging Face has them"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: get the file anew")
    return content


def _names(file: Path) -> list[str]:
    with _opened(file) as tensors:
        return list(tensors.keys())


def _shape(file: Path, name: str) -> Shape:
    with _opened(file) as tensors:
        return tuple(tensors.get_slice(name).get_shape())


def _read(file: Path, name: str, part: int | None = None) -> np.ndarray:
    """A tensor, or only one of three parts of its last axis."""
    with _opened(file) as tensors:
        if part is None:
            return tensors.get_tensor(name)
        whole = tensors.get_slice(name)
        size = whole.get_shape()[-1] // 3
        columns = slice(part * size, (part + 1) * size)
        return whole[:, columns] if len(whole.get_shape()) == 2 else whole[columns]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of tensors, of which only the header is read."""
    library = _library()
    try:
        with library.safe_open(file, "numpy") as tensors:
            yield tensors
    except (OSError, library.SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): get the file anew") from error


def save_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors as transformers expects them, into a file with the mode of any new one.

    Raises:
      OSError: when it cannot be written.
      UserError: when the library is missing.
    """
    library = _library()
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode  # By the umask; the library's file is the user's alone.
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except library.SafetensorError as error:  # Which is none of the system's.
        raise OSError(errno.EIO, str(error)) from error
    file.chmod(mode)


def _library() -> Any:
    try:
        import safetensors
    except ImportError:
        raise UserError(
            "files of tensors need the package safetensors, which is not installed: "
            'pip install -e ".[gpt2]"'
        ) from None
    return safetensors
