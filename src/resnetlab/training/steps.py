"""What is watched at every training step: requests to stop, the next checkpoint, and a loss that is not finite."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from resnetlab.progress import Progress


class StepCallback(keras.callbacks.Callback):
    """Reports each step, and ends `fit` after the current step when `pause(steps)` says so or the loss is not finite.

    Attributes:
        steps: finished ones; the optimizer does not count those whose gradients overflow in float16.
        diverged: the number in this `fit`, from 1, of the first step whose loss is not finite; None where all are.
    """

    async_safe = True  # keeps JAX and PyTorch from waiting for the device at every step

    def __init__(
        self,
        trainer: keras.Model,
        start: int,
        progress: Progress,
        pause: Callable[[int], bool],
        partial: list[np.ndarray] | None,
        parts: int = 1,
    ) -> None:
        """A step is a batch of Keras, or so many `parts` of one."""
        super().__init__()
        self.parts = parts
        # Not `self.model`: on JAX this property writes the state back, while the main thread donates it to a step.
        self.trainer = trainer
        self.start, self.progress, self.pause, self.partial = start, progress, pause, partial
        self.steps = 0
        self.diverged: int | None = None
        self._lock = threading.Lock()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.partial is not None:  # an epoch that is resumed: Keras has just reset its metrics
            for variable, value in zip(self.trainer.metrics_variables, self.partial, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step, rest = divmod(batch + 1, self.parts)
        if rest:
            return
        with self._lock:  # calls may overtake each other
            self.steps = max(self.steps, step)
            # The running mean of the epoch: from the first loss that is not finite, no later one is.
            if not math.isfinite((logs or {}).get("loss", 0.0)):
                self.diverged = min(step, self.diverged or step)
        self.progress.step(self.start + step, logs or {})
        if self.diverged is not None or self.pause(self.steps):
            self.trainer.stop_training = True


def metric_values(trainer: keras.Model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(v).copy() for v in trainer.metrics_variables]


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that is set by the first SIGINT or SIGTERM; a later signal interrupts immediately.

    Signals within a second of the first are ignored: `timeout` and other supervisors signal both process and group.
    """
    requested = threading.Event()
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before: dict[signal.Signals, Any] = {}

    def request(number: int, frame: Any) -> None:
        nonlocal first
        if requested.is_set() and time.monotonic() - first > 1:
            raise KeyboardInterrupt
        if not requested.is_set():
            first = time.monotonic()
        requested.set()

    handler: Callable[[int, Any], None] = request
    for name in (signal.SIGINT, signal.SIGTERM):
        before[name] = signal.signal(name, handler)
    try:
        yield requested
    finally:
        for name, previous in before.items():
            signal.signal(name, previous)
