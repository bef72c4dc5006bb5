"""The weights of attention, as numbers to look at."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.inspection import attention_maps
from gpt_jax.model.gpt import GPT
from gpt_jax.model.layers import NORM_EPSILON

TOKENS = np.arange(7) * 3 % 11


def made(small, **values):
    config = small.with_values("model", n_layer=2, **values).model
    params = nn.unbox(GPT(config).init(jax.random.key(0), TOKENS[None]))["params"]
    return config, jax.tree.map(lambda p: p * 5, params)


@pytest.mark.parametrize(
    "values", [{}, {"position": "rotary", "qk_norm": True}, {"n_kv_head": 1, "norm": "rms"}]
)
def test_weights_sum_to_1_and_never_look_ahead(small, values):
    config, params = made(small, **values)
    maps = np.asarray(attention_maps(config, params, TOKENS))
    assert maps.shape == (2, 2, 7, 7)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    assert (np.triu(maps, k=1) == 0).all()
    assert maps.std() > 0.01


def test_the_first_block_follows_its_formula(small):
    config, params = made(small)
    x = np.asarray(params["wte"]["embedding"])[TOKENS] + np.asarray(params["wpe"]["embedding"])[:7]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + NORM_EPSILON)
    block = jax.tree.map(np.asarray, params["h_0"])
    x = x * block["ln_1"]["scale"] + block["ln_1"]["bias"]
    q, k = (np.einsum("tc,chd->htd", x, block["attn"][name]["kernel"]) for name in "qk")
    scores = np.einsum("htd,hsd->hts", q, k) / np.sqrt(config.head_dim)
    weights = np.tril(np.exp(scores))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(attention_maps(config, params, TOKENS)[0], weights, atol=1e-5)
