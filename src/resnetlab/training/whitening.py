"""The whitening stem: its components are computed from training images, not trained (Page 2018, Jordan 2024)."""

from __future__ import annotations

import keras
import numpy as np

from resnetlab.data.pack import spread
from resnetlab.data.shards import Images
from resnetlab.errors import ResnetlabError
from resnetlab.models.layers import PatchWhitening

IMAGES = 5_000  # that the second moments are estimated from, at most
CHUNK = 16  # images at once
EPSILON = 5e-4  # of the mean variance, added to each, so that the noise of nearly constant components is not amplified


def initialize_whitening(network: keras.Model, images: Images, indices: np.ndarray) -> None:
    """Compute the components of a network's whitening stem, if it has one, from images (n, height, width, 3).

    Raises:
        ResnetlabError: nothing but the mean colour is in the images.
    """
    layer = next((each for each in network.layers if isinstance(each, PatchWhitening)), None)
    if layer is None:
        return
    chosen = spread(indices, IMAGES)
    normalize, moments, count = network.get_layer("normalize"), np.zeros((12, 12)), 0
    for start in range(0, len(chosen), CHUNK):
        part = np.asarray(images[chosen[start : start + CHUNK]], np.float32)
        samples = patches(keras.ops.convert_to_numpy(normalize(part))).astype(np.float64)
        moments += samples.T @ samples
        count += len(samples)
    layer.components.assign(whitening_kernel(moments / count))


def patches(images: np.ndarray) -> np.ndarray:
    """All patches of 2x2 pixels of images (n, height, width, 3), as rows of 12 values."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))  # (n, h - 1, w - 1, 3, 2, 2)
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)


def whitening_kernel(moments: np.ndarray) -> np.ndarray:
    """Kernel (2, 2, 3, 24) from the second moments (12, 12) of patches.

    Its first 12 outputs have a mean square of 1, and products of two of them a mean of 0; the others are their
    negatives. No mean is subtracted: the network's input is centred.
    """
    variances, components = np.linalg.eigh(moments)
    variances = np.maximum(variances, 0)
    if not variances.mean() > 0 or not np.isfinite(variances).all():
        raise ResnetlabError("The whitening stem needs images that are not all of the mean colour.")
    components *= np.sign(components[np.abs(components).argmax(axis=0), np.arange(12)])  # of either sign by the library
    kernel = (components / np.sqrt(variances + EPSILON * variances.mean())).reshape(2, 2, 3, 12)
    return np.concatenate([kernel, -kernel], axis=-1).astype(np.float32)
