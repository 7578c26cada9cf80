"""Timing of training steps, and interleaved measurements."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

MIN_GPU_STEPS, MAX_GPU_STEPS = 50, 10_000
ATTEMPTS = 4  # to measure a time difference, which must be positive
Feed = Callable[[Callable[[], Iterator[Any]]], Any]
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Elapsed(NamedTuple):
    """Wall-clock seconds, and CPU seconds of this process and its finished children."""

    seconds: float
    processor: float


def now() -> Elapsed:
    """Read both clocks."""
    return Elapsed(time.perf_counter(), sum(os.times()[:4]))


def elapsed_since(began: Elapsed, ended: Elapsed | None = None) -> Elapsed:
    ended = ended or now()
    return Elapsed(ended.seconds - began.seconds, ended.processor - began.processor)


def interleave(measures: Mapping[Key, Callable[[], Value]], rounds: int) -> dict[Key, list[Value]]:
    """Interleave measurements: call each once per round, so that drift of the machine affects all equally.

    The starting point rotates from round to round, so that none always runs first.
    """
    names = list(measures)
    found: dict[Key, list[Value]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % max(len(names), 1)
        for name in [*names[shift:], *names[:shift]]:
            found[name].append(measures[name]())
    return found


class FitTimer:
    """Times the steps of `fit` without its start-up and shutdown, which take up to a second, and vary.

    On a CPU the clock is read at the end of the first and of the last step. On a GPU this would stall the device, so
    the time of n steps is T(n + 1) - T(1) for whole calls of `fit`, both of which end with a synchronisation.
    """

    def __init__(self, model: Any, device: str, feed: Feed = lambda make: make()) -> None:
        """`feed` turns a maker of batches into what `fit` reads: in training, `backend.feed`."""
        self.model, self.on_gpu, self.feed = model, device == "gpu", feed
        self._ends: list[Elapsed] = []

    def call(self, batches: Iterator[Any], steps: int) -> Elapsed:
        """Time a whole call of `fit`."""
        import keras

        self._ends = []
        read = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: self._ends.append(now()))
        began = now()
        try:
            callbacks = [] if self.on_gpu else [read]
            batches_of_fit = self.feed(lambda: batches)
            self.model.fit(batches_of_fit, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=callbacks)
        finally:
            batches.close()  # type: ignore[attr-defined]
        return elapsed_since(began)

    def steps(self, make: Callable[[], Iterator[Any]], steps: int) -> Elapsed:
        """Time `steps` steps. Raises RuntimeError on a GPU if the time difference is not positive."""
        if not self.on_gpu:
            self.call(make(), steps + 1)
            return elapsed_since(self._ends[0], self._ends[-1])
        calls: dict[int, Elapsed] = {}

        def seconds_of(count: int) -> float:
            calls[count] = self.call(make(), count)
            return calls[count].seconds

        seconds = seconds_per_step(seconds_of, steps)
        counted = max(calls) - 1  # more than `steps`, if those were too few to measure
        processor = (calls[counted + 1].processor - calls[1].processor) / counted
        return Elapsed(steps * seconds, steps * processor)


def steps_to_time(seconds_of: Callable[[int], float], budget: float) -> int:
    """Number of steps to time on a GPU: enough to fill `budget` seconds, at least 50 if they take less than twice that.

    Args:
        seconds_of: measures a whole call of `fit` with the given number of steps.
        budget: seconds; should be long compared with the variation of the overhead per call.
    """
    step = max((seconds_of(3) - seconds_of(1)) / 2, 0.0)
    steps = 2
    while steps < MAX_GPU_STEPS:
        # As the estimate from the previous steps may be poor, the next measurement has at most ten times as many.
        wanted = min(max(budget / step, MIN_GPU_STEPS), 2 * budget / step) if step > 0 else MAX_GPU_STEPS
        following = int(min(max(wanted, 1), 10 * steps, MAX_GPU_STEPS))
        if following <= steps * 1.2:
            break
        steps = following
        step = max((seconds_of(steps + 1) - seconds_of(1)) / steps, 0.0)
    return max(steps, 1)


def seconds_per_step(seconds_of: Callable[[int], float], steps: int) -> float:
    """Seconds per step, from calls with 1 and `steps` + 1 steps.

    A difference that is not positive means that the overhead per call varies by more than the steps take: it is then
    measured with four times as many steps. Raises RuntimeError if the last of `ATTEMPTS` is not positive either.
    """
    for attempt in range(ATTEMPTS):
        counted = steps * 4**attempt
        found = (seconds_of(counted + 1) - seconds_of(1)) / counted
        if found > 0:
            return found
    raise RuntimeError(f"could not be timed: {counted + 1} steps took no longer than one, the last of {ATTEMPTS} times")
