"""scripts/load.py: starts a server, loads it, and sends it requests that nobody should send."""

import random
import re

import load
import pytest

from gpt_jax.serving.errors import ApiError
from gpt_jax.serving.requests import completion_request, parse_json


def test_it_prints_speed_waiting_memory_and_what_random_requests_get(trained, capfd):
    words = [f"--workdir={trained}", "--clients=1,2", "--texts=1", "--max_tokens=5", "--fuzz=40"]
    assert load.main(["scripts/load.py", *words]) == 0
    sampled, one, two, memory, fuzzed = capfd.readouterr().out.splitlines()
    assert re.fullmatch(r"sample\.py: [\d,]+ tokens/s", sampled)
    for count, line in ((1, one), (2, two)):
        assert re.fullmatch(rf"\| {count} \| [\d,]+ \| [\d,]+ ms \| [\d,]+ ms \|", line)
    assert re.fullmatch(r"memory after 100 requests: \d+ MB, after 1,000: \d+ MB", memory)
    assert fuzzed.startswith("40 random requests: ")


@pytest.mark.parametrize("clients", ["", "0", "1,", "one", "1;2"])
def test_a_bad_list_of_clients_gets_one_sentence(clients, capsys):
    assert load.main(["scripts/load.py", f"--clients={clients}"]) == 2
    assert f"--clients={clients} is no list of numbers" in capsys.readouterr().err


def test_random_requests_are_right_wrong_and_no_json():
    source, found = random.Random(0), set()
    body = {"model": "small", "prompt": "The ", "stream": True, "max_tokens": 5}
    for _ in range(500):
        _, path, content = load.random_request(source, body)
        try:
            parsed = parse_json(content)
            found.add(path.startswith("/v1/comp") and completion_request(parsed) is not None)
        except ApiError as error:
            found.add(str(error).partition("(")[0][:20])
    assert {True, "the body is not JSON"} <= found and len(found) > 20
