"""Texts that begin and end at different times, drawn together: one row of a batch for each.

A server's clients come and go, and each has a prompt, options and random numbers of its own. A
`Slot` is one text; `Slots` draws a piece of all texts at a time, in a compiled loop on the device.

The KV cache is a ring of block_size places. Every step writes the same place of all rows, and the
next step the place after it: on a CPU, XLA would copy the whole cache if each row wrote a place of
its own. A text that joins gets its prompt's keys and values at the places before, and sees only
these and what it adds. Its positions are its own. When its window is full, it keeps the newest half
and joins again, as in decode.py. So a text depends on its own prompt, options, seed and index.

Shapes (the suffix of a name): B rows, K tokens of a piece, V vocabulary, N rows times heads, H
heads, S block_size, D width of a head.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gpt_jax.config import GPTConfig, SampleConfig
from gpt_jax.inspection import Scores, scores_of
from gpt_jax.model import Cache, init_cache
from gpt_jax.sampling.decode import decode_step, half_window, prefill_window
from gpt_jax.serving.row_sampler import sample_rows

PIECE = 64  # Most tokens per piece: the work between two pieces is small against it.
SHORTEST_PREFILL = 8  # Tokens. They take 0.26 ms with configs/tiny.py; half a window takes 1.2 ms.


class Columns(NamedTuple):
    """What the rows of a batch are at the beginning of a piece; an array of shape (B,) each."""

    last: Any
    position: Any  # Of `last` in the row's window.
    drawn: Any  # Tokens before this piece: the number of the next random number.
    seed: Any
    index: Any  # Which sample of its seed each text is.
    temperature: Any
    top_k: Any
    top_p: Any


@partial(
    jax.jit,
    static_argnames=("config", "n_tokens"),
    donate_argnames="cache",
    compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False},  # See decode.py.
)
def draw_piece(
    config: GPTConfig,
    params: Any,
    cache: Cache,
    columns: Columns,
    place: Array,
    count: Array,
    scored: Array,
    n_tokens: int,
) -> tuple[Array, Scores, Cache]:
    """Draws `count` tokens after the last one of every row.

    A row whose window ends within the piece draws more than is valid; see `Slots.draw`.

    Args:
      cache: of the tokens before the last ones, which end before `place`; donated.
      count: at most PIECE.
      scored: whether to compute scores; otherwise they are zeros.
      n_tokens: only ids below it can be drawn.

    Returns: the ids, shape (B, PIECE), of which the first `count` columns are valid; their scores;
      the cache.
    """
    u_BK, size = _uniforms(columns.seed, columns.index, columns.drawn), config.block_size

    def draw_one(i: Array, carry: Any) -> Any:
        last_B, cache, found = carry
        at, position_B = (place + i) % size, jnp.minimum(columns.position + i, size - 1)
        logits_B1V, cache = decode_step(config, params, last_B[:, None], cache, at, at - position_B)
        logits_BV = logits_B1V[:, 0]
        u_B = lax.dynamic_index_in_dim(u_BK, i, 1, keepdims=False)
        options = columns.temperature, columns.top_k, columns.top_p
        last_B = sample_rows(logits_BV[:, :n_tokens], u_B, *options)
        scores = lax.cond(scored, partial(scores_of, n_tokens=n_tokens), none, logits_BV, last_B)
        write = partial(lax.dynamic_update_index_in_dim, index=i, axis=1)
        return last_B, cache, jax.tree.map(write, found, (last_B, scores))

    def none(logits_BV: Array, ids_B: Array) -> Scores:
        shapes = jax.eval_shape(partial(scores_of, n_tokens=n_tokens), logits_BV, ids_B)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    rows, logits = len(columns.last), jnp.zeros((len(columns.last), config.vocab_size))
    one = jnp.zeros(rows, jnp.int32), none(logits, jnp.zeros(rows, jnp.int32))
    found = jax.tree.map(lambda x: jnp.repeat(x[:, None], PIECE, axis=1), one)
    _, cache, (new_BK, scores) = lax.fori_loop(0, count, draw_one, (columns.last, cache, found))
    return new_BK, scores, cache


def _uniforms(seed_B: Array, index_B: Array, first_B: Array) -> Array:
    """The numbers that `decode.uniforms` gives the next PIECE tokens of each row, (B, PIECE)."""

    def of_row(seed: Array, index: Array, first: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), index)
        keys_K = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(PIECE))
        return jax.vmap(jax.random.uniform)(keys_K)

    return jax.vmap(of_row)(seed_B, index_B, first_B)


@partial(jax.jit, donate_argnames="cache")
def _insert(cache: Cache, one: Cache, row: Array, shift: Array) -> Cache:
    """The cache (donated) with a row from a cache of one row, whose places move by `shift`."""

    def put(all_NSD: Array, one_HSD: Array) -> Array:
        moved_HSD = jnp.roll(one_HSD, shift, axis=1)
        return lax.dynamic_update_slice_in_dim(all_NSD, moved_HSD, row * len(one_HSD), 0)

    return jax.tree.map(put, cache, one)


@partial(jax.jit, static_argnames="rows")
def _rows(cache: Cache, rows_B: Array, rows: int) -> Cache:
    """A cache of the chosen rows of another, which has `rows`; they may repeat."""

    def take(x_NSD: Array) -> Array:
        x_BHSD = x_NSD.reshape(rows, -1, *x_NSD.shape[1:])
        return x_BHSD[rows_B].reshape(-1, *x_NSD.shape[1:])

    return jax.tree.map(take, cache)


@dataclasses.dataclass(eq=False)
class Slot:
    """A text that is being drawn.

    Attributes:
      window: the ids in view, the prompt's among them; at most block_size.
      options: all but `prompt` and `max_new_tokens` apply.
      seed, index: of its random numbers; see `decode.uniforms`.
      drawn: tokens drawn so far.
    """

    window: list[int]
    options: SampleConfig
    seed: int = 0
    index: int = 0
    drawn: int = 0


IDLE = Slot([0], SampleConfig(temperature=0.0, top_k=0))


class Slots:
    """Draws texts together. Not for several threads.

    The batch has as many rows as texts, rounded up to a power of two, so that one text is as fast
    as `stream` draws it. A number of rows is compiled when it first occurs.
    """

    def __init__(self, config: GPTConfig, params: Any, n_tokens: int = 0) -> None:
        """`params`: on one device. `n_tokens`: only ids below it can be drawn; 0 = all."""
        self._config = dataclasses.replace(config, matmul_dtype="float32")  # As in decode.py.
        self._params = params
        self._n_tokens = n_tokens or config.vocab_size
        self._rows: list[Slot | None] = [None]
        self._cache, self._one = self._empty(), self._empty()  # Of all rows; of one to prefill.
        self._place = 0  # That the next step writes.

    def _empty(self) -> Cache:
        """A cache of one row, on the device of the parameters."""
        [device] = jax.tree.leaves(self._params)[0].devices()
        return jax.device_put(init_cache(self._config, 1), device)

    @property
    def texts(self) -> list[Slot]:
        """The texts that have joined and not left."""
        return [slot for slot in self._rows if slot is not None]

    def join(self, ids: np.ndarray, options: SampleConfig, seed: int, index: int = 0) -> Slot:
        """Adds a text.

        Args:
          ids: of its prompt, at least one. Of a longer prompt, the last block_size are read.
          index: which sample of the seed it is; see `decode.uniforms`.
        """
        if None not in self._rows:
            self._resize(2 * len(self._rows))
        window = [int(i) for i in ids[-self._config.block_size :]]
        slot = Slot(window, options, seed, index)
        self._rows[self._rows.index(None)] = slot
        self._fill(slot)
        return slot

    def leave(self, slot: Slot) -> None:
        """Removes a text, finished or not."""
        self._rows[self._rows.index(slot)] = None
        if 4 * len(self.texts) <= len(self._rows):  # Not at a half: it would soon grow again.
            self._resize(max(len(self._rows) // 2, 1))

    def draw(self, count: int, scored: bool = False) -> dict[Slot, tuple[np.ndarray, Scores]]:
        """The next ids of every text, with their scores: 1 to `count` (at most PIECE) of each.

        A text whose window becomes full gets fewer, and continues in the next call.
        """
        size = self._config.block_size
        count = min(count, max(size + 1 - len(slot.window) for slot in self.texts))
        new_BK, scores, self._cache = draw_piece(
            self._config, self._params, self._cache, self._columns(), self._place, count, scored,
            self._n_tokens,
        )  # fmt: skip
        self._place = (self._place + count) % size
        new_BK, scores = jax.device_get((new_BK, scores))
        return {
            slot: self._advance(slot, count, new_BK[row], Scores(*(x[row] for x in scores)))
            for row, slot in enumerate(list(self._rows))
            if slot is not None
        }

    def _columns(self) -> Columns:
        rows = [slot or IDLE for slot in self._rows]
        return Columns(
            np.array([slot.window[-1] for slot in rows], np.int32),
            np.array([len(slot.window) - 1 for slot in rows], np.int32),
            np.array([slot.drawn for slot in rows], np.int32),
            np.array([slot.seed for slot in rows], np.int32),
            np.array([slot.index for slot in rows], np.int32),
            np.array([slot.options.temperature for slot in rows], np.float32),
            np.array([slot.options.top_k for slot in rows], np.int32),
            np.array([slot.options.top_p for slot in rows], np.float32),
        )

    def _advance(
        self, slot: Slot, count: int, new_K: np.ndarray, scores: Scores
    ) -> tuple[np.ndarray, Scores]:
        """The valid part of a row's piece. A window that is full keeps its newest half."""
        size = self._config.block_size
        count = min(count, size + 1 - len(slot.window))
        slot.window += new_K[:count].tolist()
        slot.drawn += count
        if len(slot.window) > size:
            slot.window = slot.window[-half_window(self._config) :]
            self._fill(slot)
        return new_K[:count], Scores(*(x[:count] for x in scores))

    def _fill(self, slot: Slot) -> None:
        """Computes the keys and values of a window but its last token, alone, and inserts them."""
        before, half = np.array([slot.window[:-1]], np.int32), half_window(self._config)
        # A short prompt must not wait for half a window. Powers of two: few programs.
        most = min(half, max(SHORTEST_PREFILL, 1 << (before.shape[1] - 1).bit_length()))
        self._one = prefill_window(self._config, self._params, self._one, before, most=most)
        shift = self._place - before.shape[1]
        self._cache = _insert(self._cache, self._one, self._rows.index(slot), shift)

    def _resize(self, rows: int) -> None:
        """Makes the batch another number of rows; the texts come first."""
        kept = [row for row, slot in enumerate(self._rows) if slot is not None]
        chosen = np.resize(np.array(kept or [0]), rows)  # Rows beyond `kept` are never read.
        self._cache = _rows(self._cache, chosen, len(self._rows))
        self._rows = [*(self._rows[row] for row in kept), *[None] * (rows - len(kept))]
