"""The transformer block: attention, MLP, and the residual stream around them.

    x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))

`__call__` works on whole windows. `decode` works on tokens that follow others, whose keys and
values are in a cache.

Shapes (the suffix of a name): B rows of a batch, T time, S time of the keys (block_size), C width
(n_embd), H heads, N rows times heads of keys, D width of a head, F width of the MLP (4 C).
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.activations import ACTIVATIONS
from gpt_jax.model.attention import (
    cached_attention,
    causal_attention,
    cudnn_attention,
    exclude_own_value,
    rotate,
)
from gpt_jax.model.convolution import ShortConvolution
from gpt_jax.model.dropout import dropout
from gpt_jax.model.initializers import residual_stddev
from gpt_jax.model.layers import Dense, LayerNorm, RMSNorm, einsum

# The cache of one block: keys and values, (N, S, D) each. With short convolutions, also the inputs
# of both, (B, S, C) each.
BlockCache = tuple[Array, ...]


def constrain(x: Array, *names: str | None) -> Array:
    """Lays activations over the mesh by the logical names of their axes.

    Does nothing where no mesh is set: in decoding, and where every device has all parameters. See
    `activations_over` in devices/sharding.py.

    Args:
      x: shape (B, T, ...).
      names: of the axes after B and T; None = not sharded.
    """
    return nn.with_logical_constraint(x, ("batch", "length", *names))


def norm(config: GPTConfig) -> nn.Module:
    """The normalization that `model.norm` names."""
    return RMSNorm() if config.norm == "rms" else LayerNorm(config.bias)


class Attention(nn.Module):
    """Causal self-attention with several heads, and dropout on its weights and its output.

    Each group of n_head / n_kv_head consecutive heads shares one head of keys and values.
    """

    config: GPTConfig

    def setup(self) -> None:
        c = self.config
        dense = partial(Dense, dtype=c.matmul_dtype)
        heads = partial(dense, "btc,chd->bthd", use_bias=c.qkv_bias)
        kv_heads = partial(heads, (c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"))
        self.q = heads((c.n_head, c.head_dim), ("embed", "heads", "head_dim"))
        self.k, self.v = kv_heads(), kv_heads()
        self.groups = c.n_head // c.kv_heads
        if c.qk_norm:
            self.q_norm, self.k_norm = RMSNorm("head_dim"), RMSNorm("head_dim")
        names, std = ("heads", "head_dim", "embed"), residual_stddev(c)
        self.c_proj = dense("bthd,hdc->btc", (c.n_embd,), names, c.bias, stddev=std)

    def __call__(self, x_BTC: Array, keys_B: Array | None, site: Array | int) -> Array:
        rate, dtype = self.config.dropout, self.config.matmul_dtype
        q_BTHD, k_BTHD, v_BTHD = self._heads(x_BTC, 0)
        if self.config.attention == "cudnn":
            y_BTHD = cudnn_attention(q_BTHD, k_BTHD, v_BTHD)
        else:
            k_BTHD, v_BTHD = (jnp.repeat(x, self.groups, axis=2) for x in (k_BTHD, v_BTHD))
            q, k, v = (constrain(x, "heads", None) for x in (q_BTHD, k_BTHD, v_BTHD))
            y_BTHD = causal_attention(q, k, v, keys_B, site, rate, dtype)
        if self.config.exclusive_attention:
            y_BTHD = exclude_own_value(y_BTHD, v_BTHD)
        return dropout(self.c_proj(y_BTHD), keys_B, site + 1, rate)

    def _heads(self, x_BTC: Array, start: Array | int) -> tuple[Array, ...]:
        """Queries, keys and values of the positions from `start` on, each (B, T, heads, D).

        `start`: of all rows, or of each.
        """
        q, k, v = self.q(x_BTC), self.k(x_BTC), self.v(x_BTC)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.position == "rotary":
            q, k = rotate(q, start), rotate(k, start)
        return q, k, v

    def decode(
        self, x_BTC: Array, cache: BlockCache, start: Array, first_B: Array | int = 0
    ) -> tuple[Array, BlockCache]:
        """Writes the keys and values of x into the cache at `start`; attends over the cache."""
        q_BTHD, k_BTHD, v_BTHD = self._heads(x_BTC, start - first_B)
        q_BHTD, k_BHTD, v_BHTD = (x.swapaxes(1, 2) for x in (q_BTHD, k_BTHD, v_BTHD))
        rows, _, time, width = k_BHTD.shape
        q_NTD, k_NTD, v_NTD = (
            x.reshape(rows * self.config.kv_heads, -1, width) for x in (q_BHTD, k_BHTD, v_BHTD)
        )
        k_NSD = lax.dynamic_update_slice_in_dim(cache[0], k_NTD, start, axis=1)
        v_NSD = lax.dynamic_update_slice_in_dim(cache[1], v_NTD, start, axis=1)
        first_N = jnp.repeat(first_B, self.config.kv_heads) if isinstance(first_B, Array) else 0
        y_NTD = cached_attention(q_NTD, k_NSD, v_NSD, start, self.groups, first_N)
        y_BTHD = y_NTD.reshape(q_BHTD.shape).swapaxes(1, 2)
        if self.config.exclusive_attention:
            y_BTHD = exclude_own_value(y_BTHD, v_BTHD)
        return self._project(y_BTHD.reshape(rows, time, -1)), (k_NSD, v_NSD)

    def _project(self, y_BTC: Array) -> Array:
        """`c_proj` of joined heads. With separate heads, XLA:CPU transposes the kernel for every
        token: 11 of 160 us."""
        kernel = self.c_proj.variables["params"]["kernel"].reshape(-1, self.config.n_embd)
        y_BTC = einsum("btc,ce->bte", y_BTC, kernel, self.config.matmul_dtype)
        return y_BTC + self.c_proj.variables["params"].get("bias", 0.0)


class MLP(nn.Module):
    """Two projections with an activation between them. SwiGLU has a third, the gate."""

    config: GPTConfig

    def setup(self) -> None:
        c = self.config
        dense = partial(Dense, spec="btc,cf->btf", use_bias=c.bias, dtype=c.matmul_dtype)
        inner = partial(dense, features=(c.n_inner or 4 * c.n_embd,), names=("embed", "mlp"))
        self.c_fc = inner()
        if c.activation == "swiglu":
            self.c_gate = inner()
        self.c_proj = dense(features=(c.n_embd,), names=("mlp", "embed"), stddev=residual_stddev(c))

    def __call__(self, x_BTC: Array, keys_B: Array | None, site: Array | int) -> Array:
        activation = ACTIVATIONS[self.config.activation]
        if self.config.activation == "swiglu":
            h_BTF = activation(self.c_gate(x_BTC)) * self.c_fc(x_BTC)
        else:
            h_BTF = activation(self.c_fc(x_BTC))
        h_BTF = constrain(h_BTF, "mlp")
        return dropout(self.c_proj(h_BTF), keys_B, site, self.config.dropout)


class Block(nn.Module):
    """Attention, then MLP. Each reads the normalized stream and adds its result to the stream.

    With `short_convolution`, each reads a convolution of the normalized stream.
    """

    config: GPTConfig

    SITES = 3  # Sites of dropout in a block: the attention weights and the two outputs.

    def setup(self) -> None:
        self.ln_1, self.attn = norm(self.config), Attention(self.config)
        self.ln_2, self.mlp = norm(self.config), MLP(self.config)
        if self.config.short_convolution:
            self.conv_1, self.conv_2 = ShortConvolution(self.config), ShortConvolution(self.config)

    def __call__(self, x_BTC: Array, keys_B: Array | None, site: Array | int) -> Array:
        h_BTC = self.ln_1(x_BTC)
        if self.config.short_convolution:
            h_BTC = self.conv_1(h_BTC)
        x_BTC = x_BTC + constrain(self.attn(h_BTC, keys_B, site), None)
        h_BTC = self.ln_2(x_BTC)
        if self.config.short_convolution:
            h_BTC = self.conv_2(h_BTC)
        return x_BTC + constrain(self.mlp(h_BTC, keys_B, site + 2), None)

    def decode(
        self, x_BTC: Array, cache: BlockCache, start: Array, first_B: Array | int = 0
    ) -> tuple[Array, BlockCache]:
        """The block without dropout, for tokens that follow those in its cache. See GPT.decode."""
        keys_values, inputs = cache[:2], cache[2:]
        h_BTC = self.ln_1(x_BTC)
        if inputs:
            h_BTC, inputs_1 = self.conv_1.decode(h_BTC, inputs[0], start, first_B)
        y_BTC, keys_values = self.attn.decode(h_BTC, keys_values, start, first_B)
        x_BTC = x_BTC + y_BTC
        h_BTC = self.ln_2(x_BTC)
        if inputs:
            h_BTC, inputs_2 = self.conv_2.decode(h_BTC, inputs[1], start, first_B)
            inputs = inputs_1, inputs_2
        return x_BTC + self.mlp(h_BTC, None, 0), (*keys_values, *inputs)
