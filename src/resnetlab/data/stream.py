"""Training batches as a pure function of (seed, step).

Samples come in an endless chain of permutations, one per pass over the data. A batch may span two of them, so that all
batches have the same shape and no sample is ever dropped. A resumed run continues with the same batches as an
uninterrupted one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from resnetlab.data.augmentation import Augmentation, sample_parameters
from resnetlab.data.shards import Images

# Streams of random numbers that must not overlap, by the second half of the generator's key.
_ORDER, _PARAMETERS, _FLIPS = 0, 1, 2

Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]
_Sampled = tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray | None]  # sample numbers, then as a `Batch`


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The number of batches nearest to a pass over the images."""
    return max(1, round(images / batch_size))


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """An endless stream of training batches.

    Args:
        images: (n, source, source, 3) uint8, memory-mapped or not.
        labels: (n,) class numbers.
        indices: the samples to draw from.
        batch_size, num_classes, seed: size of a batch, number of classes, random seed.
        augmentation: settings that the augmentation parameters are sampled from.
        label_smoothing: fraction of a target that is spread over all classes.
        aspect: (n,) width / height of the images before they were squeezed to squares; None where they were not.
        class_weights: (num_classes,) weights of the samples of each class, or None.
        accumulate: the parts that a batch is divided into; their gradients are added up.
        groups: of each part. Images are mixed with others of their group only.
        process: the number of this process, and how many share each batch: it makes its own rows of it only.
    """

    images: Images
    labels: np.ndarray
    indices: np.ndarray
    batch_size: int
    num_classes: int
    augmentation: Augmentation
    label_smoothing: float = 0.0
    aspect: np.ndarray | None = None
    class_weights: np.ndarray | None = None
    accumulate: int = 1
    groups: int = 1
    process: tuple[int, int] = (0, 1)
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.indices), self.batch_size)

    def batch(self, step: int, part: int = 0) -> Batch:
        """A part of a step's batch: {"image": bytes, **parameters}, targets (rows, num_classes), weights or None.

        Of several processes, the rows of this one; which they are does not depend on how many processes there are.
        """
        return self._rows(self._sampled(step), part)

    def _sampled(self, step: int) -> _Sampled:
        """What a step's whole batch is made of."""
        chosen, passes = self._samples(step)
        rng = _generator(self.seed, _PARAMETERS, step)
        aspect = None if self.aspect is None else self.aspect[chosen]
        mirrored = None
        if self.augmentation.flip == "alternating":  # Jordan 2024, arXiv:2404.00498, section 3.6
            mirrored = _first_flips(self.seed, len(self.labels))[chosen] ^ (passes % 2 == 1)
        groups = self.accumulate * self.groups
        parameters, own = sample_parameters(self.augmentation, self.batch_size, rng, aspect, mirrored, groups)
        labels = self.labels[chosen]
        rows = np.arange(self.batch_size)
        targets = np.zeros((self.batch_size, self.num_classes), np.float32)
        targets[rows, labels] = own
        if "permutation" in parameters:
            size = self.batch_size // groups
            partner = rows // size * size + parameters["permutation"]  # which is numbered within its group
            targets[rows, labels[partner]] += 1 - own
        weights = None
        if self.class_weights is not None:  # each target counts by the weight of its class, also in a mixed image
            weights = targets @ self.class_weights
            targets = targets * self.class_weights / weights[:, None]
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        return chosen, parameters, targets, weights

    def _rows(self, sampled: _Sampled, part: int) -> Batch:
        """This process's rows of a part of a batch."""
        chosen, parameters, targets, weights = sampled
        (number, count), size = self.process, self.batch_size // self.accumulate
        mine = slice(part * size + number * size // count, part * size + (number + 1) * size // count)
        inputs = {name: values[mine] for name, values in parameters.items()}
        return (
            {"image": self.images[chosen[mine]], **inputs},
            targets[mine],
            None if weights is None else weights[mine],
        )

    def batches(
        self, start: int, *, ahead: int = 4, spent: list[float] | None = None, until: threading.Event | None = None
    ) -> Generator[tuple[Any, ...]]:
        """Batches from step `start` on, part by part, for `keras.Model.fit`; a thread prepares `ahead` in advance.

        The seconds that it takes for each are appended to `spent`. They end when they are closed, or `until` is set,
        which another thread may do while this one waits for a batch.
        """
        ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        closed = threading.Event()

        def ended() -> bool:
            return closed.is_set() or (until is not None and until.is_set())

        def produce() -> None:
            step = start
            try:
                while not ended():
                    began = time.perf_counter()
                    sampled = self._sampled(step)
                    for part in range(self.accumulate):
                        item = as_item(self._rows(sampled, part))
                        if spent is not None:
                            spent.append(time.perf_counter() - began)
                        _put(item)
                        began = time.perf_counter()
                    step += 1
            except Exception as error:  # re-raised in the consumer
                _put(error)

        def _put(item: Any) -> None:
            while not ended():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        threading.Thread(target=produce, name="resnetlab-stream", daemon=True).start()
        try:
            while not ended():
                try:
                    item = ready.get(timeout=0.1)
                except queue.Empty:
                    continue
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            closed.set()

    def _samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers (batch,) of a step, and the number of each sample's pass over the data."""
        count = len(self.indices)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rounds = places // count
        orders = {int(r): _permutation(self.seed, int(r), count) for r in np.unique(rounds)}
        return self.indices[[orders[int(r)][p] for r, p in zip(rounds, places % count, strict=True)]], rounds


def as_item(batch: Batch) -> tuple[Any, ...]:
    """A batch as `keras.Model.fit` takes it: without weights where there are none."""
    inputs, targets, weights = batch
    return (inputs, targets) if weights is None else (inputs, targets, weights)


def _generator(seed: int, purpose: int, counter: int) -> np.random.Generator:
    """A counter-based generator (Salmon 2011, Philox): cheap to make, and independent for each key."""
    return np.random.Generator(np.random.Philox(key=[seed, (purpose << 48) + counter]))


@lru_cache(maxsize=4)
def _permutation(seed: int, number: int, count: int) -> np.ndarray:
    return _generator(seed, _ORDER, number).permutation(count)


@lru_cache(maxsize=4)
def _first_flips(seed: int, count: int) -> np.ndarray:
    """Which samples are mirrored in the first pass, with alternating flips."""
    return _generator(seed, _FLIPS, 0).random(count) < 0.5


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class weights in inverse proportion to frequency, with mean 1 over the given samples."""
    counts = np.bincount(labels, minlength=num_classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)
