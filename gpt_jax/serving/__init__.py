"""The server: OpenAI's protocol for runs, and a page to look at them.

Owns HTTP: what a request may say, what its answer looks like, who may ask, and how many clients
share the devices. It reads runs and never writes one. Nothing else of the project listens on the
network. Read engine.py first (how texts of many clients are drawn), then app.py (the routes).
"""

from gpt_jax.serving.app import make_app
from gpt_jax.serving.library import Library, all_runs, one_run
from gpt_jax.serving.server import address, bind, run_server

__all__ = ["Library", "address", "all_runs", "bind", "make_app", "one_run", "run_server"]
