"""Micro-batching: images of separate requests are computed together, by one thread.

The thread takes what waits, up to the largest batch, as soon as it is free. While it computes, the next batch gathers;
nothing is delayed for the sake of a larger batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from resnetlab.data.preprocess import Pixels
from resnetlab.inference.engines import Engine

Row = np.ndarray  # probabilities (classes,)


class QueueFull(Exception):
    """More images would wait than the limit allows."""


class Batcher:
    """Runs an engine in a thread of its own, on batches of the images that are submitted.

    Args:
        engine: from any number of images to probabilities.
        largest: images in a batch.
        waiting: images in the queue.
        on_batch: called after each batch with its images and the seconds it took.
    """

    def __init__(
        self, engine: Engine, *, largest: int, waiting: int, on_batch: Callable[[int, float], None] = lambda *_: None
    ) -> None:
        self._engine, self._largest, self._limit, self._on_batch = engine, largest, waiting, on_batch
        self._queue: deque[tuple[Pixels, Future[Row]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.failing = False  # the last batch failed
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, images: Sequence[Pixels]) -> list[Future[Row]]:
        """The future probabilities of each image; a future that is cancelled in time is not computed.

        Raises:
            QueueFull: not all of them fit in the queue, and none was added.
        """
        with self._changed:
            if self._closed or len(self._queue) + len(images) > self._limit:
                raise QueueFull
            entries = [(image, Future[Row]()) for image in images]
            self._queue += entries
            self._changed.notify()
        return [future for _, future in entries]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def accepts(self) -> bool:
        """Whether an image could be submitted now."""
        return not self._closed and self._thread.is_alive() and len(self._queue) < self._limit

    def close(self) -> None:
        """Compute what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            images, futures = zip(*batch, strict=True)
            began = time.perf_counter()
            try:
                rows = self._engine(np.stack(images))
            except Exception as error:
                self.failing = True
                for future in futures:
                    future.set_exception(error)
            else:
                self.failing = False
                for future, row in zip(futures, rows, strict=True):
                    future.set_result(row)
            self._on_batch(len(images), time.perf_counter() - began)

    def _next_batch(self) -> list[tuple[Pixels, Future[Row]]]:
        """At least one image; none once it is closed and the queue is empty."""
        batch: list[tuple[Pixels, Future[Row]]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    break
                while self._queue and len(batch) < self._largest:
                    entry = self._queue.popleft()
                    if entry[1].set_running_or_notify_cancel():
                        batch.append(entry)
        return batch
