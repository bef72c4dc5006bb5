"""The socket and uvicorn around the application."""

import socket

import uvicorn
from starlette.types import ASGIApp

from gpt_jax.errors import UserError

GRACE_S = 3  # Time to finish what is being sent, after a signal.


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Clients may connect, and wait.

    Raises:
      UserError: if there is no such address, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"{host}, port {port}, cannot be listened on ({error}): choose another --port, or an "
            "address of this machine as --host"
        ) from error


def address(listening: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run_server(app: ASGIApp, listening: socket.socket) -> None:
    """Answers requests until SIGINT or SIGTERM, which it then raises again."""
    uvicorn.Server(settings(app)).run(sockets=[listening])


def settings(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn runs: quietly, and with an end to waiting."""
    return uvicorn.Config(
        app,
        http="auto",  # httptools, if it is installed: half of the CPU time of h11.
        ws="none",
        lifespan="on",
        log_config=None,  # Python's default: errors go to stderr.
        log_level="error",
        access_log=False,
        server_header=False,
        backlog=1024,
        timeout_graceful_shutdown=GRACE_S,
    )
