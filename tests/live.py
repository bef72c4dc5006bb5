"""A live server in a thread of this process, on a free port."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from gpt_jax.serving.app import make_app
from gpt_jax.serving.library import Library, all_runs
from gpt_jax.serving.server import address, bind, settings


@contextlib.contextmanager
def server(folder: Path, slots: int = 2, queue: int = 64, **options: Any) -> Iterator[str]:
    """Serves the runs in a folder. Yields the server's address."""
    library = Library(all_runs(folder), "best", slots, queue)
    with bind("127.0.0.1", 0) as listening:  # Clients wait until the server has started.
        running = uvicorn.Server(settings(make_app(library, **options)))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            yield address(listening)
        finally:
            running.should_exit = True
            thread.join()
