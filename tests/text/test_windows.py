"""Batches are functions of (seed, step); evaluation windows are disjoint; splits are exact."""

from pathlib import Path

import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.text.windows import (
    batch_offsets,
    evaluation_windows,
    release,
    split,
    train_batch,
    tutorial_windows,
)

TOKENS = np.arange(1000, dtype=np.uint16)
T = 16


def test_split_gives_the_first_nine_tenths_and_the_rest():
    train, val = split(TOKENS, 0.1, T)
    np.testing.assert_array_equal(np.concatenate([train, val]), TOKENS)
    assert (len(train), len(val)) == (900, 100)


def test_tiny_shakespeare_has_871_validation_windows():
    train, val = split(np.zeros(1_115_394, np.uint8), 0.1, 128)
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert evaluation_windows(val, 128).shape == (871, 129)
    assert tutorial_windows(val, 128).shape == (1600, 129)


@pytest.mark.parametrize("val_fraction", [0.1, 0.5, 0.9])
def test_the_error_for_a_short_corpus_says_how_many_tokens_it_needs(val_fraction):
    with pytest.raises(UserError, match=r"has 20 tokens.*give (\d+) tokens") as caught:
        split(np.zeros(20, np.uint8), val_fraction, T)
    needed = int(str(caught.value).split("give ")[1].split()[0])
    split(np.zeros(needed, np.uint8), val_fraction, T)
    with pytest.raises(UserError):
        split(np.zeros(needed * 9 // 10, np.uint8), val_fraction, T)


def test_a_batch_holds_windows_of_the_text():
    batch = train_batch(TOKENS, T, 8, seed=0, step=0)
    assert batch.shape == (8, T + 1)
    assert batch.dtype == np.int32
    np.testing.assert_array_equal(np.diff(batch), 1)
    np.testing.assert_array_equal(batch[:, 0], batch_offsets(1000, T, 8, 0, 0))


def test_a_batch_depends_only_on_seed_and_step():
    first = train_batch(TOKENS, T, 8, seed=3, step=5)
    np.testing.assert_array_equal(first, train_batch(TOKENS, T, 8, seed=3, step=5))
    assert (first != train_batch(TOKENS, T, 8, seed=3, step=6)).any()
    assert (first != train_batch(TOKENS, T, 8, seed=4, step=5)).any()


def test_offsets_are_pinned():
    """Other offsets change the data of every run: that needs a new format of run folders."""
    np.testing.assert_array_equal(batch_offsets(1000, T, 4, 1, 2), [632, 441, 923, 423])


def test_neighbouring_steps_draw_different_offsets():
    steps = [set(batch_offsets(10**9, T, 32, 0, step)) for step in range(100)]
    assert len(set.union(*steps)) == 3200


def test_every_possible_offset_is_drawn():
    offsets = np.concatenate([batch_offsets(T + 5, T, 8, 0, step) for step in range(50)])
    assert set(offsets) == {0, 1, 2, 3, 4}


def test_evaluation_targets_are_disjoint_and_complete():
    windows = evaluation_windows(TOKENS[:100], T)
    assert windows.shape == (6, T + 1)
    np.testing.assert_array_equal(windows[:, 1:].reshape(-1), np.arange(1, 97))
    np.testing.assert_array_equal(windows[:, 0], np.arange(0, 96, T))


def test_tutorial_windows_start_at_every_token():
    windows = tutorial_windows(TOKENS[:100], T)
    np.testing.assert_array_equal(windows[:, 0], np.arange(100 - T))


def test_a_memory_mapped_array_gives_the_same_windows(tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    for cut in (evaluation_windows, tutorial_windows):
        np.testing.assert_array_equal(cut(mapped, T), cut(TOKENS, T))
    np.testing.assert_array_equal(train_batch(mapped, T, 8, 0, 0), train_batch(TOKENS, T, 8, 0, 0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_release_frees_the_pages_of_a_memory_mapped_array(tmp_path):
    np.save(tmp_path / "tokens.npy", np.ones(2**26, np.uint8))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")[5:]
    before = file_memory()
    assert mapped.sum() == 2**26 - 5
    assert file_memory() > before + 2**25
    release(mapped)
    assert file_memory() < before + 2**23
    assert mapped.sum() == 2**26 - 5
    release(TOKENS)  # An array in memory stays as it is.


def file_memory():
    """Bytes of mapped files that are in this process's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024
