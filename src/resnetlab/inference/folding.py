"""Fold batch norms into the preceding convolutions, as a trained network no longer needs them at inference."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import keras
import numpy as np

from resnetlab.models.layers import BatchNorm, Conv2D, StochasticDepth


def folded(network: keras.Model, size: int) -> keras.Model:
    """A copy of one of our networks that computes the same logits of (batch, size, size, 3) images with fewer layers.

    A batch norm at inference is y = s * x + t for each channel, with s = gamma / sqrt(variance + epsilon) and
    t = beta - s * mean. Where x is a convolution's output that nothing else uses, s goes into the kernel and t into the
    bias. Layers that then have no effect, and stochastic depth, become `Identity`. Weights are stored in the precision
    of the computation.
    """
    norms = _following_norms(network)
    gone = {norm.name for norm in norms.values()}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in gone or isinstance(layer, StochasticDepth):
            return keras.layers.Identity(name=layer.name)
        config = layer.get_config() | {"dtype": layer.compute_dtype}
        if layer.name in norms:
            config["use_bias"] = True
        return layer.from_config(config)

    image = keras.Input((size, size, 3), name="image")
    copy: keras.Model = keras.models.clone_model(
        network,
        input_tensors=image,
        clone_function=clone,
        call_function=lambda layer, *tensors, **_: layer(*tensors),  # an Identity knows no `mask` and no `training`
    )
    for layer in network.layers:
        if layer.name in norms:
            copy.get_layer(layer.name).set_weights(_folded_weights(layer, norms[layer.name]))
        elif layer.name not in gone and layer.trainable_weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def consumers_of(network: keras.Model) -> dict[int, list[keras.layers.Layer | None]]:
    """The layers that take each tensor, by the tensor's `id`; None stands for the network's own output."""
    consumers: dict[int, list[keras.layers.Layer | None]] = defaultdict(list)
    for layer in network.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            for tensor in keras.tree.flatten(layer.input):
                consumers[id(tensor)].append(layer)
    for tensor in network.outputs:
        consumers[id(tensor)].append(None)
    return consumers


def _following_norms(network: keras.Model) -> dict[str, BatchNorm]:
    """Names of the convolutions whose output goes to a batch norm and nowhere else, and that batch norm."""
    consumers = consumers_of(network)
    return {
        layer.name: only
        for layer in network.layers
        if isinstance(layer, Conv2D)
        for only in consumers[id(layer.output)]
        if isinstance(only, BatchNorm) and len(consumers[id(layer.output)]) == 1
    }


def _folded_weights(conv: Conv2D, norm: BatchNorm) -> list[np.ndarray]:
    def array(variable: Any) -> np.ndarray:
        return keras.ops.convert_to_numpy(variable).astype(np.float64)

    scale = array(norm.gamma) / np.sqrt(array(norm.moving_variance) + norm.epsilon)  # (channels,)
    bias = (array(conv.bias) if conv.use_bias else 0.0) - array(norm.moving_mean)
    return [array(conv.kernel) * scale, bias * scale + array(norm.beta)]
