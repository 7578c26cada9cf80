"""The loss along a line: the network's own at 0, unchanged afterwards, along a filter-normalised direction."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from resnetlab.evaluation.landscape import _direction, loss_along_a_line
from resnetlab.models import build


def test_the_loss_at_zero_is_the_networks_and_the_weights_are_as_before() -> None:
    network = build("resnet-tiny", num_classes=3, input_shape=(16, 16, 3))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 16, 16, 3), np.uint8), rng.integers(0, 3, 8)
    before = [keras.ops.convert_to_numpy(weight) for weight in network.weights]
    logits = network.predict_on_batch(images).astype(np.float64)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(8), labels])
    losses = loss_along_a_line(network, images, labels, [-0.5, 0.0, 0.5])
    assert losses[1] == pytest.approx(expected, rel=1e-5)
    assert losses[0] != losses[1] != losses[2]
    assert losses != loss_along_a_line(network, images, labels, [-0.5, 0.0, 0.5], seed=1)
    for weight, value in zip(network.weights, before, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(weight), value)


def test_each_filter_of_the_direction_has_the_norm_of_the_networks() -> None:
    weights = np.random.default_rng(1).normal(0, 3, (3, 3, 4, 5)).astype(np.float32)
    direction = _direction(weights, np.random.default_rng(2))
    for filter_ in range(5):
        assert np.linalg.norm(direction[..., filter_]) == pytest.approx(np.linalg.norm(weights[..., filter_]), rel=1e-5)
    assert abs(np.corrcoef(direction.ravel(), weights.ravel())[0, 1]) < 0.3
