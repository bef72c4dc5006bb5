"""A live server in a thread of this process, on a free port; requests that no client sends."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from gpt_jax.serving.app import make_app
from gpt_jax.serving.library import Library, all_runs
from gpt_jax.serving.server import address, bind, settings


@contextlib.contextmanager
def server(runs: Path | Library, slots: int = 2, queue: int = 64, **options: Any) -> Iterator[str]:
    """Serves the runs in a folder or a library. Yields the server's address."""
    library = runs if isinstance(runs, Library) else Library(all_runs(runs), "best", slots, queue)
    with bind("127.0.0.1", 0) as listening:  # Clients wait until the server has started.
        running = uvicorn.Server(settings(make_app(library, **options)))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            yield address(listening)
        finally:
            running.should_exit = True
            thread.join()


def send(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Sends a request. Returns the status, the headers and the body of the answer.

    `body`: bytes, or what becomes JSON.
    """
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    with contextlib.closing(connection):
        connection.request(method, path, content, headers or {})
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, names, answer.read()


def events(url: str, body: Any) -> Iterator[Any]:
    """The objects of a streamed completion; the request is sent at the first."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body))
        for line in connection.getresponse():
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                return
            if data:
                yield json.loads(data)
