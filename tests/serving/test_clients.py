"""Clients that go away, and clients that read slowly."""

import json
import socket
import threading
from urllib.parse import urlsplit

import live
import pytest

from gpt_jax.serving.engine import Engine

PATIENCE_S = 120  # Until a test fails.


def connect(url, body):
    """A connection with a small buffer, over which a completion was asked for."""
    host, port = urlsplit(url).netloc.split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.socket()
    connection.settimeout(PATIENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(head.encode() + content)
    return connection


@pytest.fixture
def watched(monkeypatch):
    """Events: a text has begun; a text was cancelled before its end."""
    begun, cancelled = threading.Event(), threading.Event()
    submit, cancel = Engine.submit, Engine.cancel

    def submit_watched(engine, jobs):
        for job in jobs:
            take = job.take
            job.take = lambda *new, take=take: begun.set() or take(*new)
        submit(engine, jobs)

    def cancel_watched(engine, jobs):
        unfinished = [job for job in jobs if not job.is_cancelled]
        cancel(engine, jobs)
        if unfinished:
            cancelled.set()

    monkeypatch.setattr(Engine, "submit", submit_watched)
    monkeypatch.setattr(Engine, "cancel", cancel_watched)
    return begun, cancelled


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot(runs, watched, stream):
    begun, cancelled = watched
    body = {"model": "small", "prompt": "The ", "max_tokens": 16_384, "stream": stream}
    with live.server(runs, slots=1) as url:
        with connect(url, body):
            assert begun.wait(PATIENCE_S)
        assert cancelled.wait(PATIENCE_S)  # Long before its last token.
        assert live.send(url, "POST", "/v1/completions", body | {"max_tokens": 1})[0] == 200


def test_a_slow_reader_holds_nobody_up(runs):
    """It reads nothing of an answer that is larger than all buffers between it and the server."""
    body = {"model": "small", "prompt": "The ", "max_tokens": 16_000, "stream": True}
    body |= {"logprobs": 20}
    with live.server(runs, slots=1) as url, connect(url, body) as slow:
        other = {"model": "small", "prompt": "The ", "max_tokens": 20}
        assert live.send(url, "POST", "/v1/completions", other)[0] == 200
        parts = []
        while b"[DONE]" not in b"".join(parts[-2:]):
            parts.append(slow.recv(2**20))
        assert sum(map(len, parts)) > 4_000_000
