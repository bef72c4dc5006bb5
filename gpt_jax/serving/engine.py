"""Draws the texts of many clients at once.

Every device has a worker, a thread with the slots of one batch. Texts wait in one queue. Between
two pieces a worker takes texts from the queue while it has fewer than its share, draws the next
piece of all its texts, and hands each its new ids. Nobody waits for a client: the ids are handed
over and forgotten.

What a text gets does not depend on the worker or on the other texts; see slots.py.
"""

import collections
import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gpt_jax.api import TrainedModel
from gpt_jax.config import SampleConfig
from gpt_jax.devices import pinned_settings
from gpt_jax.errors import first_cause
from gpt_jax.inspection import Scores
from gpt_jax.serving.slots import PIECE, Slot, Slots
from gpt_jax.training.memory import check_sampling

PIECE_S = 0.05  # Most time of a piece: a text appears smoothly, and others join soon.
SHORTEST = 8  # Tokens of a piece that some texts need to the end; less is not worth the overhead.


@dataclasses.dataclass(eq=False)
class Job:
    """A text to draw.

    Attributes:
      ids: of the prompt.
      options: see Slots.join, as for seed and index.
      left: tokens that may still be drawn, at least one.
      scored: whether log-probabilities are wanted.
      take: gets new ids and their scores; returns whether the text goes on.
      fail: gets the reason why the text cannot be drawn.
    """

    ids: np.ndarray
    options: SampleConfig
    seed: int
    index: int
    left: int
    scored: bool
    take: Callable[[np.ndarray, Scores], bool]
    fail: Callable[[str], None]
    is_cancelled: bool = False


class QueueFull(Exception):
    """More texts wait than the engine accepts, or another engine has taken its place."""


class Engine:
    """The workers of a model and their queue. Its methods may be called from any thread."""

    def __init__(self, model: TrainedModel, slots: int, queue: int) -> None:
        """Starts the workers.

        Args:
          slots: texts at once, over all devices.
          queue: texts that may wait.

        Raises:
          UserError: if the devices cannot hold the KV cache of so many texts.
        """
        devices = jax.local_devices()[:slots]
        check_sampling(model.config.model, slots, devices)
        self._model, self._most, self._room = model, -(-slots // len(devices)), queue
        self._waiting: collections.deque[Job] = collections.deque()
        self._active = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(device,), daemon=True) for device in devices
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether no text is drawn and none waits."""
        with self._changed:
            return not self._active and not self._waiting

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs into the queue: all of them or, if it raises QueueFull, none."""
        with self._changed:
            if self._is_closed or len(self._waiting) + len(jobs) > self._room:
                raise QueueFull
            self._waiting += jobs
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs that nobody waits for any more; those that have ended stay so."""
        with self._changed:
            for job in jobs:
                job.is_cancelled = True
            self._waiting = collections.deque(j for j in self._waiting if not j.is_cancelled)

    def close(self, timeout_s: float = 0.0) -> None:
        """Lets the workers end when their texts have ended. No job may follow.

        `timeout_s`: how long to wait for each.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self, device: jax.Device) -> None:
        """A worker's life."""
        with pinned_settings():
            worker = _Worker(self._model, device)
            while self._feed(worker):
                try:
                    worker.draw()
                except Exception as error:  # Such as memory that is short. The worker goes on.
                    traceback.print_exc()
                    worker.fail(f"the text could not be drawn ({first_cause(error)})")
                    worker = self._replaced(worker)

    def _feed(self, worker: "_Worker") -> bool:
        """Gives a worker its share of what waits, and waits while it has nothing to do.

        Returns: False if the engine is closed and the worker has nothing left to do.
        """
        with self._changed:
            self._active -= worker.drop_ended()
            while True:
                while self._waiting and len(worker.jobs) < self._share:
                    worker.jobs.append(self._waiting.popleft())
                    self._active += 1
                if worker.jobs or self._is_closed:
                    return bool(worker.jobs)
                self._changed.wait()

    @property
    def _share(self) -> int:
        """Texts that a worker may have: an equal part of all, and at most its slots."""
        wanted = self._active + len(self._waiting)
        return min(-(-wanted // len(self._threads)), self._most)

    def _replaced(self, worker: "_Worker") -> "_Worker":
        with self._changed:
            self._active -= len(worker.jobs)
        return _Worker(self._model, worker.device)


class _Worker:
    """One device's texts. Only its own thread uses it."""

    def __init__(self, model: TrainedModel, device: jax.Device) -> None:
        self._model, self.device = model, device
        self._slots: Slots | None = None  # Made for the first job: it copies the parameters.
        self._slot_of: dict[Job, Slot] = {}
        self._seconds = PIECE_S  # Of a token; a guess until the first piece.
        self.jobs: list[Job] = []

    def drop_ended(self) -> int:
        """Removes cancelled jobs. Returns how many."""
        ended = [job for job in self.jobs if job.is_cancelled]
        for job in ended:
            self.jobs.remove(job)
            if (slot := self._slot_of.pop(job, None)) and self._slots:
                self._slots.leave(slot)
        return len(ended)

    def draw(self) -> None:
        """Draws the next piece of every text, and hands it over."""
        slots = self._slots = self._slots or self._made()
        for job in self.jobs:
            if job not in self._slot_of:
                self._slot_of[job] = slots.join(job.ids, job.options, job.seed, job.index)
        started = time.perf_counter()
        count = self._count()
        drawn = slots.draw(count, any(job.scored for job in self.jobs))
        most = max(len(ids) for ids, _ in drawn.values())
        self._seconds = (time.perf_counter() - started) / most
        for job in self.jobs:
            ids, scores = drawn[self._slot_of[job]]
            job.left -= len(ids)
            job.is_cancelled |= not job.take(ids, scores)

    def _count(self) -> int:
        """Tokens of the next piece. The row of a text that ends before the others is idle then."""
        left = [job.left for job in self.jobs]
        useful = min(max(left), max(min(left), SHORTEST))
        return max(1, min(useful, PIECE, int(PIECE_S / self._seconds)))

    def fail(self, reason: str) -> None:
        """Ends all texts with an error."""
        for job in self.jobs:
            if not job.is_cancelled:
                job.fail(reason)

    def _made(self) -> Slots:
        model = self._model
        params = jax.device_put(model.params, self.device)
        return Slots(model.config.model, params, model.tokenizer.vocab_size)
