"""Weights and statistics that are nowhere at rest, so that each of them shows. Drawn without Keras, anywhere alike."""

from collections.abc import Mapping

import numpy as np


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
