"""The transformer block as linen modules: attention, MLP, and the residual stream around them."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gpt_jax.config import GPTConfig
from gpt_jax.model.activations import ACTIVATIONS
from gpt_jax.model.attention import cached_attention, causal_attention, cudnn_attention, rotate
from gpt_jax.model.dropout import dropout
from gpt_jax.model.initializers import residual_stddev
from gpt_jax.model.layers import Dense, LayerNorm, RMSNorm, einsum

KeysValues = tuple[jax.Array, jax.Array]  # (N, S, D) each; S is block_size.


def shared(x: jax.Array, *names: str | None) -> jax.Array:
    """Activations whose axes after (batch, length) are laid over the mesh by their names.

    Where no mesh was named (decoding, or training where every device has all parameters), nothing
    happens; see `sharding.activations_over`.

    Args:
      x: shape (B, T, ...); names: of its axes after these two, None = not shared.
    """
    return nn.with_logical_constraint(x, ("batch", "length", *names))


def norm(config: GPTConfig) -> nn.Module:
    """A normalisation of the stream."""
    return RMSNorm() if config.norm == "rms" else LayerNorm(config.bias)


class Attention(nn.Module):
    """Causal self-attention with several heads; drops out its weights and its output.

    Every group of n_head / n_kv_head heads in a row shares a head of keys and values.
    """

    config: GPTConfig

    def setup(self) -> None:
        c = self.config
        heads = partial(
            Dense,
            spec="btc,chd->bthd",
            use_bias=c.qkv_bias,
            dtype=c.matmul_dtype,
        )
        shared = partial(
            heads, features=(c.kv_heads, c.head_dim), names=("embed", "kv_heads", "head_dim")
        )
        self.q = heads(features=(c.n_head, c.head_dim), names=("embed", "heads", "head_dim"))
        self.k, self.v = shared(), shared()
        if c.qk_norm:
            self.q_norm, self.k_norm = RMSNorm("head_dim"), RMSNorm("head_dim")
        self.c_proj = Dense(
            spec="bthd,hdc->btc",
            features=(c.n_embd,),
            names=("heads", "head_dim", "embed"),
            use_bias=c.bias,
            dtype=c.matmul_dtype,
            stddev=residual_stddev(c),
        )

    def __call__(
        self, x_BTC: jax.Array, keys_B: jax.Array | None, site: jax.Array | int
    ) -> jax.Array:
        rate, dtype = self.config.dropout, self.config.matmul_dtype
        q_BTHD, k_BTHD, v_BTHD = self._heads(x_BTC, 0)
        if self.config.attention == "cudnn":
            y_BTHD = cudnn_attention(q_BTHD, k_BTHD, v_BTHD)
        else:
            k_BTHD, v_BTHD = (jnp.repeat(x, self._groups, axis=2) for x in (k_BTHD, v_BTHD))
            q, k, v = (shared(x, "heads", None) for x in (q_BTHD, k_BTHD, v_BTHD))
            y_BTHD = causal_attention(q, k, v, keys_B, site, rate, dtype)
        return dropout(self.c_proj(y_BTHD), keys_B, site + 1, rate)

    @property
    def _groups(self) -> int:
        return self.config.n_head // self.config.kv_heads

    def _heads(self, x_BTC: jax.Array, start: jax.Array | int) -> tuple[jax.Array, ...]:
        """Queries, keys and values of the positions from `start` on, each (B, T, heads, D)."""
        q, k, v = self.q(x_BTC), self.k(x_BTC), self.v(x_BTC)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.position == "rotary":
            q, k = rotate(q, start), rotate(k, start)
        return q, k, v

    def decode(
        self, x_BTC: jax.Array, cache: KeysValues, start: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        """Writes the keys and values of x into the cache at `start`, and attends over the cache."""
        q_BHTD, k_BHTD, v_BHTD = (x.swapaxes(1, 2) for x in self._heads(x_BTC, start))
        rows, _, time, width = k_BHTD.shape
        q_NTD, k_NTD, v_NTD = (
            x.reshape(rows * self.config.kv_heads, -1, width) for x in (q_BHTD, k_BHTD, v_BHTD)
        )
        k_NSD = lax.dynamic_update_slice_in_dim(cache[0], k_NTD, start, axis=1)
        v_NSD = lax.dynamic_update_slice_in_dim(cache[1], v_NTD, start, axis=1)
        y_NTD = cached_attention(q_NTD, k_NSD, v_NSD, start, self._groups)
        y_BTC = y_NTD.reshape(q_BHTD.shape).swapaxes(1, 2).reshape(rows, time, -1)
        return self._project(y_BTC), (k_NSD, v_NSD)

    def _project(self, y_BTC: jax.Array) -> jax.Array:
        """`c_proj` of joined heads: with heads apart, XLA:CPU transposes the kernel at every token,
        11 of 160 us."""
        kernel = self.c_proj.variables["params"]["kernel"].reshape(-1, self.config.n_embd)
        y_BTC = einsum("btc,ce->bte", y_BTC, kernel, self.config.matmul_dtype)
        return y_BTC + self.c_proj.variables["params"].get("bias", 0.0)


class MLP(nn.Module):
    """Two projections with an activation between them; SwiGLU has a third, the gate."""

    config: GPTConfig

    def setup(self) -> None:
        c = self.config
        dense = partial(Dense, spec="btc,cf->btf", use_bias=c.bias, dtype=c.matmul_dtype)
        inner = partial(dense, features=(c.n_inner or 4 * c.n_embd,), names=("embed", "mlp"))
        self.c_fc = inner()
        if c.activation == "swiglu":
            self.c_gate = inner()
        self.c_proj = dense(features=(c.n_embd,), names=("mlp", "embed"), stddev=residual_stddev(c))

    def __call__(
        self, x_BTC: jax.Array, keys_B: jax.Array | None, site: jax.Array | int
    ) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation]
        if self.config.activation == "swiglu":
            h_BTF = activation(self.c_gate(x_BTC)) * self.c_fc(x_BTC)
        else:
            h_BTF = activation(self.c_fc(x_BTC))
        h_BTF = shared(h_BTF, "mlp")
        return dropout(self.c_proj(h_BTF), keys_B, site, self.config.dropout)


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised stream and adds to it."""

    config: GPTConfig

    SITES = 3  # Places where a block drops out: attention weights and the two outputs.

    def setup(self) -> None:
        self.ln_1, self.attn = norm(self.config), Attention(self.config)
        self.ln_2, self.mlp = norm(self.config), MLP(self.config)

    def __call__(
        self, x_BTC: jax.Array, keys_B: jax.Array | None, site: jax.Array | int
    ) -> jax.Array:
        x_BTC = x_BTC + shared(self.attn(self.ln_1(x_BTC), keys_B, site), None)
        return x_BTC + shared(self.mlp(self.ln_2(x_BTC), keys_B, site + 2), None)

    def decode(
        self, x_BTC: jax.Array, cache: KeysValues, start: jax.Array
    ) -> tuple[jax.Array, KeysValues]:
        """The block without dropout for tokens that follow those in its cache; see GPT.decode."""
        y_BTC, cache = self.attn.decode(self.ln_1(x_BTC), cache, start)
        x_BTC = x_BTC + y_BTC
        return x_BTC + self.mlp(self.ln_2(x_BTC), None, 0), cache
