"""The recorded gradients are the gradients, on every backend."""

from dataclasses import replace

import keras
import numpy as np

from resnetlab.evaluation.gradients import GradientRecorder, gradient_norms
from resnetlab.models import VARIANTS, build
from tests.workers import Workers


def compiled(rate: float) -> tuple[keras.Model, GradientRecorder]:
    network = build(replace(VARIANTS["resnet-tiny"], zero_init_last=False), num_classes=10, seed=3)
    recorder = GradientRecorder(rate)
    network.compile(recorder, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return network, recorder


def recorded(images: np.ndarray, labels: np.ndarray, rate: float, steps: int) -> tuple[dict[str, float], list]:
    """Norms after so many steps, and what the weights are then."""
    network, recorder = compiled(rate)
    for _ in range(steps):
        network.train_on_batch(images, labels)
    return recorder.norms(network), [keras.ops.convert_to_numpy(v) for v in network.trainable_variables]


def moved(images: np.ndarray, labels: np.ndarray, rate: float) -> tuple[dict[str, float], dict[str, float]]:
    """Norms as recorded, and as the way that each kernel moved tells them."""
    network, recorder = compiled(rate)
    convolutions = [layer for layer in network.layers if hasattr(layer, "kernel") and "conv" in layer.name]
    before = {layer.name: keras.ops.convert_to_numpy(layer.kernel).copy() for layer in convolutions}
    network.train_on_batch(images, labels)
    after = {layer.name: keras.ops.convert_to_numpy(layer.kernel) for layer in convolutions}
    return recorder.norms(network), {n: float(np.linalg.norm(before[n] - after[n])) / rate for n in before}


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"images": rng.integers(0, 256, (8, 16, 16, 3), np.uint8), "labels": rng.integers(0, 10, 8)}


def test_measuring_leaves_the_network_as_it_was() -> None:
    network, _ = compiled(0.0)
    before = [keras.ops.convert_to_numpy(variable) for variable in network.variables]
    assert min(gradient_norms(network, **batch()).values()) > 0
    for one, other in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(one, keras.ops.convert_to_numpy(other))


def test_norms_are_those_of_the_way_the_weights_move(on: Workers, backend: str) -> None:
    norms, distances = on(backend)(moved, rate=1.0, **batch())
    assert next(iter(norms)) == "stem_conv1"
    assert set(distances) - set(norms) == {name for name in distances if "shortcut" in name}
    assert min(norms.values()) > 0
    for name, norm in norms.items():
        np.testing.assert_allclose(norm, distances[name], rtol=1e-3)


def test_at_rate_zero_nothing_moves(on: Workers, backend: str) -> None:
    first, before = on(backend)(recorded, rate=0.0, steps=1, **batch())
    again, after = on(backend)(recorded, rate=0.0, steps=2, **batch())
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert first.keys() == again.keys()
