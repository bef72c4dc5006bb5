"""Measures a server under load: speed, waiting, memory, and requests that nobody should send.

    python scripts/load.py --workdir=runs/tiny
    python scripts/load.py --workdir=runs/tiny --clients=1,32 --fuzz=0

Starts scripts/serve.py on this machine and talks to it, so clients and server
share the cores. Clients stream texts; each begins its next when one has ended.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import command_line
import numpy as np
from absl import flags

from gpt_jax.config import NOT_NEGATIVE, POSITIVE, checked
from gpt_jax.errors import UserError
from gpt_jax.runs import newest_run

SERVE = Path(__file__).with_name("serve.py")
FLAGS: tuple[command_line.Flag, ...] = (
    command_line.WORKDIR,
    ("clients", str, "1,8,32,128", "Numbers of clients at once, separated by commas."),
    (
        "texts",
        int,
        24,
        "Texts that each client asks for; a single client, four times as many.",
    ),
    ("max_tokens", int, 120, "Tokens of a text."),
    ("fuzz", int, 10_000, "Random requests, most of them wrong, to send at the end."),
)
FUZZERS = 16
TIMEOUT_S = 120.0  # Of a request; a server that takes longer hangs.


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(measure, FLAGS, argv, __doc__ or "")


def measure(values: flags.FlagValues, words: list[str]) -> int:
    """Prints what it measures. Returns 1 if a random request got a status of 500 or more."""
    checked("texts", values.texts, int, POSITIVE)
    checked("fuzz", values.fuzz, int, NOT_NEGATIVE)
    clients = numbers(values.clients)
    workdir = Path(values.workdir) if values.workdir else newest_run(Path("runs"))
    command_line.say(f"sample.py: {sampling_speed(workdir):,.0f} tokens/s")
    with server(workdir) as (url, pid):
        body = {"model": workdir.resolve().name, "max_tokens": values.max_tokens}
        body |= {"prompt": prompt_of(url), "stream": True}
        for count in sorted({1, *clients}):  # Compiles every number of rows.
            asyncio.run(load(url, body, count, 2))
        for count in clients:
            texts = values.texts * (4 if count == 1 else 1)
            command_line.say(asyncio.run(load(url, body, count, texts)))
        command_line.say(growth(url, pid, body))
        return asyncio.run(fuzz(url, body, values.fuzz)) if values.fuzz else 0


def numbers(text: str) -> list[int]:
    """The numbers in --clients. Raises UserError for anything else."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UserError(f"--clients={text} is no list of numbers: give one, such as 1,8,32")
    return [int(word) for word in text.split(",")]


def sampling_speed(workdir: Path, tokens: int = 2000) -> float:
    """Tokens per second of one text, drawn as sample.py draws it."""
    import gpt_jax
    from gpt_jax.devices.compiler import set_up_compiler

    set_up_compiler()
    run = gpt_jax.load(workdir)
    run.generate(max_new_tokens=tokens)
    started = time.perf_counter()
    run.generate(max_new_tokens=tokens)
    return tokens / (time.perf_counter() - started)


