"""Drawing tokens: greedy, cut, skewed, repeatable; and the window past the context length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config import SampleConfig, UserError
from gpt_jax.model import GPT
from gpt_jax.sampling import encode_prompt, generate, sample_token
from gpt_jax.tokenizer import CharTokenizer

LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))


def draws(n=3000, **options):
    options = SampleConfig(**({"temperature": 1.0, "top_k": 0} | options))
    keys = jax.random.split(jax.random.key(0), n)
    ids = jax.vmap(lambda key: sample_token(LOGITS, key, options))(keys)
    return np.bincount(ids, minlength=5) / n


def test_chances_are_those_of_the_softmax():
    np.testing.assert_allclose(draws(), [0.1, 0.4, 0.05, 0.3, 0.15], atol=0.03)


def test_temperature_sharpens_and_flattens():
    np.testing.assert_allclose(
        draws(temperature=0.5), np.array([0.01, 0.16, 0.0025, 0.09, 0.0225]) / 0.285, atol=0.03
    )


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}])
def test_greedy_takes_the_likeliest(options):
    assert draws(50, **options)[1] == 1


def test_top_k_cuts_the_rest():
    np.testing.assert_allclose(draws(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_array_equal(draws(top_k=5), draws())
    np.testing.assert_array_equal(draws(top_k=99), draws())


def test_top_p_keeps_the_fewest_that_reach_it():
    np.testing.assert_allclose(draws(top_p=0.6), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_allclose(draws(top_p=0.75), np.array([0, 8, 0, 6, 3]) / 17, atol=0.03)


def test_top_k_comes_before_top_p():
    """Of three left by top-k the first two have 0.7 / 0.85 = 0.82 of the chances."""
    np.testing.assert_allclose(draws(top_k=3, top_p=0.8), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)


@pytest.fixture
def model(small):
    small = small.with_values("model", block_size=6)
    params = nn.unbox(GPT(small.model).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    noise = jax.tree.map(lambda p: p * 20, params["params"])
    return small.model, noise


def plain_greedy(config, params, ids, n):
    """The window rule written out: the model over exactly the tokens in view."""
    apply = jax.jit(GPT(config).apply)
    window, new = list(ids)[-config.block_size :], []
    for _ in range(n):
        logits = apply({"params": params}, jnp.array([window]))
        new.append(int(logits[0, -1].argmax()))
        window.append(new[-1])
        if len(window) > config.block_size:
            window = window[-(config.block_size // 2) :]
    return new


@pytest.mark.parametrize("length", [1, 5, 6, 7, 20])
def test_greedy_text_follows_the_window_rule(model, length):
    config, params = model
    prompt = 3 * np.arange(length) % config.vocab_size
    options = SampleConfig(temperature=0.0, max_new_tokens=20)
    ids = generate(config, params, prompt, jax.random.key(0), options)
    assert ids == plain_greedy(config, params, prompt, 20)
    assert len(set(ids)) > 1


def test_a_seed_gives_its_text_and_another_seed_another(model):
    config, params = model
    options = SampleConfig(temperature=9.0, max_new_tokens=30, top_k=0)
    prompt = np.zeros(1, np.int32)
    first, again, other = (
        generate(config, params, prompt, jax.random.key(seed), options) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_an_empty_prompt_is_a_line_break_or_the_first_token():
    assert encode_prompt(CharTokenizer("a\nb"), "").tolist() == [0]
    assert encode_prompt(CharTokenizer("ab"), "").tolist() == [0]
    assert encode_prompt(CharTokenizer("ab\n"), "ba").tolist() == [2, 1]
    with pytest.raises(UserError, match="'z'"):
        encode_prompt(CharTokenizer("ab"), "az")
