"""What bad input gets: an error in JSON with the right status, never a traceback, never a hang."""

import json
import socket
from urllib.parse import urlsplit

import hypothesis
import live
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.serving import handlers
from gpt_jax.serving.requests import NEUTRAL

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GOOD = {"model": "small", "prompt": "The ", "max_tokens": 3}
POSTS = [COMPLETIONS, CHAT, "/api/inspect", "/api/attention"]


def refused(url, status, body=None, path=COMPLETIONS, method="POST", **headers):
    """The message of an error that has a status and the form that clients expect."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    found, _, content = live.send(url, method, path, body, headers)
    error = json.loads(content)["error"]
    assert (found, set(error)) == (status, {"message", "type", "param", "code"}), error
    return error["message"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"nonsense", b'{"model": "small"', b"\xff\xfe", b'{"a": 1e5', b"[1,"),
        b'{"model": "small", "prompt": "a", "temperature": NaN}',
        b'{"model": "small", "prompt": "a", "temperature": Infinity}',
        b"1" * 5000,
        b"[" * 100_000,
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_broken_json_is_refused(url, path, body):
    assert refused(url, 400, body, path).startswith("the body is n")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [[], "text", 5, None, True])
def test_json_that_is_no_object_is_refused(url, path, body):
    assert "the body is not a JSON object" in refused(url, 400, json.dumps(body).encode(), path)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model", [5, [], {}, True]),
        ("prompt", [5, {}, [5], ["a", None], True, []]),
        ("max_tokens", ["5", 1.5, True, [], -1, 2**31, 10**400]),
        ("temperature", ["hot", True, [], -1, 1001, 10**400]),
        ("top_p", ["much", 0, 1.5, -0.5]),
        ("top_k", [1.5, -1, "all"]),
        ("n", [0, -1, 1.5, 17, "two"]),
        ("seed", [-1, 2**31, 0.5, "seed"]),
        ("stop", [5, [5], ["a", ""], "", "a" * 257, list("abcde")]),
        ("stream", [1, "yes", []]),
        ("echo", [1, "yes"]),
        ("logprobs", [-1, 21, 0.5, True]),
        ("stream_options", [5, [], {"include_usage": True}]),
        ("suffix", ["."]),
        ("best_of", [2]),
        ("logit_bias", [{"50": 1}, []]),
        ("response_format", [{"type": "json_object"}]),
        ("messages", [[{"role": "user", "content": "a"}]]),
        ("max_completion_tokens", [5]),
        ("user", ["me"]),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(url, field, values):
    for value in values:
        body = GOOD | {field: value}
        status, _, content = live.send(url, "POST", COMPLETIONS, body)
        error = json.loads(content)["error"]
        assert status in (400, 404), (value, error)
        assert field in error["message"] or error["param"] == field, (value, error)


@pytest.mark.parametrize(
    "messages",
    [
        *([], "hello", [5], [{}], [{"role": "user"}], [{"content": "a"}]),
        *([{"role": "nobody", "content": "a"}], [{"role": "user", "content": ["a"]}]),
        [{"role": "user", "content": "a", "name": "me"}],
        [{"role": "user", "content": "a"}] * 1001,
    ],
)
def test_wrong_messages_are_refused(url, messages):
    assert refused(url, 400, {"model": "chat", "messages": messages}, CHAT)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_neutral_value_is_accepted(url, name):
    assert live.send(url, "POST", COMPLETIONS, GOOD | {name: NEUTRAL[name]})[0] == 200


def test_a_wrong_option_of_a_stream_is_named(url):
    for options in ({"include_usage": 1}, {"other": True}):
        message = refused(url, 400, GOOD | {"stream": True, "stream_options": options})
        assert next(iter(options)) in message


def test_a_number_too_large_for_a_float_is_refused(url):
    body = json.dumps(GOOD | {"temperature": 0}).replace('"temperature": 0', '"temperature": 1e400')
    assert "temperature = inf is not a finite number" in refused(url, 400, body.encode())


def test_half_of_a_surrogate_pair_is_refused(url):
    body = json.dumps(GOOD | {"prompt": "a\ud800", "model": "bytes"}).encode()
    assert "is half of a surrogate pair" in refused(url, 400, body)


def test_a_long_value_is_not_repeated_whole(url):
    message = refused(url, 400, GOOD | {"temperature": "hot" * 10_000})
    assert len(message) < 600


def test_a_large_body_is_refused(url):
    body = GOOD | {"prompt": "a" * handlers.MOST_BYTES}
    assert "the body is too large" in refused(url, 413, body)


def test_a_large_body_of_unknown_length_is_refused_before_its_end(url):
    host, port = urlsplit(url).netloc.split(":")
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode())
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_ends_is_given_up(runs, monkeypatch):
    monkeypatch.setattr(handlers, "BODY_S", 0.05)
    with live.server(runs) as url:
        host, port = urlsplit(url).netloc.split(":")
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", COMPLETIONS, 405), ("PUT", CHAT, 405), ("DELETE", "/v1/models", 405)),
        *(("POST", "/", 405), ("POST", "/health", 405), ("PATCH", "/api/runs", 405)),
        *(("GET", "/v2/models", 404), ("GET", "/v1/models/none", 404), ("GET", "/page.html", 404)),
        *(("GET", "/api/runs/none", 404), ("GET", "/v1/models/..%2fsmall", 404)),
        *(("GET", "/api/runs/..%2f..%2fsmall", 404), ("GET", "/../config.json", 404)),
    ],
)
def test_a_wrong_method_or_path_is_refused(url, method, path, status):
    assert refused(url, status, method=method, path=path)


@pytest.mark.parametrize("model", ["none", "", "..", "small/", "../small", "small\0", "\ud800"])
def test_an_unknown_model_is_refused_everywhere(url, model):
    for path in POSTS:
        body = {"model": model, "text": "a"}
        if path == COMPLETIONS:
            body = GOOD | {"model": model}
        if path == CHAT:
            body = {"model": model, "messages": [{"role": "user", "content": "a"}]}
        assert "is not served here" in refused(url, 404, body, path)


def test_a_text_too_long_to_inspect_is_refused(url):
    body = {"model": "small", "text": "a" * 16_385}
    assert "send at most 16,384" in refused(url, 400, body, "/api/inspect")


def test_an_unknown_character_is_named(url):
    for path in ("/api/inspect", "/api/attention"):
        assert "'漢' (U+6F22)" in refused(url, 400, {"model": "small", "text": "漢"}, path)


def test_our_own_fault_is_told_without_a_traceback(runs, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(handlers.page_data, "inspect", fail)
    with live.server(runs) as url:
        message = refused(url, 500, {"model": "small", "text": "a"}, "/api/inspect")
        assert message == "the server failed: its terminal says why"
        assert live.send(url, "GET", "/health")[0] == 200
    capsys.readouterr()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("model", "prompt", "messages", "temperature", "top_p", "top_k", "n", "seed", "stop"),
        *("stream", "stream_options", "echo", "logprobs", "top_logprobs", "text", "suffix"),
    ]
)
SMALL = st.fixed_dictionaries({"model": st.just("small"), "max_tokens": st.just(2)})


@hypothesis.settings(max_examples=200)
@given(
    path=st.sampled_from(POSTS),
    base=SMALL,
    rest=st.dictionaries(FIELDS, JSON, max_size=4),
    raw=st.none() | st.binary(max_size=50),
)
def test_whatever_is_sent_the_server_does_not_fail(url, path, base, rest, raw):
    """scripts/load.py sends 10,000 such requests."""
    body = raw if raw is not None else json.dumps(base | rest).encode()
    status, _, content = live.send(url, "POST", path, body)
    assert status < 500
    if status != 200:
        assert json.loads(content)["error"]["message"]