@contextlib.contextmanager
def server(workdir: Path) -> Iterator[tuple[str, int]]:
    """Starts a server. Yields its address and its process, which ends with the block."""
    words = [sys.executable, str(SERVE), "--port=0", f"--workdir={workdir}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not (url := process.stdout.readline().strip()):
                raise UserError(f"scripts/serve.py does not serve {workdir}: see above")
            yield url, process.pid
        finally:
            process.terminate()


def prompt_of(url: str) -> str:
    """The prompt of the run that a server has."""
    content = asyncio.run(send(url, "GET", "/api/runs", b""))
    prompt: str = json.loads(content.partition(b"\r\n\r\n")[2])[0]["prompt"]
    return prompt


async def load(url: str, body: dict[str, Any], clients: int, texts: int) -> str:
    """Lets clients stream `texts` texts each, one after another. Returns a line for the table."""
    waits: list[float] = []
    started = time.perf_counter()
    drawn = await asyncio.gather(*(client(url, body, texts, i, waits) for i in range(clients)))
    speed = sum(drawn) / (time.perf_counter() - started)
    half, most = np.percentile(waits, [50, 99]) * 1000
    return f"| {clients} | {speed:,.0f} | {half:,.0f} ms | {most:,.0f} ms |"


async def client(
    url: str, body: dict[str, Any], texts: int, number: int, waits: list[float]
) -> int:
    """Streams texts over one connection, one after another. Adds the time to each first token.

    A client of a library would use more of the cores than the server.

    Returns: the number of tokens.
    """
    total, place = 0, urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    with contextlib.closing(writer):
        for text in range(texts):
            usage = {"stream_options": {"include_usage": True}, "seed": 1000 * number + text}
            content = json.dumps(body | usage).encode()
            started = time.perf_counter()
            writer.write(request(place.netloc, "POST", "/v1/completions", content))
            first, answer = await read_stream(reader)
            waits.append(first - started)
            if not (found := re.search(rb'"completion_tokens":(\d+)', answer)):
                raise UserError(f"the server answers {answer[-300:]!r}: see its messages above")
            total += int(found[1])
    return total


def request(host: str, method: str, path: str, body: bytes, more: str = "") -> bytes:
    """A request as it is sent; `more`: lines of its head."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_stream(reader: asyncio.StreamReader) -> tuple[float, bytes]:
    """An answer in chunks, and when its first event came."""
    content, first = b"", 0.0
    async with asyncio.timeout(TIMEOUT_S):
        while not content.endswith(b"\r\n0\r\n\r\n") and (part := await reader.read(2**16)):
            content += part
            first = first or (time.perf_counter() if b"data: " in content else 0.0)
            if not content.startswith(b"HTTP/1.1 200"):  # An error has no chunks.
                break
    return first, content


async def send(url: str, method: str, path: str, body: bytes) -> bytes:
    """Sends a request over a connection of its own. Returns the answer as it came."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    with contextlib.closing(writer):
        writer.write(request(place.netloc, method, path, body, "Connection: close\r\n"))
        async with asyncio.timeout(TIMEOUT_S):
            return await reader.read()


def growth(url: str, pid: int, body: dict[str, Any]) -> str:
    """The server's memory after 100 requests and after 1,000."""
    body = body | {"max_tokens": 20}
    sizes = []
    for texts in (100, 900):
        asyncio.run(load(url, body, 10, texts // 10))
        sizes.append(memory_mb(pid))
    return f"memory after 100 requests: {sizes[0]:,.0f} MB, after 1,000: {sizes[1]:,.0f} MB"


def memory_mb(pid: int) -> float:
    """The memory of a process that is in RAM, in MB; Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def fuzz(url: str, body: dict[str, Any], count: int) -> int:
    """Sends random requests. Returns 1 if one got a status of 500 or more, or no answer."""
    statuses: Counter[str] = Counter()

    async def send_some(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(seed, count, FUZZERS):
            method, path, content = random_request(source, body)
            answer = await send(url, method, path, content)
            found = re.match(rb"HTTP/1.1 (\d+)", answer)
            statuses[found[1].decode() if found else "none"] += 1

    await asyncio.gather(*(send_some(seed) for seed in range(FUZZERS)))
    told = ", ".join(f"{number:,} x {status}" for status, number in sorted(statuses.items()))
    command_line.say(f"{count:,} random requests: {told}")
    return int(any(status >= "500" for status in statuses))


PATHS = ("/v1/completions", "/v1/chat/completions", "/api/inspect", "/api/attention")
OTHER_PATHS = ("/v1/models", "/v1/models/%ff", "/api/runs", "/api/runs/%2e%2e", "/", "/none")
NAMES = (
    *("model", "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "n", "seed"),
    *("stop", "stream", "stream_options", "echo", "logprobs", "text", "suffix", "logit_bias"),
)


def random_request(source: random.Random, body: dict[str, Any]) -> tuple[str, str, bytes]:
    """Method, path and body of a request: nearly right, quite wrong, or no JSON at all."""
    path = source.choice(PATHS if source.random() < 0.9 else OTHER_PATHS)
    method = "POST" if source.random() < 0.95 else source.choice(["GET", "PUT", "DELETE"])
    fields: dict[str, Any] = body | {"max_tokens": source.randrange(4), "stream": False}
    if path.startswith("/api"):
        fields = {"model": body["model"], "text": body["prompt"]}
    for name in source.sample(NAMES, source.randrange(3)):
        if name != "max_tokens" or source.random() < 0.1:
            fields[name] = random_value(source, 3)
    content = bytearray(json.dumps(fields).encode())
    for _ in range(source.choice([0, 0, 0, 0, 1, 3, 30])):
        content[source.randrange(len(content))] = source.randrange(256)
    return method, path, bytes(content[: source.choice([None, None, None, None, 9])])


def random_value(source: random.Random, depth: int) -> Any:
    """Any JSON."""
    kind = source.randrange(9 if depth else 7)
    if kind == 7:
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    if kind == 8:
        names = [source.choice([*NAMES, "role", "content"]) for _ in range(source.randrange(4))]
        return {name: random_value(source, depth - 1) for name in names}
    text = "".join(chr(source.choice([32, 97, 0, 233, 0x6F22, 0xD800])) for _ in range(kind * 3))
    return (None, True, source.choice([0, -1, 1, 2, 2**31, 10**30]), text, -0.5, 1e308, "a")[kind]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
