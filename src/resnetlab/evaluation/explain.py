"""Explanations of predictions: class activation maps, and occlusion as a check without gradients.

A class activation map sums the channels of a stage's feature maps A, weighted by the gradient G of a class's logit, and
keeps what is positive. Four methods differ in the weights, the fifth is another:

    grad-cam     mean of G over the image (Selvaraju 2016, arXiv:1610.02391)
    grad-cam++   sum of the positive G, weighted by higher derivatives (Chattopadhay 2017, arXiv:1710.11063)
    hires-cam    G at each place (Draelos 2020, arXiv:2011.08891): the contributions to the logit, if the head is linear
    layer-cam    the positive G at each place (Jiang 2021), which gives sharp maps of early stages too
    occlusion    no map of features: how much the class's probability falls when a square is covered (Zeiler 2013)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import ops

from resnetlab import backend
from resnetlab.errors import UsageError, unknown_name
from resnetlab.evaluation.metrics import softmax

METHODS = ("grad-cam", "grad-cam++", "hires-cam", "layer-cam", "occlusion")
COVER = 127.5  # mid-grey, of an occluding square


def stages(network: keras.Model) -> list[str]:
    """The end points that maps can be made of: "stem", "stage1", ..."""
    return [each.name for each in network.layers if each.name == "stem" or each.name.removeprefix("stage").isdecimal()]


def check(network: keras.Model, method: str, stage: str | None) -> None:
    """Raise UsageError for an unknown method or stage, or what they cannot be used for."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if stage is not None and stage not in stages(network):
        raise unknown_name("stage", stage, stages(network))
    if method == "occlusion" and stage is not None:
        raise UsageError(f"Received stage={stage!r} for occlusion, which covers the image: leave it out.")
    if method == "occlusion" and network.output_shape[-1] < 2:
        raise UsageError("Occlusion needs a network of at least 2 classes, whose probabilities can change.")


def explain(
    network: keras.Model,
    images: np.ndarray,
    *,
    method: str = "grad-cam",
    stage: str | None = None,
    classes: Sequence[int] | None = None,
) -> np.ndarray:
    """Maps (n, height, width) float32, at least 0, of the stage's size; for occlusion of the images' size.

    Args:
        network: one of ours, with logits as its output.
        images: (n, size, size, 3), 0-255.
        method: one of METHODS.
        stage: an end point; by default the last stage. Not for occlusion.
        classes: of each image, the class whose logit is explained; by default the predicted one.
    """
    check(network, method, stage)
    outputs = network.output_shape[-1]
    if len(images) == 0:
        raise UsageError("Received no images, expected at least one.")
    if classes is not None and len(classes) != len(images):
        raise UsageError(f"Received {len(classes)} classes for {len(images)} images, expected one for each.")
    if classes is not None and not all(0 <= each < outputs for each in classes):
        raise UsageError(f"Received classes {list(classes)[:5]}, expected numbers from 0 to {outputs - 1}.")
    if method == "occlusion":
        return _occlusion(network, np.asarray(images), classes)
    stage = stages(network)[-1] if stage is None else stage
    features, gradients = _features_and_gradients(network, images, stage, classes)
    return _combine(features, gradients, method)


def _features_and_gradients(
    network: keras.Model, images: np.ndarray, stage: str, classes: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """A stage's output, and the gradient of each image's logit with respect to it: (n, height, width, channels)."""
    front, back = divided(network, stage)
    features = ops.convert_to_tensor(front(ops.convert_to_tensor(images), training=False))
    if classes is None:
        classes = ops.convert_to_numpy(back(features, training=False)).argmax(axis=1)
    chosen = ops.one_hot(ops.convert_to_tensor(np.asarray(classes, np.int32)), network.output_shape[-1])

    def logit(features: Any) -> Any:
        return ops.sum(ops.cast(back(features, training=False), "float32") * chosen, axis=-1)

    return _array(features), _array(backend.gradient(logit, features))


_DIVIDED: WeakKeyDictionary[keras.Model, dict[str, tuple[keras.Model, keras.Model]]] = WeakKeyDictionary()


def divided(network: keras.Model, stage: str) -> tuple[keras.Model, keras.Model]:
    """The network up to a stage, and from its output on. Made once: a layer keeps each of its uses in a model."""
    parts = _DIVIDED.setdefault(network, {})
    if stage not in parts:
        middle = network.get_layer(stage).output
        parts[stage] = keras.Model(network.inputs[0], middle), keras.Model(middle, network.outputs[0])
    return parts[stage]


def _array(tensor: Any) -> np.ndarray:
    found: np.ndarray = ops.convert_to_numpy(ops.cast(tensor, "float32"))
    return found


def _combine(features: np.ndarray, gradients: np.ndarray, method: str) -> np.ndarray:
    if method == "grad-cam":
        weights = gradients.mean(axis=(1, 2), keepdims=True)
    elif method == "grad-cam++":  # equation 19; 1e-6 as in the package grad-cam, which outweighs small gradients
        total = features.sum(axis=(1, 2), keepdims=True)
        share = gradients**2 / (2 * gradients**2 + total * gradients**3 + 1e-6)
        weights = (share * (gradients != 0) * np.maximum(gradients, 0)).sum(axis=(1, 2), keepdims=True)
    else:
        weights = gradients if method == "hires-cam" else np.maximum(gradients, 0)
    return np.maximum((weights * features).sum(axis=-1), 0)


def _occlusion(network: keras.Model, images: np.ndarray, classes: Sequence[int] | None) -> np.ndarray:
    """Mean fall of the class's probability over the squares, of a quarter of the side, that cover each pixel."""
    size = images.shape[1]
    side, step = max(1, size // 4), max(1, size // 8)
    whole = softmax(network.predict_on_batch(images))
    chosen = whole.argmax(axis=1) if classes is None else np.asarray(classes)
    rows = np.arange(len(images))
    falls, covered = np.zeros(images.shape[:3]), np.zeros(images.shape[1:3])
    places = sorted({*range(0, size - side + 1, step), size - side})
    for top in places:
        for left in places:
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            hidden = images.astype(np.float32)
            hidden[window] = COVER
            fall = whole[rows, chosen] - softmax(network.predict_on_batch(hidden))[rows, chosen]
            falls[window] += fall[:, None, None]
            covered[window[1:]] += 1
    return np.maximum(falls / covered, 0).astype(np.float32)
