"""The runs that are served: loaded when first asked for, and again when they have a better model.

A run's name is that of its folder. Nothing a client sends becomes a path: names are looked up
among the folders that exist.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_jax.api import TrainedModel, load
from gpt_jax.errors import UserError, first_cause
from gpt_jax.runs.recovery import find_for_reading
from gpt_jax.serving.engine import Engine
from gpt_jax.serving.errors import ApiError

MOST_LOADED = 4  # Runs in memory; the one asked for longest ago is dropped first.
CLOSING_S = 5.0  # A worker ends after its piece.


def one_run(folder: Path) -> Callable[[], dict[str, Path]]:
    """For `Library`: one run, while its folder exists."""
    return lambda: {folder.name: folder} if (folder / "config.json").exists() else {}


def all_runs(folder: Path) -> Callable[[], dict[str, Path]]:
    """For `Library`: the runs in a folder, those that come later too."""
    return lambda: {path.parent.name: path.parent for path in folder.glob("*/config.json")}


@dataclasses.dataclass(frozen=True)
class Served:
    """A run that is loaded.

    Attributes:
      checkpoint: its step and the hash of its arrays.
    """

    name: str
    model: TrainedModel
    engine: Engine
    checkpoint: Any


class Library:
    """The runs of one server. Its coroutines belong to one event loop."""

    def __init__(
        self, folders: Callable[[], Mapping[str, Path]], step: str, slots: int, queue: int
    ) -> None:
        """Args:
        folders: gives the folder of every run by its name, asked anew each time.
        step: the checkpoint to serve; see `gpt_jax.load`.
        slots, queue: of each run's engine.
        """
        self._folders, self._step = folders, step
        self._slots, self._queue = slots, queue
        self._loaded: dict[str, Served] = {}  # The one asked for longest ago comes first.
        self._locks: dict[str, asyncio.Lock] = {}

    def folders(self) -> dict[str, Path]:
        """The folder of every run by its name, sorted."""
        return dict(sorted(self._folders().items()))

    def folder(self, name: str) -> Path:
        """The folder of a run. Raises ApiError if there is no such run."""
        folders = self._folders()
        if name not in folders:
            known = ", ".join(sorted(folders)) or "none"
            message = f"model = {name!r} is not served here: choose one of these runs: {known}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return folders[name]

    async def get(self, name: str) -> Served:
        """A run, loaded. Raises ApiError if there is no such run, or if it cannot be read."""
        # If the client goes away, the run is still loaded: its workers must not be lost.
        return await asyncio.shield(self._get(name, self.folder(name)))

    async def _get(self, name: str, folder: Path) -> Served:
        async with self._locks.setdefault(name, asyncio.Lock()):
            try:
                before = self._loaded.get(name)
                served = await asyncio.to_thread(self._refreshed, folder, before)
            except UserError as error:
                raise ApiError(503, str(error), code="run_unreadable", param="model") from None
            except Exception as error:
                message = f"the run {name} cannot be read ({first_cause(error)})"
                raise ApiError(503, message, code="run_unreadable", param="model") from error
            self._loaded.pop(name, None)
            self._loaded[name] = served
        self._drop_old()
        return served

    def _refreshed(self, folder: Path, served: Served | None) -> Served:
        """The run as it is now: loaded anew if it has another checkpoint.

        A run that is loaded stays usable if its files are damaged, or change while they are read.

        Raises what `load` raises if it is not loaded and cannot be.
        """
        try:
            checkpoint = find_for_reading(folder, self._step)
            if served and served.checkpoint == checkpoint:
                return served
            fresh = self._load(folder, checkpoint)
        except Exception:  # Damage can raise anything.
            if served is None:
                raise
            return served
        if served:
            served.engine.close()
        return fresh

    def _load(self, folder: Path, checkpoint: Any) -> Served:
        model = load(folder, self._step)
        engine = Engine(model, self._slots, self._queue)
        return Served(folder.name, model, engine, checkpoint)

    def preload(self, folder: Path) -> Served:
        """Loads a run before the server starts. Raises UserError if it cannot be read."""
        served = self._loaded[folder.name] = self._refreshed(folder, None)
        return served

    def _drop_old(self) -> None:
        """Drops runs until few are loaded, but none that is at work, nor the newest."""
        for name, served in list(self._loaded.items())[:-1]:
            if len(self._loaded) > MOST_LOADED and served.engine.is_idle:
                self._loaded.pop(name).engine.close()

    def close(self) -> None:
        """Ends all workers."""
        for served in self._loaded.values():
            served.engine.close(CLOSING_S)
