"""What the tests of networks share: random weights in a model, logits, and how close they must be."""

from collections.abc import Mapping

import keras
import numpy as np

from resnetlab.models import Architecture, summarize
from resnetlab.weights.arrays import collect_arrays
from resnetlab.weights.mapping import torchvision
from tests.models.randomised import randomised


def empty_weights(arch: Architecture, num_classes: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of the names ("stem_conv1/kernel") and shapes of a row's weights, to be drawn."""
    weights = summarize(arch, num_classes=num_classes).weights
    return {f"{layer}/{weight}": np.empty(shape, np.float32) for layer, weight, shape in weights}


def as_torch(arrays: Mapping[str, np.ndarray], arch: Architecture) -> dict[str, np.ndarray]:
    """Our arrays under torchvision's names and in its layout."""
    naming = torchvision(arch)
    return {
        naming.of(*path.split("/")): array
        if array.ndim < 2
        else np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)))
        for path, array in arrays.items()
    }


def assign(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a Keras model the arrays that `collect_arrays` names."""
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])


def randomise(model: keras.Model, seed: int = 0, *, gain: float = 1.0) -> None:
    """Set all weights and statistics of a model at random: to the same on every backend."""
    assign(model, randomised(collect_arrays(model), seed, gain=gain))


def logits_of(model: keras.Model, images: np.ndarray, *, training: bool = False) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(images), training=training))


def assert_close(received: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """No element differs by more than `tolerance` of the largest one."""
    assert received.shape == expected.shape
    scale = np.abs(expected).max()
    assert np.isfinite(scale)
    assert scale > 0
    difference = np.abs(received - expected).max()
    assert difference <= tolerance * scale, f"differs by {difference / scale:.2e} of the scale {scale:.3g}"


def assert_depends_on_the_image(logits: np.ndarray) -> None:
    """What two images change is a hundred times what `assert_close` lets pass."""
    assert np.abs(logits[0] - logits[1]).max() > 1e-2 * np.abs(logits).max()
