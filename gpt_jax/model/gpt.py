"""GPT as linen modules: tokens -> logits, and decoding with a cache. No loss, no sampling.

    x = wte[tokens] + wpe[positions]
    for each block:  x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))
    logits = lm_head(ln_f(x))

Names of modules and parameters are GPT-2's; queries, keys and values are separate. Parameters, the
residual stream, softmax and logits are float32; factors of products are of `matmul_dtype`, in
`decode` those of attention float32.

Every module has `__call__`, the training model over whole windows, and, where positions meet,
`decode`: the same for tokens that follow others, whose keys and values lie in a cache.

Shapes (the suffix of a name): B rows of a batch, T time, S time of the keys, C width (n_embd),
H heads, N rows times heads, D width of a head, F width of the MLP (4 C), V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.activations import softcap
from gpt_jax.model.blocks import Block, KeysValues, norm, shared
from gpt_jax.model.initializers import INIT_STDDEV, named, normal
from gpt_jax.model.layers import Dense, einsum
from gpt_jax.model.stacking import run_blocks

Cache = tuple[KeysValues, ...]  # One pair per block.


def init_cache(config: GPTConfig, rows: int) -> Cache:
    """An empty cache for `rows` rows: zeros, and none of them is read before it is written.

    Rows and heads are one axis: with two, XLA:CPU copies the cache of a single row at every token
    (attention of configs/tiny.py took 37 us a token and not 11), and with the positions before the
    heads that of several rows, too.
    """
    shape = (rows * config.kv_heads, config.block_size, config.head_dim)
    return tuple((jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.n_layer))


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

    def __call__(self, tokens_BT: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Logits of the next token at every position.

        Args:
          tokens_BT: ids below vocab_size, T at most block_size.
          keys_B: one typed key per row turns dropout on.

        Returns: float32 logits, shape (B, T, V).
        """
        e_BTC = shared(self._embed(tokens_BT, 0), None)

        def run(block: Block, x_BTC: jax.Array, layer: jax.Array | int) -> jax.Array:
            return block(self._stream(x_BTC, e_BTC), keys_B, layer * Block.SITES)

        return self._logits(run_blocks(self.config, self.h, run, e_BTC))

    def decode(
        self, tokens_BT: jax.Array, cache: Cache, start: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Logits after each of T tokens that take the positions from `start` on, and the cache.

        Up to rounding `__call__`'s at these positions, if the cache holds the tokens before them.
        What it holds at later positions is neither read nor kept. For the unrolled model, which
        `stacking.unrolled` makes of a scanned one.

        Args:
          tokens_BT: ids below vocab_size; start + T is at most block_size.
          cache: of `init_cache`, or what the last call returned.
          start: int32 scalar.

        Returns: float32 logits, shape (B, T, V), and the cache with the new tokens in it.
        """
        e_BTC = x_BTC = self._embed(tokens_BT, start)
        new = []
        for block, keys_values in zip(self.h, cache, strict=True):
            x_BTC, keys_values = block.decode(self._stream(x_BTC, e_BTC), keys_values, start)
            new.append(keys_values)
        return self._logits(x_BTC), tuple(new)

    def _embed(self, tokens_BT: jax.Array, start: jax.Array | int) -> jax.Array:
        # Fetched over the mesh as a whole: a look-up in a table that is shared along `embed` makes
        # XLA copy the activations to all devices ("involuntary full rematerialization").
        table_VC = nn.with_logical_constraint(self.wte.embedding, ("vocab", None))
        x_BTC = jnp.take(table_VC, tokens_BT, axis=0)
        if self.config.position == "learned":
            size = tokens_BT.shape[1]
            x_BTC = x_BTC + lax.dynamic_slice_in_dim(self.wpe.embedding, start, size)
        return x_BTC

    def _stream(self, x_BTC: jax.Array, e_BTC: jax.Array) -> jax.Array:
        """What a block reads: the stream, perhaps with the embedding in it again.

        modded-nanogpt does so with learned weights (Jordan and others, 2024).
        """
        return x_BTC + e_BTC if self.config.embedding_skip else x_BTC

    def _logits(self, x_BTC: jax.Array) -> jax.Array:
        x_BTC = self.ln_f(x_BTC)
        if self.config.tie_embeddings:
            dtype = self.config.matmul_dtype
            logits_BTV = einsum("btc,vc->btv", x_BTC, self.wte.embedding, dtype)
        else:
            logits_BTV = self.lm_head(x_BTC)
        return softcap(shared(logits_BTV, "vocab"), self.config.logit_softcap)

    def _table(self, rows: int, axis: str) -> nn.Embed:
        init = named(normal(INIT_STDDEV), axis, "embed")
        return nn.Embed(rows, self.config.n_embd, embedding_init=init)
