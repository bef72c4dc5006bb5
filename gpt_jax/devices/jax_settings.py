"""JAX's own settings that would change results, pinned while gpt_jax computes.

A user can change them by variables of the environment or in a notebook by `jax.config`. A run
must give the same numbers all the same. Flags of the compiler (XLA_FLAGS) are not pinned.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from gpt_jax.errors import UserError

T = TypeVar("T")

PINNED: list[tuple[Callable[[Any], contextlib.AbstractContextManager[Any]], Any]] = [
    # Other random numbers.
    (jax.threefry_partitionable, True),
    (jax.default_prng_impl, "threefry2x32"),
    # Other dtypes, or an error where they mix.
    (jax.enable_x64, False),
    (jax.numpy_dtype_promotion, "standard"),
    (jax.numpy_rank_promotion, "allow"),
    # Other rounding.
    (jax.default_matmul_precision, None),
    (jax.disable_jit, False),
    # Errors: the first for a step that is not finite, which is skipped; the second for -inf, by
    # which attention hides what comes later; the third for every batch.
    (jax.debug_nans, False),
    (jax.debug_infs, False),
    (jax.transfer_guard, "allow"),
]


@contextlib.contextmanager
def pinned_settings() -> Iterator[None]:
    """A context, also a decorator, in which JAX's settings are those that results depend on.

    It changes them for the current thread only, and gives them back.

    Raises:
      UserError: for JAX_RANDOM_SEED_OFFSET, which JAX cannot change for a part of a program.
    """
    if offset := getattr(jax.config, "jax_random_seed_offset", 0):
        raise UserError(
            f"JAX_RANDOM_SEED_OFFSET={offset} would change every random number: unset the "
            "variable (in Python, set jax.config's jax_random_seed_offset to 0), and choose a seed"
        )
    with contextlib.ExitStack() as stack:
        for setting, value in PINNED:
            stack.enter_context(setting(value))
        yield


def pinned_steps(items: Iterator[T]) -> Iterator[T]:
    """The same items. Each is computed with `pinned_settings`, which do not hold in between."""
    end: Any = object()
    while True:
        with pinned_settings():
            item = next(items, end)
        if item is end:
            return
        yield item
