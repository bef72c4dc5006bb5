"""OpenAI's own client against a live server: texts, streams, options, and errors as exceptions."""

import asyncio

import live
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import gpt_jax

PROMPT = "The king"


def complete(client, **fields):
    defaults = {"model": "small", "prompt": PROMPT, "max_tokens": 30, "seed": 0}
    return client.completions.create(**(defaults | fields))


def chat(client, **fields):
    defaults = {"model": "chat", "max_tokens": 60, "seed": 0}
    messages = [{"role": "user", "content": "The king is"}]
    return client.chat.completions.create(**(defaults | {"messages": messages} | fields))


def streamed(chunks):
    """The text of a stream, and the reasons why it ended."""
    texts, reasons = [], []
    for chunk in chunks:
        for choice in chunk.choices:
            texts.append(choice.text if hasattr(choice, "text") else choice.delta.content or "")
            reasons.append(choice.finish_reason)
    return "".join(texts), reasons


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["bytes", "chat", "small"]


def test_a_model_is_retrieved(client):
    assert client.models.retrieve("small").owned_by == "gpt_jax"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match=r"'none' is not served here: .* small") as found:
        complete(client, model="none")
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_a_text_is_that_of_generate_with_the_same_seed(client, model, seed):
    """Also past the window of 16 tokens."""
    text = complete(client, seed=seed, max_tokens=50).choices[0].text
    assert PROMPT + text == model.generate(PROMPT, max_new_tokens=50, seed=seed)


def test_options_that_are_left_out_are_those_of_the_run(client, model):
    text = client.completions.create(model="small", prompt="The ", seed=3).choices[0].text
    assert "The " + text == model.generate(seed=3)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1.5, "top_p": 0.5}, {"top_k": 2}, {"top_k": 0}]
)
def test_options_are_those_of_generate(client, model, options):
    extra = {name: options[name] for name in options if name == "top_k"}
    rest = {name: options[name] for name in options if name != "top_k"}
    text = complete(client, extra_body=extra, **rest).choices[0].text
    assert PROMPT + text == model.generate(PROMPT, max_new_tokens=30, **options)


def test_temperature_0_needs_no_seed(client):
    texts = {complete(client, temperature=0, seed=None).choices[0].text for _ in range(3)}
    assert len(texts) == 1


