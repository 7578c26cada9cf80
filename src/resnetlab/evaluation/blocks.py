"""A trained network as a chain of blocks, to measure what each contributes (Veit 2016, arXiv:1605.06431)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import keras
import numpy as np

from resnetlab.models.variants import Architecture

BATCH = 250


class BlockChain:
    """Stem, blocks and head of a network of basic blocks, which can be put together in another order.

    Attributes:
        stages: the stage of each block, by the block's name, from stem to head.
        removable: names of the blocks whose output has the shape of their input.
    """

    def __init__(self, network: keras.Model, arch: Architecture) -> None:
        self.stages = {
            f"stage{stage}_block{index}": stage
            for stage, depth in enumerate(arch.depths, start=1)
            for index in range(1, depth + 1)
        }
        ends = [network.get_layer("stem").output]
        ends += [network.get_layer(f"{name}_relu2").output for name in self.stages]
        self._stem = keras.Model(network.input, ends[0])
        self._blocks = {
            name: keras.Model(before, after)
            for name, before, after in zip(self.stages, ends[:-1], ends[1:], strict=True)
        }
        self._head = keras.Model(ends[-1], network.output)
        self.removable = [  # a block that halves height and width also has more channels
            name
            for name, before, after in zip(self.stages, ends[:-1], ends[1:], strict=True)
            if before.shape[-1] == after.shape[-1]
        ]
        pairs = itertools.combinations(self.removable, 2)
        self._pairs = [(one, other) for one, other in pairs if self.stages[one] == self.stages[other]]

    def error(self, order: Iterable[str], images: np.ndarray, labels: np.ndarray) -> float:
        """Fraction of `images` that the blocks, in this order, misclassify."""
        chain, wrong = [self._stem, *(self._blocks[name] for name in order), self._head], 0
        for start in range(0, len(images), BATCH):
            x = images[start : start + BATCH]
            for part in chain:
                x = part.predict_on_batch(x)
            wrong += int((np.argmax(x, axis=1) != labels[start : start + BATCH]).sum())
        return wrong / len(images)

    def errors_without_each(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The error without one block, for each removable block."""
        return {
            gone: self.error([name for name in self.stages if name != gone], images, labels) for gone in self.removable
        }

    def exchange(self, times: int, rng: np.random.Generator) -> list[str]:
        """The names of all blocks after exchanging two of the same stage `times` times."""
        order = list(self.stages)
        for _ in range(times):
            first, second = self._pairs[rng.integers(len(self._pairs))]
            i, j = order.index(first), order.index(second)
            order[i], order[j] = order[j], order[i]
        return order
