"""Where a training run diverged: the first value that is not finite, found by repeating the steps before it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from resnetlab import backend
from resnetlab.data.stream import Stream, as_item


def first_nonfinite_weight(network: keras.Model) -> str | None:
    """The name of the first weight with a value that is not finite."""
    for layer in network.layers:
        for variable in layer.variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable).astype(np.float64)).all():
                return f"{layer.name}/{variable.name}"
    return None


def locate(trainer: keras.Model, network: keras.Model, stream: Stream, *, start: int, step: int) -> str:
    """Where the loss of step number `step` (from 1) stopped being finite, in words.

    `trainer` has the state after `start` steps; it is trained again up to the step before, and is of no use then.
    """
    if step - 1 > start:
        over = threading.Event()
        again = backend.feed(as_item(stream.batch(0)))(lambda: stream.batches(start, until=over))
        try:
            trainer.fit(again, steps_per_epoch=(step - 1 - start) * stream.accumulate, shuffle=False, verbose=0)
        finally:
            over.set()
    if weight := first_nonfinite_weight(network):
        return f"the update of step {step - 1} made the weight {weight} non-finite"
    for part in range(stream.accumulate):
        if layer := _first_nonfinite_layer(trainer, network, stream.batch(step - 1, part)[0]):
            return f"the first layer whose output is not finite is {layer}, with finite weights"
    return "repeating the steps since the last checkpoint, on this device, gave finite values"


def _first_nonfinite_layer(trainer: keras.Model, network: keras.Model, inputs: Mapping[str, Any]) -> str | None:
    """The first layer, in the order of computation, with an output that is not finite in training mode."""
    images = trainer.get_layer("augment")(inputs, training=True)
    if "keep" in inputs:
        images = trainer.get_layer("masks")(images, inputs["keep"], training=True)
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    outputs = keras.Model(network.inputs, [layer.output for layer in layers])(images, training=True)
    for layer, output in zip(layers, outputs, strict=True):
        if not np.isfinite(keras.ops.convert_to_numpy(keras.ops.cast(output, "float32"))).all():
            return layer.name
    return None
