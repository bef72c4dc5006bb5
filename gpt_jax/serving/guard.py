"""Who may ask: checks of the Host, the Origin and the key, before a request is looked at.

A browser sends requests to this computer for any page it shows. Two checks keep such pages out:

- Host: a page elsewhere can let its own name point to this computer. The browser then takes the
  answers for the page's own, but its Host header still has that name. An IP address cannot be
  pointed elsewhere.
- Origin: a browser names the page that sends a request. Pages of this server may, and those that
  `--allow_origin` names.
"""

import hmac
import ipaddress
from collections.abc import Collection

from starlette.datastructures import URL, Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt_jax.serving.errors import ApiError

KEYLESS = ("/", "/health")  # The page asks for the key and sends it with its requests.


class SameSite:
    """Middleware: refuses requests that other pages in a browser send."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts`: names besides localhost. `origins`: pages besides this server's, such as
        https://example.org."""
        self._app, self._hosts, self._origins = app, {"localhost", *hosts}, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope))
            except ApiError as error:
                app = JSONResponse(error.body, error.status)
        await app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            message = f"Host: {host} is not this server: use its IP address, or --allow_host"
            raise ApiError(421, message, code="wrong_host")
        if origin is not None and origin not in self._origins and not _is_same(origin, host):
            message = f"pages of {origin} may not use this server: allow it with --allow_origin"
            raise ApiError(403, message, code="wrong_origin")

    def _is_ours(self, host: str) -> bool:
        try:
            name = URL(f"http://{host}").hostname or ""
            return name in self._hosts or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _is_same(origin: str, host: str) -> bool:
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


class NeedsKey:
    """Middleware: refuses requests without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in KEYLESS:
            given = Headers(scope=scope).get("authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, self._expected):  # Its time tells nothing of the key.
                message = "the API key is missing or wrong: send Authorization: Bearer KEY"
                error = ApiError(401, message, code="invalid_api_key")
                headers = {"WWW-Authenticate": "Bearer"}
                app = JSONResponse(error.body, error.status, headers)
        await app(scope, receive, send)
