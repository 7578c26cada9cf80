"""Norms of the loss's gradient at each layer, to measure how shortcuts affect the gradient flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from resnetlab.models.state import preserved_weights


class GradientRecorder(keras.optimizers.SGD):
    """Keras's SGD that also keeps the gradients of its last step; with a learning rate of 0 it only records.

    Works on every backend, as Keras passes the gradients to the optimizer on all of them.
    """

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)
        self.last = [self.add_variable_from_reference(variable, name="gradient") for variable in variables]

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        self.assign(self.last[self._get_variable_index(variable)], gradient)
        super().update_step(gradient, variable, learning_rate)

    def norms(self, network: keras.Model) -> dict[str, float]:
        """The norm of the last gradient at the kernel of each convolution on the longest path, from stem to head."""
        places = {variable.path: i for i, variable in enumerate(self._trainable_variables)}
        return {
            layer.name: float(np.linalg.norm(keras.ops.convert_to_numpy(self.last[places[layer.kernel.path]])))
            for layer in network.layers
            if hasattr(layer, "kernel") and len(layer.kernel.shape) == 4 and "shortcut" not in layer.name
        }


def gradient_norms(network: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Norms of the gradient at each convolution (see `GradientRecorder.norms`) on one batch.

    The network is left as it was, running statistics included.
    """
    recorder = GradientRecorder(0.0)
    with preserved_weights(network):
        network.compile(recorder, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        network.train_on_batch(images, labels)
    return recorder.norms(network)
