"""The whitening stem: its components are computed from training images, not trained (Page 2018, Jordan 2024)."""

from __future__ import annotations

import keras
import numpy as np

from resnetlab.models.layers import PatchWhitening

IMAGES = 5_000  # that the covariance is estimated from
EPSILON = 5e-4  # added to each variance, so that the noise of nearly constant components is not amplified


def initialize_whitening(network: keras.Model, images: np.ndarray, indices: np.ndarray) -> None:
    """Compute the components of a network's whitening stem, if it has one, from images (n, height, width, 3)."""
    layer = next((each for each in network.layers if isinstance(each, PatchWhitening)), None)
    if layer is None:
        return
    chosen = np.asarray(images[indices[:: max(1, len(indices) // IMAGES)]], np.float32)
    normalized = keras.ops.convert_to_numpy(network.get_layer("normalize")(chosen))
    layer.components.assign(whitening_kernel(normalized))


def whitening_kernel(images: np.ndarray) -> np.ndarray:
    """Kernel (2, 2, 3, 24) whose first 12 outputs are uncorrelated, with variance 1; the others are their negatives."""
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))  # (n, h - 1, w - 1, 3, 2, 2)
    samples = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    covariance = (samples.T @ samples).astype(np.float64) / len(samples)
    variances, components = np.linalg.eigh(covariance)
    components *= np.sign(components[np.abs(components).argmax(axis=0), np.arange(12)])  # of either sign by the library
    kernel = (components / np.sqrt(variances + EPSILON)).reshape(2, 2, 3, 12)
    return np.concatenate([kernel, -kernel], axis=-1).astype(np.float32)
