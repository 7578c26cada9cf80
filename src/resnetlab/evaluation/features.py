"""What the layers of a network respond to: the filters of its first convolution, and the feature maps of a stage."""

from __future__ import annotations

import keras
import numpy as np

from resnetlab.errors import ResnetlabError, UsageError, unknown_name
from resnetlab.evaluation.explain import divided, stages


def first_filters(network: keras.Model) -> np.ndarray:
    """The weights of the first convolution: (filters, size, size, 3) float32, for red, green and blue.

    Of a whitening stem, its components.

    Raises:
        ResnetlabError: a network whose first convolution is not of colour images.
    """
    weights = (getattr(layer, "kernel", getattr(layer, "components", None)) for layer in network.layers)
    kernel = next((found for found in weights if len(getattr(found, "shape", ())) == 4), None)
    if kernel is None or kernel.shape[2] != 3:
        raise ResnetlabError("The network has no convolution of colour images, whose filters could be shown.")
    filters = np.moveaxis(np.asarray(keras.ops.convert_to_numpy(kernel), np.float32), -1, 0)
    takes_bgr = any(getattr(layer, "preprocessing", None) == "caffe" for layer in network.layers)
    return filters[..., ::-1] if takes_bgr else filters


def feature_maps(network: keras.Model, images: np.ndarray, *, stage: str | None = None) -> np.ndarray:
    """The output of a stage: (n, height, width, channels) float32.

    Args:
        network: one of ours.
        images: (n, size, size, 3), 0-255.
        stage: "stem", "stage1", ...; by default the last one.
    """
    names = stages(network)
    stage = names[-1] if stage is None else stage
    if stage not in names:
        raise unknown_name("stage", stage, names)
    if len(images) == 0:
        raise UsageError("Received no images, expected at least one.")
    front, _ = divided(network, stage)
    return np.asarray(front.predict_on_batch(images), np.float32)


def filters_as_images(filters: np.ndarray) -> np.ndarray:
    """Filters (n, size, size, 3) as uint8 images: grey is a weight of 0, and each filter has its own range."""
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    return np.rint(127.5 + 127.5 * filters / np.maximum(largest, 1e-12)).astype(np.uint8)


def strongest_channels(features: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the channels of one image's maps (height, width, channels) with the largest mean, in that order."""
    return np.argsort(-features.mean(axis=(0, 1)), kind="stable")[:count]
