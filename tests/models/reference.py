"""What the tests of networks share: weights and statistics that are nowhere at rest, so that each of them shows."""

from collections.abc import Mapping

import keras
import numpy as np

from resnetlab.models.porting import arrays_of


def randomised(arrays: Mapping[str, np.ndarray], seed: int = 0, *, gain: float = 1.0) -> dict[str, np.ndarray]:
    """Other arrays of the same names and shapes, drawn so that activations neither die nor explode with depth.

    Kernels have variance gain / fan-in. At gain 1 each ReLU halves what goes through, so what comes from a residual
    branch stays below what comes over its shortcut; a plain network needs 2. Scales and variances are around 1, shifts,
    means and biases around 0.
    """
    generator = np.random.default_rng(seed)

    def draw(name: str, array: np.ndarray) -> np.ndarray:
        if array.ndim > 1:
            foreign = "kernel" not in name  # PyTorch's has its outputs first, Keras's last
            fan_in = array[0].size if foreign else array[..., 0].size
            return generator.standard_normal(array.shape, np.float32) * np.float32(np.sqrt(gain / fan_in))
        if name.endswith(("gamma", "weight", "variance", "running_var")):
            return generator.uniform(0.5, 1.5, array.shape).astype(np.float32)
        return 0.2 * generator.standard_normal(array.shape, np.float32)

    return {name: draw(name, array) for name, array in arrays.items() if not name.endswith("num_batches_tracked")}


def assign(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a Keras model the arrays that `arrays_of` names."""
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])


def randomise(model: keras.Model, seed: int = 0, *, gain: float = 1.0) -> None:
    """Set all weights and statistics of a model at random: to the same on every backend."""
    assign(model, randomised(arrays_of(model), seed, gain=gain))


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
