"""The GPT: tokens -> logits, and decoding with a KV cache. No loss, no sampling.

    x = wte[tokens] + wpe[positions]
    for each block:  x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))
    logits = lm_head(ln_f(x))

Modules and parameters have GPT-2's names; queries, keys and values are separate. Parameters, the
residual stream, softmax and logits are float32. Factors of matrix products have `matmul_dtype`; in
`decode`, attention's are float32.

`__call__` is the training model over whole windows. `decode` is the same model for tokens that
follow others, whose keys and values are in a cache.

Shapes (the suffix of a name): B rows of a batch, T time, C width (n_embd), V vocabulary.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.activations import softcap
from gpt_jax.model.blocks import Block, BlockCache, constrain, norm
from gpt_jax.model.initializers import INIT_STDDEV, named, normal
from gpt_jax.model.layers import Dense, einsum
from gpt_jax.model.stacking import run_blocks

Cache = tuple[BlockCache, ...]  # The KV cache: one for each block.


def init_cache(config: GPTConfig, rows: int) -> Cache:
    """An empty KV cache for `rows` rows: zeros, none of which is read before it is overwritten.

    Rows and heads share one axis. As two axes, XLA:CPU copies the cache of a single row for every
    token (attention of configs/tiny.py: 37 us a token instead of 11). With positions before heads
    it also copies the cache of several rows. Short convolutions have no heads.
    """
    heads = (rows * config.kv_heads, config.block_size, config.head_dim)
    stream = (rows, config.block_size, config.n_embd)
    shapes = [heads, heads, stream, stream] if config.short_convolution else [heads, heads]
    return tuple(tuple(map(jnp.zeros, shapes)) for _ in range(config.n_layer))


class GPT(nn.Module):
    """The language model. `config` must be resolved: vocab_size above 0, matmul_dtype not auto."""

    config: GPTConfig

    def setup(self) -> None:
        c = self.config
        self.wte = self._table(c.vocab_size, "vocab")
        if c.position == "learned":
            self.wpe = self._table(c.block_size, "length")
        self.h = Block(c) if c.scan_layers else [Block(c) for _ in range(c.n_layer)]  # stacking.py
        self.ln_f = norm(c)
        if not c.tie_embeddings:
            names = ("embed", "vocab")
            self.lm_head = Dense("btc,cv->btv", (c.vocab_size,), names, False, c.matmul_dtype)

    def __call__(self, tokens_BT: Array, keys_B: Array | None = None) -> Array:
        """Logits of the next token at every position.

        Args:
          tokens_BT: ids below vocab_size; T is at most block_size.
          keys_B: one typed key per row turns dropout on.

        Returns: float32 logits, shape (B, T, V).
        """
        e_BTC = constrain(self._embed(tokens_BT, 0), None)

        def run(block: Block, x_BTC: Array, layer: Array | int) -> Array:
            return block(self._stream(x_BTC, e_BTC), keys_B, layer * Block.SITES)

        return self._logits(run_blocks(self.config, self.h, run, e_BTC))

    def decode(
        self, tokens_BT: Array, cache: Cache, start: Array, first_B: Array | int = 0
    ) -> tuple[Array, Cache]:
        """Logits after each of T tokens at the positions from `start` on, and the new cache.

        Equals `__call__` at these positions up to rounding if the cache holds the tokens before
        them. Later positions of the cache are neither read nor preserved. Works for the unrolled
        model only; `stacking.unrolled` converts a scanned one.

        Args:
          tokens_BT: ids below vocab_size; start + T is at most block_size.
          cache: from `init_cache` or from the previous call.
          start: int32 scalar.
          first_B: the place where each row begins; earlier ones are not read, and positions count
            from it. Negative: the row continues from the end of the cache at its beginning, as
            in a ring (see `cached_attention`).

        Returns: float32 logits, shape (B, T, V), and the cache including the new tokens.
        """
        e_BTC = x_BTC = self._embed(tokens_BT, start, first_B)

        @nn.jit  # As in run_blocks.
        def run(block: Block, x_BTC: Array, block_cache: BlockCache) -> tuple[Array, BlockCache]:
            return block.decode(self._stream(x_BTC, e_BTC), block_cache, start, first_B)

        new = []
        for block, block_cache in zip(self.h, cache, strict=True):
            x_BTC, block_cache = run(block, x_BTC, block_cache)
            new.append(block_cache)
        return self._logits(x_BTC), tuple(new)

    def _embed(self, tokens_BT: Array, start: Array | int, first_B: Array | int = 0) -> Array:
        # Gathered along `embed` first. A look-up in a table sharded along it makes XLA copy the
        # activations to all devices ("involuntary full rematerialization").
        table_VC = nn.with_logical_constraint(self.wte.embedding, ("vocab", None))
        x_BTC = jnp.take(table_VC, tokens_BT, axis=0)
        if self.config.position == "learned":
            size = tokens_BT.shape[1]
            if isinstance(first_B, Array):
                places_BT = start + jnp.arange(size) - first_B[:, None]
                return x_BTC + jnp.take(self.wpe.embedding, jnp.maximum(places_BT, 0), axis=0)
            x_BTC = x_BTC + lax.dynamic_slice_in_dim(self.wpe.embedding, start, size)
        return x_BTC

    def _stream(self, x_BTC: Array, e_BTC: Array) -> Array:
        """A block's input: the stream, plus the embedding with `embedding_skip`.

        modded-nanogpt does this with learned weights (Jordan and others, 2024).
        """
        return x_BTC + e_BTC if self.config.embedding_skip else x_BTC

    def _logits(self, x_BTC: Array) -> Array:
        x_BTC = self.ln_f(x_BTC)
        if self.config.tie_embeddings:
            dtype = self.config.matmul_dtype
            logits_BTV = einsum("btc,vc->btv", x_BTC, self.wte.embedding, dtype)
        else:
            logits_BTV = self.lm_head(x_BTC)
        return softcap(constrain(logits_BTV, "vocab"), self.config.logit_softcap)

    def _table(self, rows: int, axis: str) -> nn.Embed:
        init = named(normal(INIT_STDDEV), axis, "embed")
        return nn.Embed(rows, self.config.n_embd, embedding_init=init)
