"""Compares our logits with those of transformers, on a folder with a GPT-2. No test runs this.

    pip install torch transformers
    PYTHONPATH=. python tests/gpt2/compare_gpt2.py FOLDER

Uses two full windows of random ids, in float32. Prints the largest difference.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from transformers import GPT2LMHeadModel

from gpt_jax.gpt2.folder import open_folder
from gpt_jax.model.gpt import GPT


def ours(path: Path, tokens: np.ndarray) -> np.ndarray:
    """Our logits."""
    folder = open_folder(path)
    model = GPT(dataclasses.replace(folder.config, matmul_dtype="float32"))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(tokens[:, :1])))

    def read(keys: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return folder.read(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf.shape)

    params = jax.tree_util.tree_map_with_path(read, nn.unbox(shapes["params"]))
    return np.asarray(jax.jit(model.apply)({"params": params}, tokens))


def theirs(path: Path, tokens: np.ndarray) -> np.ndarray:
    """The logits of transformers."""
    model = GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def main(path: Path) -> None:
    """Prints how far they are apart, beside how large they are."""
    config = open_folder(path).config
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(2, config.block_size))
    a, b = ours(path, tokens), theirs(path, tokens)
    print(f"{path}: {a.size:,} logits of standard deviation {b.std():.3f}")
    print(f"largest difference {np.abs(a - b).max():.2e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
