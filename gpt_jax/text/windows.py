"""Token arrays -> the batch of a training step, and the windows of an evaluation. NumPy only.

A window is `block_size + 1` tokens in a row. The first `block_size` tokens are the inputs; the last
`block_size` are the targets, each one place after its input. The tokens may be in memory or
memory-mapped (`np.memmap`): only what a batch needs is read.

There is no iterator and no state. The batch of a step is a function of (seed, step), so a resumed
run sees the same text as an uninterrupted one.

Shapes: B windows in a batch, N windows in an evaluation, W = block_size + 1.
"""

import mmap

import numpy as np

from gpt_jax.errors import UserError

TUTORIAL_WINDOWS = 50 * 32


def split(
    tokens: np.ndarray, val_fraction: float, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits tokens into training tokens and validation tokens (the last `val_fraction`).

    Raises:
      UserError: if either part is shorter than one window of block_size + 1 tokens.
    """
    cut = int(len(tokens) * (1 - val_fraction))
    train, val = tokens[:cut], tokens[cut:]
    if min(len(train), len(val)) < block_size + 1:
        smaller = min(val_fraction, 1 - val_fraction)
        raise UserError(
            f"the text is too short: it has {len(tokens)} tokens, {len(train)} to train and "
            f"{len(val)} to validate, and each part must hold model.block_size + 1 = "
            f"{block_size + 1}: give {round((block_size + 1) / smaller) + 1} tokens or more "
            "(characters, with data.tokenizer=char), or a smaller model.block_size"
        )
    return train, val


def batch_offsets(
    n_tokens: int, block_size: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
    """Where the windows of a step's batch begin, shape (B,): uniform over all places that fit.

    The generator is PCG64, seeded with the pair [seed, step]. `Philox(key=seed, counter=step)` must
    not be used: the streams of neighbouring counters overlap, and so would the batches.
    """
    rng = np.random.default_rng([seed, step])
    return rng.integers(n_tokens - block_size, size=batch_size)


def train_batch(
    tokens: np.ndarray, block_size: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
    """The windows of one step's batch, shape (B, W), int32: a pure function of the arguments."""
    offsets = batch_offsets(len(tokens), block_size, batch_size, seed, step)
    return all_windows(tokens, block_size)[offsets].astype(np.int32)


def all_windows(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Every window, indexed by the offset where it begins: a view of shape (N, W)."""
    return np.lib.stride_tricks.sliding_window_view(tokens, block_size + 1)


def release(tokens: np.ndarray) -> None:
    """Releases the pages of a memory-mapped array from this process's memory.

    They stay in the system's cache, and come back when they are read. Without this, 300 batches of
    32 x 129 from a file of 1 GB left 0.84 GB of it mapped: the system maps 64 KB at a time.
    """
    mapping = getattr(tokens, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # Not on Windows.
        mapping.madvise(mmap.MADV_DONTNEED)


def evaluation_windows(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """All whole windows in order, with disjoint targets: a view of shape (N, W)."""
    return all_windows(tokens, block_size)[::block_size]


def tutorial_windows(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """The windows of the tutorial's own estimate: 50 batches of 32, each window one token further.

    They overlap and cover only the first `block_size` + 1600 tokens. They serve only to compare.
    """
    return all_windows(tokens, block_size)[:TUTORIAL_WINDOWS]
