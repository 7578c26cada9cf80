"""The loss along a line through a network's weights (Li 2018, arXiv:1712.09913)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np


def loss_along_a_line(
    network: keras.Model, images: np.ndarray, labels: np.ndarray, positions: Sequence[float], *, seed: int = 0
) -> list[float]:
    """Mean cross-entropy at `weights + position * direction`; the network is unchanged afterwards.

    The direction is random and filter-normalised: each filter of it has the norm of the network's filter, so that
    networks with differently scaled weights can be compared. Biases and batch norms stay as they are.

    Args:
        images: uint8 (n, height, width, 3).
        labels: (n,) class indices.
        positions: 0 is the network as it is; at 1, the change is as large as the weights.
    """
    rng = np.random.default_rng(seed)
    kernels = [variable for variable in network.trainable_variables if len(variable.shape) > 1]
    original = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    directions = [_direction(weights, rng) for weights in original]
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = []
    try:
        for position in positions:
            for kernel, weights, direction in zip(kernels, original, directions, strict=True):
                kernel.assign(weights + position * direction)
            logits = network.predict_on_batch(images)
            losses.append(float(cross_entropy(labels, logits)))
    finally:
        for kernel, weights in zip(kernels, original, strict=True):
            kernel.assign(weights)
    return losses


def _direction(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    axes = tuple(range(weights.ndim - 1))  # a filter is all that leads to one output
    direction = rng.standard_normal(weights.shape).astype(np.float32)
    norms = np.sqrt((weights**2).sum(axes)) / np.sqrt((direction**2).sum(axes))
    return direction * norms
