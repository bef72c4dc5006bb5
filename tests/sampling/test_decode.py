"""Drawing tokens: options, random numbers, the KV cache, the window past the context length."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax.config.sections import SampleConfig
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import GPT, init_cache
from gpt_jax.sampling import decode, sampler
from gpt_jax.sampling.decode import draw_tokens, generate, prefill, stream
from gpt_jax.sampling.prompt import encode_prompt, known_prompt
from gpt_jax.sampling.sampler import _cut_to_top_k, sample_token
from gpt_jax.text.tokenizer import CharTokenizer

draw = jax.jit(sample_token, static_argnums=3)
drawn = jax.jit(jax.vmap(sample_token, (None, 0, None, None, None)), static_argnums=3)

LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))


def draws(n=3000, **options):
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    us = (jnp.arange(n) + 0.5) / n  # Evenly spread, so the shares are the probabilities.
    ids = drawn(LOGITS, us, *options.values())
    return np.bincount(ids, minlength=5) / n


def test_probabilities_are_those_of_the_softmax():
    np.testing.assert_allclose(draws(), [0.1, 0.4, 0.05, 0.3, 0.15], atol=1e-3)


def test_temperature_sharpens_and_flattens():
    np.testing.assert_allclose(
        draws(temperature=0.5), np.array([0.01, 0.16, 0.0025, 0.09, 0.0225]) / 0.285, atol=1e-3
    )


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}])
def test_greedy_options_take_the_likeliest(options):
    assert draws(50, **options)[1] == 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-39])
def test_a_tiny_temperature_is_greedy(temperature):
    """At 1e-39, logits / temperature is infinite and its softmax would be NaN."""
    logits = jnp.array([-3.0, 20.0, 19.0])
    assert [int(sample_token(logits, u, temperature, 0, 1.0)) for u in (0.0, 0.9)] == [1, 1]


def test_top_k_keeps_the_k_likeliest():
    np.testing.assert_allclose(draws(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=1e-3)
    np.testing.assert_array_equal(draws(top_k=5), draws())
    np.testing.assert_array_equal(draws(top_k=99), draws())


def test_top_p_keeps_the_fewest_that_reach_it():
    np.testing.assert_allclose(draws(top_p=0.6), [0, 4 / 7, 0, 3 / 7, 0], atol=1e-3)
    np.testing.assert_allclose(draws(top_p=0.75), np.array([0, 8, 0, 6, 3]) / 17, atol=1e-3)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.5, 2), (0.75, 3)])
def test_top_p_keeps_no_id_more_if_it_is_reached_exactly(top_p, kept):
    """Four equal probabilities of a quarter, whose sums are exact."""
    us = (jnp.arange(120) + 0.5) / 120
    ids = drawn(jnp.zeros(4), us, 1.0, 0, top_p)
    assert np.bincount(ids).tolist() == [120 // kept] * kept


def test_top_k_comes_before_top_p():
    """Top-k leaves three; the first two have 0.7 / 0.85 = 0.82 of their probability."""
    np.testing.assert_allclose(draws(top_k=3, top_p=0.8), [0, 4 / 7, 0, 3 / 7, 0], atol=1e-3)


@pytest.fixture
def model(small):
    return make_model(small, 6)


@functools.cache
def make_model(small, block_size):
    config, tokens = small.with_values("model", block_size=block_size).model, jnp.zeros((1, 1), int)
    params = jax.jit(lambda: nn.unbox(GPT(config).init(jax.random.key(0), tokens))["params"])()
    return config, jax.tree.map(lambda p: p * 20, params)


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, tokens):
    return GPT(config).apply({"params": params}, tokens)


def plain(config, params, ids, n, choose):
    """The window rule without a cache. Padding comes after the tokens, so they do not see it."""
    window, new = list(ids)[-config.block_size :], []
    for i in range(n):
        padded = np.pad(window, (0, config.block_size - len(window)))
        logits = apply(config, params, padded[None])
        new.append(int(choose(i, logits[0, len(window) - 1])))
        window.append(new[-1])
        if len(window) > config.block_size:
            window = window[-max(config.block_size // 2, 1) :]
    return new


@pytest.mark.parametrize(
    ("block_size", "length"), [(6, 1), (6, 5), (6, 6), (6, 7), (6, 20), (1, 1), (2, 3), (5, 4)]
)
def test_cached_greedy_text_matches_the_uncached_model_past_the_window(small, block_size, length):
    config, params = make_model(small, block_size)
    prompt = 3 * np.arange(length) % config.vocab_size
    options = SampleConfig(temperature=0.0, max_new_tokens=20)
    [ids] = generate(config, params, prompt, options, seed=0)
    assert ids.tolist() == plain(config, params, prompt, 20, lambda i, logits: logits.argmax())
    assert len(set(ids.tolist())) > 1 or block_size == 1


def test_each_token_of_each_sample_has_its_own_random_number(model):
    config, params = model
    options = SampleConfig(temperature=1.5, top_k=7, top_p=0.9, max_new_tokens=15)
    drawn = generate(config, params, np.arange(3), options, seed=5, num_samples=3)
    for j, ids in enumerate(drawn):
        key = jax.random.fold_in(jax.random.key(5), j)
        numbers = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(15)]
        expected = plain(
            config, params, range(3), 15,
            lambda i, logits, u=numbers: draw(logits, u[i], 1.5, 7, 0.9),
        )  # fmt: skip
        assert ids.tolist() == expected
    assert len({tuple(ids) for ids in drawn.tolist()}) > 1


@pytest.mark.parametrize("u", [0.0, 0.999, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("options", [(1.0, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.6), (0.01, 3, 0.5)])
def test_no_random_number_draws_a_cut_id(u, options):
    """Even if rounding leaves the number above the sum of the probabilities."""
    logits = jnp.array([-jnp.inf, 2.0, 1.9, -3.0, -jnp.inf])
    allowed = (1, 2, 3) if options == (1.0, 0, 1.0) else (1, 2)
    assert int(sample_token(logits, u, *options)) in allowed


def allowed(logits, temperature, top_k, top_p):
    """The ids that may be drawn, in float64, including those whose probability rounds to 0."""
    order = np.argsort(-logits, kind="stable")
    kept = [i for i in order if not top_k or logits[i] >= logits[order[min(top_k, len(order)) - 1]]]
    probs = np.exp((logits[kept] - logits[kept].max()) / temperature) if temperature else [1.0]
    before = np.cumsum(probs) / np.sum(probs) - probs / np.sum(probs)
    return {i for i, b in zip(kept, before, strict=False) if b < top_p + 1e-5}


@hypothesis.settings(max_examples=100)
@given(
    logits=st.lists(st.floats(-50, 50, width=16), min_size=5, max_size=5),
    temperature=st.sampled_from([0.0, 1e-300, 1e-30, 1e-4, 0.5, 1.0, 3.0]) | st.floats(0, 1000),
    top_k=st.sampled_from([0, 1, 2, 4, 5, 99]),
    top_p=st.sampled_from([1e-300, 0.3, 0.9, 1.0]) | st.floats(1e-6, 1.0),
)
def test_only_allowed_ids_are_drawn_for_any_options(logits, temperature, top_k, top_p):
    options = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    us = np.linspace(0, np.nextafter(np.float32(1), np.float32(0)), 9, dtype=np.float32)
    logits = np.array(logits)
    ids = drawn(logits, us, options.temperature, options.top_k, options.top_p)
    assert set(ids.tolist()) <= allowed(logits, temperature, top_k, top_p)


@pytest.mark.parametrize("top_k", [1, 3, 64])
def test_top_k_by_counting_matches_top_k_by_sorting(top_k, monkeypatch):
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 20, 65), jnp.float32)  # With ties.
    counted = _cut_to_top_k(logits, top_k)
    monkeypatch.setattr(sampler, "COUNTED_VOCAB", 10)
    np.testing.assert_array_equal(_cut_to_top_k(logits, top_k), counted)
    kept = np.argsort(-logits, kind="stable")[:top_k]  # Of equal logits, the lowest ids.
    np.testing.assert_array_equal(np.flatnonzero(jnp.isfinite(counted)), np.sort(kept))


@pytest.mark.parametrize("size", [5, sampler.COUNTED_VOCAB + 1])
def test_top_k_of_1_is_greedy_even_if_logits_are_equal(size):
    logits = jnp.zeros(size).at[jnp.array([3, 4])].set(2.0)
    assert [int(sample_token(logits, u, 1.0, 1, 1.0)) for u in (0.0, 0.6, 0.99)] == [3, 3, 3]


@pytest.mark.parametrize("num_samples", [2, 4, 7])
def test_devices_share_the_samples(model, num_samples):
    config, params = model
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    options = SampleConfig(temperature=1.0, top_k=0, max_new_tokens=20)
    alone = generate(config, params, np.arange(4), options, 1, num_samples)
    shared = generate(config, everywhere, np.arange(4), options, 1, num_samples)
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize("num_samples", [1, 2, 8])
def test_a_sample_does_not_depend_on_the_number_of_samples(model, num_samples):
    config, params = model
    options = SampleConfig(temperature=1.0, top_k=0, max_new_tokens=40)
    many = generate(config, params, np.arange(4), options, seed=1, num_samples=9)
    few = generate(config, params, np.arange(4), options, seed=1, num_samples=num_samples)
    np.testing.assert_array_equal(few, many[:num_samples])


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
def test_streamed_pieces_join_to_the_generated_ids(model, piece):
    config, params = model
    options = SampleConfig(temperature=1.0, max_new_tokens=17)
    whole = generate(config, params, np.arange(4), options, seed=1, num_samples=2)
    pieces = list(stream(config, params, np.arange(4), options, 1, 2, piece))
    assert all(0 < new.shape[1] <= piece for new in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_padded_ids_are_never_drawn(model, temperature):
    """However likely they are, the text is that of a model without them."""
    config, params = model
    options = SampleConfig(temperature=temperature, top_k=0, max_new_tokens=40)
    kept = 7
    wte, kernel = params["wte"]["embedding"], params["lm_head"]["kernel"]
    alone = params | {"wte": {"embedding": wte[:kept]}, "lm_head": {"kernel": kernel[:, :kept]}}
    likelier = kernel.at[:, kept:].set(9 * kernel[:, : kernel.shape[1] - kept])
    padded = params | {"lm_head": {"kernel": likelier}}
    smaller = dataclasses.replace(config, vocab_size=kept)
    expected = generate(smaller, alone, np.arange(4), options, seed=1, num_samples=3)
    pieces = stream(config, padded, np.arange(4), options, 1, num_samples=3, n_tokens=kept)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), expected)
    everything = generate(config, padded, np.arange(4), options, seed=1, num_samples=3)
    assert everything.max() >= kept


def test_zero_new_tokens_give_an_empty_array(model):
    options = SampleConfig(max_new_tokens=0)
    assert generate(*model, np.arange(4), options, seed=1, num_samples=2).shape == (2, 0)


def test_the_seed_decides_the_text(model):
    config, params = model
    options = SampleConfig(temperature=9.0, max_new_tokens=30, top_k=0)
    first, again, other = (
        generate(config, params, np.zeros(1, int), options, seed).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_another_length_temperature_or_seed_compiles_nothing(model):
    config, params = model
    draw_tokens.clear_cache(), prefill.clear_cache()
    for length, temperature, top_p in [(1, 0.0, 1.0), (3, 0.5, 1.0), (6, 2.0, 0.3), (20, 1.0, 0.9)]:
        options = SampleConfig(temperature=temperature, top_p=top_p, max_new_tokens=length + 9)
        generate(config, params, np.zeros(length, int), options, seed=length)
    assert (draw_tokens._cache_size(), prefill._cache_size()) == (1, 1)


def test_the_cache_is_updated_in_place(model):
    """The loop on the device writes into the donated cache."""
    config, params = model
    cache = prefill(config, params, init_cache(config, 1), np.zeros((1, 3), np.int32), 0)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)]
    numbers = np.zeros((1, 6), np.float32)
    _, new = draw_tokens(config, params, cache, np.zeros(1, int), 0, 6, numbers, 1.0, 0, 1.0, 11)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(new)] == places


def test_decoding_is_in_float32(model, monkeypatch):
    """In bfloat16, rounding would depend on the number of samples."""
    config, params = model
    half = dataclasses.replace(config, matmul_dtype="bfloat16")
    used = []
    for name in ("prefill", "draw_tokens"):
        original = getattr(decode, name)
        monkeypatch.setattr(
            decode, name, lambda c, *args, f=original: used.append(c) or f(c, *args)
        )
    generate(half, params, np.arange(4), SampleConfig(max_new_tokens=4), seed=0)
    assert set(used) == {config}


def test_an_empty_prompt_is_a_line_break_or_the_first_id():
    assert encode_prompt(CharTokenizer("a\nb"), "").tolist() == [0]
    assert encode_prompt(CharTokenizer("ab"), "").tolist() == [0]
    assert encode_prompt(CharTokenizer("ab\n"), "ba").tolist() == [2, 1]
    with pytest.raises(UserError, match="'z'"):
        encode_prompt(CharTokenizer("ab"), "az")


def test_a_default_prompt_with_unknown_characters_is_empty():
    assert known_prompt(CharTokenizer("ab"), "ab") == "ab"
    assert known_prompt(CharTokenizer("ab"), "abc") == ""
