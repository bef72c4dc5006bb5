"""Answers drawn together equal answers drawn one by one without a cache."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh

from gpt_jax.config import GPTConfig
from gpt_jax.model import GPT
from gpt_jax.sampling.sampler import sample_token
from gpt_jax.text import CharTokenizer
from gpt_jax.tuning.answers import Drawer

TOKENIZER = CharTokenizer("abcdef\n")
PROMPTS = [TOKENIZER.encode(text).astype(np.int32) for text in ("a", "bcd", "ffff", "ab", "e")]
END = TOKENIZER.encode("\n").astype(np.int32)
LONGEST, ROOM = 6, 6


def model(**values):
    return GPTConfig(
        vocab_size=7,
        block_size=12,
        n_layer=2,
        n_head=2,
        n_embd=16,
        matmul_dtype="float32",
        **values,
    )


def parameters(config):
    boxed = GPT(config).init(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))["params"]
    params = nn.unbox(boxed)
    # Larger than at the beginning of training, so that the distributions differ. No zeros, or a
    # convolution would read nothing before.
    return jax.tree.map(lambda p: jnp.where(p == 0, 0.5, 3 * p), params)


def drawer(config, devices=1):
    mesh = Mesh(np.array(jax.devices()[:devices]), "data")
    return Drawer(config, TOKENIZER, mesh, END, LONGEST, room=ROOM)


@partial(jax.jit, static_argnums=0)
def next_id(config, params, tokens, length, u):
    """The id after the first `length` tokens. One program serves every length: the rest of the
    window is padding behind them, at which no earlier token looks."""
    logits = GPT(config).apply({"params": params}, tokens[None])[0, length - 1]
    return sample_token(logits, u, 1.0, 0, 1.0)


def one_by_one(config, params, prompt, key) -> list[int]:
    """The whole model for every token; no cache, no padding before it."""
    ids: list[int] = []
    for i in range(LONGEST):
        tokens = np.zeros(config.block_size, np.int32)
        tokens[: len(prompt) + i] = [*prompt, *ids]
        u = jax.random.uniform(jax.random.fold_in(key, i))
        ids.append(int(next_id(config, params, tokens, len(prompt) + i, u)))
        if ids[-1] == END[0]:
            break
    return ids


@pytest.mark.parametrize(
    "values", [{}, {"position": "rotary", "n_kv_head": 1}, {"short_convolution": 3}]
)
def test_answers_equal_those_of_the_uncached_model(values: dict) -> None:
    config = model(**values)
    params, keys = parameters(config), jax.random.split(jax.random.key(1), len(PROMPTS))
    answers = drawer(config).draw(params, PROMPTS, keys)
    for prompt, key, answer in zip(PROMPTS, keys, answers, strict=True):
        assert list(answer.ids) == one_by_one(config, params, prompt, key)
        assert answer.ended == (answer.ids[-1] == END[0])
        assert answer.text == TOKENIZER.decode([i for i in answer.ids if i != END[0]])
    assert {answer.ended for answer in answers} == {True, False}  # Both kinds are seen.


def test_an_answer_does_not_depend_on_the_others_or_the_devices() -> None:
    config = model()
    params, keys = parameters(config), jax.random.split(jax.random.key(1), len(PROMPTS))
    together = drawer(config).draw(params, PROMPTS, keys)
    spread = drawer(config, devices=4).draw(params, PROMPTS, keys)
    for i, prompt in enumerate(PROMPTS):
        [alone] = drawer(config).draw(params, [prompt], keys[i : i + 1])
        assert alone.text == together[i].text == spread[i].text


def test_an_answer_does_not_depend_on_the_length_of_the_window() -> None:
    """With rotary positions a longer window has the same parameters, and more padding in front."""
    short = model(position="rotary")
    long = dataclasses.replace(short, block_size=20)
    params, keys = parameters(short), jax.random.split(jax.random.key(1), len(PROMPTS))
    rooms = ((short, ROOM), (long, 14))
    found = [dataclasses.replace(drawer(config), room=room).draw(params, PROMPTS, keys)
             for config, room in rooms]  # fmt: skip
    assert [a.text for a in found[0]] == [a.text for a in found[1]]


def test_more_answers_than_are_drawn_at_once_equal_the_same_in_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = model()
    params, keys = parameters(config), jax.random.split(jax.random.key(1), len(PROMPTS))
    together = drawer(config).draw(params, PROMPTS, keys)
    monkeypatch.setattr("gpt_jax.tuning.answers.ROWS_AT_ONCE", 2)  # The last batch is filled up.
    assert [a.text for a in drawer(config).draw(params, PROMPTS, keys)] == [
        a.text for a in together
    ]


def test_an_end_of_several_tokens_ends_an_answer_and_is_not_in_its_text() -> None:
    """But not one that begins in the prompt."""
    config, end = model(), TOKENIZER.encode("ab").astype(np.int32)
    params, count = parameters(config), 200
    made = dataclasses.replace(drawer(config), end_ids=end)
    prompts = [TOKENIZER.encode("fa").astype(np.int32)] * count
    drawn = made.draw(params, prompts, jax.random.split(jax.random.key(1), count))
    for answer in drawn:
        text = TOKENIZER.decode(answer.ids)
        assert text.find("ab") in (-1, len(text) - 2)
        assert answer.ended == text.endswith("ab")
        assert answer.text == text.removesuffix("ab")
        assert answer.ended or len(answer.ids) == LONGEST
    assert {answer.ended for answer in drawn} == {True, False}
    assert any(answer.ids[0] == TOKENIZER.encode("b")[0] for answer in drawn)


def test_only_ids_of_the_tokenizer_are_drawn() -> None:
    """The model's vocabulary may be padded."""
    config = dataclasses.replace(model(), vocab_size=64)
    drawn = drawer(config).draw(parameters(config), PROMPTS, jax.random.split(jax.random.key(1), 5))
    assert all((answer.ids < TOKENIZER.vocab_size).all() for answer in drawn)


def test_an_answer_ends_where_the_window_is_full_whatever_the_others_are() -> None:
    """A prompt of 8 tokens leaves 4 of 12, while another row draws 6."""
    config = dataclasses.replace(model(position="rotary"), block_size=12)
    params, keys = parameters(config), jax.random.split(jax.random.key(1), 20)
    long, short = TOKENIZER.encode("abcdefab"), TOKENIZER.encode("a")
    prompts = [(long if n % 2 else short).astype(np.int32) for n in range(20)]
    made = dataclasses.replace(drawer(config), room=8)
    drawn = made.draw(params, prompts, keys)
    for n, answer in enumerate(drawn):
        most = 4 if n % 2 else LONGEST
        assert len(answer.ids) == most or answer.ended
        [alone] = made.draw(params, [prompts[n]], keys[n : n + 1])
        assert alone.text == answer.text
    assert any(not answer.ended for answer in drawn[1::2])
