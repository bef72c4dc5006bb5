"""Texts that are drawn together, and join and leave at different times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config.sections import SampleConfig
from gpt_jax.model.gpt import GPT, init_cache
from gpt_jax.sampling import decode
from gpt_jax.sampling.decode import generate
from gpt_jax.sampling.sampler import sample_token
from gpt_jax.serving import slots
from gpt_jax.serving.row_sampler import sample_rows
from gpt_jax.serving.slots import PIECE, Slots

WARM = SampleConfig(temperature=1.5, top_k=0)
# (prompt length, options, seed, index) of texts that have little in common.
TEXTS = [
    (1, WARM, 0, 0),
    (5, SampleConfig(temperature=0.0, top_k=0), 1, 0),
    (6, SampleConfig(temperature=2.0, top_k=3), 2, 1),
    (7, SampleConfig(temperature=1.0, top_k=0, top_p=0.6), 3, 2),
    (20, SampleConfig(temperature=3.0, top_k=7, top_p=0.9), 4, 0),
    (3, WARM, 2**31 - 1, 5),
]
MODELS = [
    {"block_size": 6},
    {"block_size": 5, "position": "rotary"},
    {"block_size": 6, "position": "rotary", "n_kv_head": 1, "qk_norm": True},
    {"block_size": 6, "short_convolution": 3, "n_kv_head": 1},
    {"block_size": 1},
    {"block_size": 2, "tie_embeddings": True, "norm": "rms"},
]


@functools.cache
def make_model(small, *values):
    config, tokens = small.with_values("model", **dict(values)).model, jnp.zeros((1, 1), int)
    params = jax.jit(lambda: nn.unbox(GPT(config).init(jax.random.key(0), tokens))["params"])()
    # No zeros, or a convolution would read nothing before.
    return config, jax.tree.map(lambda p: jnp.where(p == 0, 5.0, p * 20), params)


@pytest.fixture
def model(small):
    return make_model(small, ("block_size", 6))


def prompt_of(length):
    return 3 * np.arange(length) % 11


def expected(model, text, n):
    """What `generate`, which sample.py calls, draws."""
    length, options, seed, index = text
    options = SampleConfig(
        max_new_tokens=n, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
    )
    return generate(*model, prompt_of(length), options, seed, index + 1)[index].tolist()


def join(together, text):
    length, options, seed, index = text
    return together.join(prompt_of(length), options, seed, index)


def draw(together, found, count):
    """Draws a piece and adds it to the lists in `found`."""
    for slot, (ids, _) in together.draw(count).items():
        assert 0 < len(ids) <= count
        found.setdefault(slot, []).extend(ids.tolist())


@pytest.mark.parametrize("values", MODELS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_alone_is_the_one_that_generate_draws(small, values, text):
    """Also past the window, for prompts shorter and longer than it."""
    model = make_model(small, *values.items())
    together, found = Slots(*model), {}
    slot = join(together, text)
    while len(found.get(slot, ())) < 30:
        draw(together, found, PIECE)
    assert found[slot][:30] == expected(model, text, 30)


@pytest.mark.parametrize("values", MODELS[:4])
def test_a_text_does_not_depend_on_who_else_joins_and_leaves(small, values):
    """Texts come and go at random, between pieces of random lengths."""
    model, random = make_model(small, *values.items()), np.random.default_rng(0)
    together, found, whose = Slots(*model), {}, {}
    for _ in range(60):
        if len(together.texts) < 5 and random.random() < 0.5:
            text = TEXTS[random.integers(len(TEXTS))]
            whose[join(together, text)] = text
        for slot in together.texts:
            if random.random() < 0.1:
                together.leave(slot)
        if together.texts:
            draw(together, found, int(random.integers(1, PIECE + 1)))
    assert len(found) > 15 and max(map(len, found.values())) > 40
    for slot, ids in found.items():
        assert ids == expected(model, whose[slot], len(ids))


def test_padded_ids_are_never_drawn(model):
    config, params = model
    together, found = Slots(config, params, n_tokens=3), {}
    slot = join(together, (4, SampleConfig(temperature=500.0, top_k=0), 0, 0))
    for _ in range(9):
        draw(together, found, PIECE)
    assert set(found[slot]) == {0, 1, 2}


def test_scores_are_the_log_probabilities_of_the_model_without_options(model):
    config, params = model
    together = Slots(config, params)
    slot = join(together, (3, SampleConfig(temperature=3.0, top_k=2), 0, 0))
    other = join(together, (2, WARM, 1, 0))
    drawn = together.draw(3, scored=True)
    for text, length in ((slot, 3), (other, 2)):
        ids, scores = drawn[text]
        tokens = np.concatenate([prompt_of(length), ids])
        logits = GPT(config).apply({"params": params}, tokens[None])[0, length - 1 : -1]
        logp = np.asarray(jax.nn.log_softmax(logits))
        np.testing.assert_allclose(scores.token, logp[np.arange(3), ids], atol=1e-4)
        np.testing.assert_allclose(scores.best, -np.sort(-logp), atol=1e-4)
        np.testing.assert_array_equal(scores.best_ids[:, 0], logp.argmax(-1))
    assert not together.draw(1)[slot][1].best.any()  # Not asked for: not computed.


def test_rows_double_for_texts_that_join_and_halve_when_few_are_left(model):
    together = Slots(*model)
    texts, rows = [], []
    for _ in range(5):
        texts.append(join(together, TEXTS[0]))
        rows.append(len(together._rows))
    assert rows == [1, 2, 4, 4, 8]
    for text in texts:
        together.leave(text)
        rows.append(len(together._rows))
    assert rows[5:] == [8, 8, 4, 2, 1]
    assert together.texts == []


def test_other_texts_compile_nothing(model):
    config, params = model
    together = Slots(config, params)
    functions = slots.draw_piece, slots._insert, slots._rows, decode.prefill
    for function in functions:
        function.clear_cache()
    sizes = []
    for first, second in [(0, 1), (2, 3), (4, 5)]:
        for text in (TEXTS[first], TEXTS[second]):
            join(together, text)
        together.draw(1), together.draw(PIECE, scored=True)
        for slot in together.texts:
            together.leave(slot)
        sizes.append([function._cache_size() for function in functions])
    assert sizes[0] == sizes[1] == sizes[2]


def test_the_cache_is_updated_in_place(model):
    config, params = model
    cache = init_cache(config, 2)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)]
    columns = Slots(config, params)._columns()
    columns = jax.tree.map(lambda column: np.repeat(column, 2, axis=0), columns)
    *_, new = slots.draw_piece(config, params, cache, columns, 5, PIECE, True, 11)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(new)] == places
    one, new = init_cache(config, 1), slots._insert(new, init_cache(config, 1), 1, -3)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(new)] == places
    assert one is not new


@pytest.mark.parametrize("size", [11, 1100])  # By counting and by sorting.
def test_rows_with_options_of_their_own_get_what_each_gets_alone(size):
    random = np.random.default_rng(1)
    logits = random.integers(-9, 9, (64, size)).astype(np.float32)  # With ties.
    u = random.random(64, dtype=np.float32)
    temperature = random.choice([0.0, 1e-6, 0.5, 1.0, 3.0], 64).astype(np.float32)
    top_k = random.choice([0, 1, 2, 40, size, size + 9], 64).astype(np.int32)
    top_p = random.choice([1e-9, 0.3, 0.9, 1.0], 64).astype(np.float32)
    alone = jax.jit(sample_token, static_argnums=3)
    expected = [
        int(alone(*row[:3], int(row[3]), row[4]))
        for row in zip(logits, u, temperature, top_k, top_p, strict=True)
    ]
    rows = jax.jit(sample_rows)(logits, u, temperature, top_k, top_p)
    assert rows.tolist() == expected
    assert len(set(expected)) > 5
