"""Exponential moving average (EMA) of a network's weights, including batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from resnetlab import backend

Tensor = Any


class Averages(keras.layers.Layer):
    """Returns its input; in training it first adds the current weights of `network` to their averages.

    It is placed before the network. The momentum at step t is min(momentum, (1 + t) / (10 + t)), so that the initial
    weights soon lose influence. Running statistics are averaged too, as those of the current network do not match
    averaged weights. Where a batch is computed in `parts`, the same weights are added once for each of them, and so
    with a root of the momentum. The averages are variables of this layer, not of the network: they are saved in
    checkpoints, but not in weights files.
    """

    def __init__(self, network: keras.Model, momentum: float, *, parts: int = 1, **kwargs: Any) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.momentum, self.parts = momentum, parts
        self.live = lambda: network.weights  # a function, so that Keras does not track the network twice
        self.steps = self.add_weight(name="steps", shape=(), initializer="zeros", trainable=False)
        self.values = [
            self.add_weight(name=f"average_{i}", shape=v.shape, dtype=v.dtype, initializer="zeros", trainable=False)
            for i, v in enumerate(self.live())
        ]
        for average, variable in zip(self.values, self.live(), strict=True):
            backend.set_kernel_layout(average)
            average.assign(keras.ops.convert_to_numpy(variable))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if training:
            momentum = self._momentum() if self.parts == 1 else self._momentum() ** (1.0 / self.parts)
            backend.update_averages(self.values, self.live(), 1.0 - momentum)
            self.steps.assign(self.steps + 1.0)
        return x

    def _momentum(self) -> Any:
        step = ops.floor((ops.convert_to_tensor(self.steps) + 0.5) / self.parts)
        return ops.minimum(self.momentum, (1.0 + step) / (10.0 + step))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context, the network has the averaged weights, including the current ones."""
        live = [keras.ops.convert_to_numpy(variable).copy() for variable in self.live()]
        weight = np.float32(keras.ops.convert_to_numpy(1.0 - self._momentum()))
        for variable, average, value in zip(self.live(), self.values, live, strict=True):
            before = keras.ops.convert_to_numpy(average)
            variable.assign(before + (value - before) * weight)
        try:
            yield
        finally:
            for variable, value in zip(self.live(), live, strict=True):
                variable.assign(value)