def test_without_a_seed_texts_differ(client):
    texts = {complete(client, temperature=2, seed=None).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_several_choices_are_the_samples_of_the_seed(client, model):
    choices = complete(client, n=3).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    texts = model.generate_batch(PROMPT, 3, max_new_tokens=30, seed=0)
    assert [PROMPT + choice.text for choice in choices] == texts


def test_every_prompt_of_a_list_is_continued(client, model):
    choices = complete(client, prompt=["The ", "A man"], n=2).choices
    expected = [
        text.removeprefix(prompt)
        for prompt in ("The ", "A man")
        for text in model.generate_batch(prompt, 2, max_new_tokens=30, seed=0)
    ]
    assert [choice.text for choice in choices] == expected


def test_an_empty_prompt_is_continued(client, model):
    text = complete(client, prompt="").choices[0].text
    assert text == model.generate("", max_new_tokens=30)


def test_a_prompt_longer_than_the_window_is_read_from_its_end(client, model):
    prompt = "The king is here and there. " * 3
    text = complete(client, prompt=prompt).choices[0].text
    assert prompt + text == model.generate(prompt, max_new_tokens=30)


def test_a_stream_joins_to_the_whole_text(client):
    text, reasons = streamed(complete(client, max_tokens=50, stream=True))
    assert text == complete(client, max_tokens=50).choices[0].text
    assert reasons[-1] == "length" and set(reasons[:-1]) == {None}


def test_all_chunks_have_one_id_and_the_model(client):
    chunks = list(complete(client, stream=True, max_tokens=50))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {"small"}
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_a_stream_of_several_choices_keeps_them_apart(client):
    texts = ["", "", ""]
    for chunk in complete(client, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in complete(client, n=3).choices]


def test_usage_counts_tokens(client):
    usage = complete(client, n=2, max_tokens=5).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (8, 10, 18)


def test_a_stream_ends_with_its_usage_if_asked(client):
    options = {"include_usage": True}
    *chunks, last = complete(client, stream=True, stream_options=options)
    assert last.choices == [] and last.usage.completion_tokens == 30
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_text_ends_before_its_stop_string(client, stream, length):
    """A token is a character here, so a longer string is split over tokens."""
    whole = complete(client, max_tokens=60).choices[0].text
    stop = whole[20 : 20 + length]
    answer = complete(client, max_tokens=60, stop=stop, stream=stream)
    choice = None if stream else answer.choices[0]
    text, reasons = streamed(answer) if stream else (choice.text, [choice.finish_reason])
    assert text == whole[: whole.index(stop)]
    assert reasons[-1] == "stop"


def test_the_first_of_several_stop_strings_ends_a_text(client):
    whole = complete(client, max_tokens=60).choices[0].text
    stops = [whole[40:44], whole[20:23], "never there"]
    choice = complete(client, max_tokens=60, stop=stops).choices[0]
    assert choice.text == whole[: min(whole.index(stop) for stop in stops[:2])]
    assert choice.finish_reason == "stop"


def test_the_tokens_of_a_stop_string_are_counted_and_no_later_ones(client):
    whole = complete(client, max_tokens=60).choices[0].text
    answer = complete(client, max_tokens=60, stop=whole[20:23])
    expected = whole.index(whole[20:23]) + 3
    assert answer.usage.completion_tokens == expected


def test_a_held_back_beginning_of_a_stop_string_is_sent_at_the_end(client):
    whole = complete(client, max_tokens=30).choices[0].text
    answer = complete(client, max_tokens=30, stop=whole[-3:] + "!!", stream=True)
    text, reasons = streamed(answer)
    assert (text, reasons[-1]) == (whole, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_token_losses(client, model, stream):
    """Up to the window's end, where token_losses begins a new window."""
    answer = complete(client, prompt="The ", max_tokens=12, logprobs=3, stream=stream)
    chunks = list(answer) if stream else [answer]
    found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    logprobs = [value for part in found for value in part.token_logprobs]
    losses = model.token_losses("The " + text)[3:]
    np.testing.assert_allclose(logprobs, -losses, atol=1e-4)
    assert "".join(token for part in found for token in part.tokens) == text
    assert [offset for part in found for offset in part.text_offset] == list(range(12))
    for part in found:
        assert all(len(best) == 3 for best in part.top_logprobs)


def test_top_logprobs_are_the_likeliest_tokens(client, model):
    best = complete(client, prompt="The ", max_tokens=1, logprobs=5).choices[0].logprobs
    expected = {token: np.log(p) for token, p in model.next_token("The ")[:5]}
    assert best.top_logprobs[0] == pytest.approx(expected, abs=1e-4)


def test_echo_repeats_the_prompt_with_its_losses(client, model):
    prompt = "The king is here and the queen is not."  # Of three windows.
    answer = complete(client, prompt=prompt, echo=True, logprobs=0, max_tokens=4).choices[0]
    assert answer.text.startswith(prompt) and len(answer.text) == len(prompt) + 4
    first, *logprobs = answer.logprobs.token_logprobs
    assert first is None
    expected = -model.token_losses(prompt)
    np.testing.assert_allclose(logprobs[: len(expected)], expected, atol=1e-4)
    assert answer.logprobs.text_offset == list(range(len(answer.text)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_can_be_scored(client, model, stream):
    answer = complete(client, echo=True, logprobs=0, max_tokens=0, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == PROMPT
    assert choices[-1].finish_reason == "length"
    logprobs = [value for choice in choices for value in choice.logprobs.token_logprobs]
    np.testing.assert_allclose(logprobs[1:], -model.token_losses(PROMPT), atol=1e-4)


def test_logprobs_end_where_a_stop_string_ends_the_text(client):
    whole = complete(client, max_tokens=60).choices[0].text
    choice = complete(client, max_tokens=60, stop=whole[20:23], logprobs=0).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text


def test_characters_split_over_tokens_arrive_whole(client, runs):
    """A token is a byte here, and a character has two or three."""
    fields = {"model": "bytes", "prompt": "é漢", "max_tokens": 41, "temperature": 0}
    text = complete(client, **fields).choices[0].text
    model = gpt_jax.load(runs / "bytes")
    assert "é漢" + text == model.generate("é漢", max_new_tokens=41, temperature=0)
    pieces = [chunk.choices[0].text for chunk in complete(client, stream=True, **fields)]
    assert "".join(pieces) == text
    assert "漢" in text and "\ufffd" not in "".join(pieces[:-1])


def test_a_conversation_is_written_with_the_template_of_the_run(client, runs):
    """This template adds nothing to a prompt, and "e " ends an answer."""
    answer = chat(client).choices[0]
    assert answer.message.role == "assistant"
    assert answer.message.content == gpt_jax.load(runs / "chat").answer(
        "The king is", max_new_tokens=60
    )
    assert answer.finish_reason == "stop"


def test_an_answer_ends_where_the_window_is_full(client, runs):
    turns = [{"role": "user", "content": "The king is here. " * 4}]  # 72 of 80 tokens.
    for seed in range(3):
        answer = chat(client, messages=turns, seed=seed, max_tokens=60, temperature=9)
        model = gpt_jax.load(runs / "chat")
        text = model.answer(turns[0]["content"], seed=seed, max_new_tokens=60, temperature=9)
        assert answer.choices[0].message.content == text
        assert answer.choices[0].finish_reason == ("length" if len(text) == 8 else "stop")


def test_a_conversation_that_fills_the_window_is_refused(client):
    turns = [{"role": "user", "content": "The king is here. " * 5}]
    with pytest.raises(openai.BadRequestError, match="no room for an answer") as caught:
        chat(client, messages=turns)
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_ends_with_the_template_or_with_a_stop_string(client):
    whole = chat(client, max_tokens=400).choices[0]
    assert whole.finish_reason == "stop" and "e " not in whole.message.content
    stop = whole.message.content[1:3]
    shorter = chat(client, max_tokens=400, stop=stop).choices[0]
    assert shorter.message.content == whole.message.content.partition(stop)[0]


def test_a_conversation_streams_its_role_its_text_and_its_end(client):
    chunks = list(chat(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    text, reasons = streamed(chunks)
    answer = chat(client).choices[0]
    assert text == answer.message.content
    assert reasons[-1] == answer.finish_reason and set(reasons[:-1]) == {None}


def test_turns_before_the_last_are_read(client):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is here?"},
        {"role": "assistant", "content": "The king."},
        {"role": "user", "content": "What is it?"},
    ]
    assert chat(client, messages=turns).usage.prompt_tokens > chat(client).usage.prompt_tokens


def test_a_conversation_has_logprobs(client):
    answer = chat(client, logprobs=True, top_logprobs=2, max_completion_tokens=9).choices[0]
    tokens = answer.logprobs.content
    assert "".join(token.token for token in tokens) == answer.message.content
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert bytes(tokens[0].bytes).decode() == tokens[0].token


def test_a_run_that_was_not_tuned_does_not_chat(client):
    with pytest.raises(openai.BadRequestError, match="small was not tuned on conversations"):
        chat(client, model="small")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "The 漢"}, "'漢' .* is not one of the"),
        ({"max_tokens": 10**9}, "max_tokens = 1000000000 is too many"),
        ({"max_tokens": -1}, "max_tokens = -1 is out of range"),
        ({"temperature": -0.5}, "temperature = -0.5 is out of range"),
        ({"top_p": 0}, "top_p = 0.0 is out of range"),
        ({"n": 0}, "n = 0 is out of range"),
        ({"stop": ["a"] * 5}, "stop must be up to 4 strings"),
        ({"stop": ""}, "stop must be up to 4 strings"),
        ({"logprobs": 21}, "logprobs = 21 is out of range"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"suffix": "and so on"}, "suffix is not supported"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field is not a field"),
        ({"prompt": [1, 2]}, "prompt must be a string or a list of strings"),
        ({"prompt": "a" * 20_000}, "the prompt has 20,000 tokens: send at most 16,384"),
        ({"prompt": ["The "] * 9, "n": 2}, "18 texts are too many"),
    ],
)
def test_a_bad_request_says_what_is_wrong(client, fields, message):
    with pytest.raises(openai.BadRequestError, match=message) as found:
        complete(client, **fields)
    assert found.value.type == "invalid_request_error"


def test_fields_with_their_neutral_value_are_accepted(client):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "suffix": None}
    assert complete(client, **neutral).choices[0].text == complete(client).choices[0].text


def test_a_wrong_key_is_an_authentication_error(runs):
    with live.server(runs, key="secret") as url:
        for key in ("wrong", "secret2"):
            with (
                OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
                pytest.raises(openai.AuthenticationError, match="missing or wrong"),
            ):
                client.models.list()
        with OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert len(client.models.list().data) == 3


def test_a_full_queue_is_a_rate_limit_error(runs):
    with (
        live.server(runs, queue=3) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError, match="too many texts wait"):
            complete(client, n=4)
        assert complete(client, n=3).choices[2].text


def test_many_clients_get_what_each_gets_alone(url, model):
    """Twelve share four slots, with prompts, options and seeds of their own."""
    texts = [("The king "[: 1 + i % 9], i, 0.5 + i / 10, 20 + i) for i in range(12)]

    async def ask_all():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                complete(client, prompt=prompt, seed=seed, temperature=heat, max_tokens=most)
                for prompt, seed, heat, most in texts
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    expected = [
        model.generate(prompt, seed=seed, temperature=heat, max_new_tokens=most)
        for prompt, seed, heat, most in texts
    ]
    found = asyncio.run(ask_all())
    assert [prompt + text for (prompt, *_), text in zip(texts, found, strict=True)] == expected
