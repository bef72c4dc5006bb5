"""Who may ask: the Host, the Origin and the key."""

import json
from urllib.parse import urlsplit

import live
import pytest

from gpt_jax.serving import guard

PAGE = "https://example.org"


def asked(url, path="/v1/models", method="GET", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return live.send(url, method, path, None, headers)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8080", "[::1]:80", "192.168.1.5", "LOCALHOST"]
)
def test_addresses_and_localhost_are_this_server(url, host):
    assert asked(url, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "localhost.example.org:80", "", "[", "a:b:c"]
)
@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/api/runs"])
def test_a_name_that_points_here_is_refused(url, host, path):
    """As when a page elsewhere lets its own name point to this computer."""
    status, _, content = asked(url, path, Host=host)
    assert (status, json.loads(content)["error"]["code"]) == (421, "wrong_host")


def test_a_name_can_be_allowed(runs):
    with live.server(runs, hosts=["models.example.org"]) as url:
        assert asked(url, Host="models.example.org:8080")[0] == 200
        assert asked(url, Host="other.example.org")[0] == 421


@pytest.mark.parametrize(
    "origin", [PAGE, "null", "http://localhost:1", "file://", "http://127.0.0.1"]
)
def test_foreign_pages_are_refused(url, origin):
    for path, method in [("/v1/models", "GET"), ("/v1/completions", "POST"), ("/", "OPTIONS")]:
        status, headers, content = asked(url, path, method, Origin=origin)
        assert (status, json.loads(content)["error"]["code"]) == (403, "wrong_origin")
        assert "access-control-allow-origin" not in headers


def test_the_own_page_is_not_foreign(url):
    assert asked(url, Origin=f"http://{urlsplit(url).netloc}")[0] == 200


def test_an_allowed_page_may_send_a_key(runs):
    """The browser asks first whether it may send these headers."""
    preflight = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type",
    }
    with live.server(runs, origins=[PAGE], key="secret") as url:
        status, headers, _ = asked(url, "/v1/completions", "OPTIONS", Origin=PAGE, **preflight)
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        assert "authorization" in headers["access-control-allow-headers"].lower()
        status, headers, _ = asked(url, Origin=PAGE)
        assert (status, headers["access-control-allow-origin"]) == (401, PAGE)
        assert asked(url, Origin=PAGE, Authorization="Bearer secret")[0] == 200
        assert asked(url, Origin="https://example.com", Authorization="Bearer secret")[0] == 403


@pytest.mark.parametrize(
    "sent",
    [None, "", "secret", "Bearer ", "Bearer secre", "Bearer secrett", "bearer secret", "Bearer é"],
)
def test_only_the_key_opens(runs, sent):
    with live.server(runs, key="secret") as url:
        headers = {} if sent is None else {"Authorization": sent.encode("utf-8").decode("latin-1")}
        for path in ("/v1/models", "/api/runs", "/nowhere"):
            status, found, content = asked(url, path, **headers)
            assert (status, json.loads(content)["error"]["type"]) == (401, "authentication_error")
            assert found["www-authenticate"] == "Bearer"
        assert asked(url, "/")[0] == asked(url, "/health")[0] == 200
        assert asked(url, Authorization="Bearer secret")[0] == 200


def test_the_key_is_compared_in_constant_time(runs, monkeypatch):
    compared = []
    monkeypatch.setattr(
        guard.hmac, "compare_digest", lambda *pair: compared.append(pair) or pair[0] == pair[1]
    )
    with live.server(runs, key="secret") as url:
        assert asked(url, Authorization="Bearer wrong")[0] == 401
    assert compared == [(b"Bearer wrong", b"Bearer secret")]


def test_the_page_may_not_be_framed_and_loads_nothing_from_elsewhere(url):
    policy = asked(url, "/")[1]["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
