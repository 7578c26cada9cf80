"""Translate a folded network to an ONNX graph, layer by layer: independent of the backend, without redundant nodes.

    image          uint8 (batch, size, size, 3), RGB
    probabilities  float32 (batch, classes)

In between feature maps are (batch, channels, height, width), which is what ONNX's convolution takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnetlab.errors import ResnetlabError
from resnetlab.inference.folding import consumers_of
from resnetlab.models.layers import (
    AveragePooling2D,
    BatchNorm,
    Conv2D,
    IdentityShortcut,
    MaxPooling2D,
    Normalize,
    PatchWhitening,
)
from resnetlab.models.variants import PREPROCESSING
from resnetlab.version import VERSION

OPSET, IR_VERSION = 18, 9  # from 2022/23: supported by Triton, TensorRT and phones; nothing here needs a newer one


def onnx_model(
    network: keras.Model,
    class_names: Sequence[str],
    *,
    batch_size: int | None = None,
    float16: bool = False,
    softmax: bool = True,
) -> onnx.ModelProto:
    """The ONNX model of a network made by `folded`.

    Args:
        network: of a fixed image size.
        class_names: kept in the model's metadata, as JSON.
        batch_size: None for any.
        float16: weights and feature maps in half precision; the image's normalisation and the head stay float32.
        softmax: if False, the output is "logits" instead of "probabilities".

    Raises:
        ResnetlabError: the network has a layer of a type that is not known here.
    """
    graph = _Graph(network, np.dtype(np.float16 if float16 else np.float32))
    for layer in network.layers:
        graph.add(layer)
    size, classes = network.inputs[0].shape[1], network.outputs[0].shape[-1]
    output = "probabilities" if softmax else "logits"
    graph.node("Softmax" if softmax else "Identity", graph.names[id(network.outputs[0])], output)

    batch = batch_size or "batch"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, size, size, 3])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, classes])],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="resnetlab",
        producer_version=VERSION,
    )
    helper.set_model_props(
        model,
        {
            "class_names": json.dumps(list(class_names)),
            "input": f"RGB images, uint8 (batch, {size}, {size}, 3); normalised inside",
        },
    )
    onnx.checker.check_model(model)
    return model


class _Graph:
    """The nodes and constants so far, and the ONNX name of each Keras tensor."""

    def __init__(self, network: keras.Model, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.names = {id(network.inputs[0]): "image"}
        self.consumers = consumers_of(network)
        self.padded: dict[int, int] = {}  # zero padding left to the following max-pool, by tensor id

    def add(self, layer: keras.layers.Layer) -> None:
        if isinstance(layer, keras.layers.InputLayer):
            return
        try:
            translate = _TRANSLATIONS[type(layer)]
        except KeyError:
            raise ResnetlabError(
                f"{layer.name}: received a layer of type {type(layer).__name__}, expected one of "
                f"{', '.join(kind.__name__ for kind in _TRANSLATIONS)}: only those have a translation to ONNX."
            ) from None
        inputs = [self.names[id(tensor)] for tensor in keras.tree.flatten(layer.input)]
        self.names[id(layer.output)] = translate(self, layer, *inputs)

    def node(self, kind: str, inputs: str | Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; its output has its name."""
        inputs = [inputs] if isinstance(inputs, str) else inputs
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """Add a constant, in the graph's precision where `dtype` is not given."""
        array = np.ascontiguousarray(value, dtype or self.dtype)
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def cast(self, x: str, to: np.dtype, name: str) -> str:
        return self.node("Cast", x, name, to=helper.np_dtype_to_tensor_dtype(to))


def _array(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float32)


def _normalize(graph: _Graph, layer: Normalize, x: str) -> str:
    """Bytes to floats. RGB is not reversed to BGR here: the next convolutions reverse their kernels instead."""
    mean, scale = (np.reshape(row, (1, 3, 1, 1)) for row in PREPROCESSING[layer.preprocessing])
    x = graph.node("Transpose", x, "image_nchw", perm=[0, 3, 1, 2])  # as uint8, which is cheaper
    x = graph.cast(x, np.dtype(np.float32), "image_float")
    x = graph.node("Sub", [x, graph.constant("mean", mean, np.float32)], "image_centred")
    if np.any(scale != 1.0):
        x = graph.node("Div", [x, graph.constant("scale", scale, np.float32)], layer.name)
    return graph.cast(x, graph.dtype, "image_half") if graph.dtype == np.float16 else x


def _kernel(layer: keras.layers.Layer, variable: keras.Variable) -> np.ndarray:
    """A kernel (k, k, in / groups, out) as ONNX has it: (out, in / groups, k, k); reversed after BGR preprocessing."""
    kernel, before = _array(variable), layer.input._keras_history.operation
    if isinstance(before, Normalize) and before.preprocessing == "caffe":
        kernel = kernel[:, :, ::-1]
    return kernel.transpose(3, 2, 0, 1)


def _convolution(graph: _Graph, layer: Conv2D, x: str) -> str:
    half = layer.kernel_size // 2
    inputs = [x, graph.constant(f"{layer.name}/kernel", _kernel(layer, layer.kernel))]
    if layer.use_bias:
        inputs.append(graph.constant(f"{layer.name}/bias", _array(layer.bias)))
    return graph.node(
        "Conv",
        inputs,
        layer.name,
        kernel_shape=[layer.kernel_size] * 2,
        strides=[layer.strides] * 2,
        pads=[half] * 4,
        group=layer.groups,
    )


def _whitening(graph: _Graph, layer: PatchWhitening, x: str) -> str:
    inputs = [x, graph.constant(f"{layer.name}/components", _kernel(layer, layer.components))]
    return graph.node("Conv", [*inputs, graph.constant(f"{layer.name}/bias", _array(layer.bias))], layer.name)


def _batch_norm(graph: _Graph, layer: BatchNorm, x: str) -> str:
    """A batch norm that was not folded, as it does not follow a convolution: y = s * x + t."""
    gamma, beta, mean, variance = map(_array, (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance))
    scale = gamma / np.sqrt(variance + layer.epsilon)
    shift = beta - mean * scale
    x = graph.node(
        "Mul", [x, graph.constant(f"{layer.name}/scale", scale.reshape(1, -1, 1, 1))], f"{layer.name}_scaled"
    )
    return graph.node("Add", [x, graph.constant(f"{layer.name}/shift", shift.reshape(1, -1, 1, 1))], layer.name)


def _zero_padding(graph: _Graph, layer: keras.layers.ZeroPadding2D, x: str) -> str:
    (pad, *_), _ = layer.padding
    before, after = layer.input._keras_history.operation, graph.consumers[id(layer.output)]
    if isinstance(before, keras.layers.ReLU) and all(isinstance(each, keras.layers.MaxPooling2D) for each in after):
        graph.padded[id(layer.output)] = pad  # nothing is below zero: a max-pool's own padding, -inf, gives the same
        return x
    pads = graph.constant(f"{layer.name}/pads", [0, 0, pad, pad] * 2, np.int64)
    return graph.node("Pad", [x, pads], layer.name)


def _max_pool(graph: _Graph, layer: keras.layers.MaxPooling2D, x: str) -> str:
    pads = [graph.padded.get(id(layer.input), 0)] * 4
    return graph.node(
        "MaxPool", x, layer.name, kernel_shape=list(layer.pool_size), strides=list(layer.strides), pads=pads
    )


def _average_pool(graph: _Graph, layer: keras.layers.AveragePooling2D, x: str) -> str:
    """Padding is excluded from the mean, as in Keras: if a side is odd, the last window has fewer pixels."""
    _, height, width, _ = layer.input.shape
    pads = [0, 0, height % 2, width % 2]
    return graph.node("AveragePool", x, layer.name, kernel_shape=[2, 2], strides=[2, 2], pads=pads, count_include_pad=0)


def _identity_shortcut(graph: _Graph, layer: IdentityShortcut, x: str) -> str:
    if layer.strides > 1:
        x = graph.node("MaxPool", x, f"{layer.name}_strided", kernel_shape=[1, 1], strides=[layer.strides] * 2)
    if new := layer.filters - layer.input.shape[-1]:
        pads = graph.constant(f"{layer.name}/pads", [0, 0, 0, 0, 0, new, 0, 0], np.int64)
        x = graph.node("Pad", [x, pads], layer.name)
    return x


def _global_pool(graph: _Graph, layer: keras.layers.GlobalAveragePooling2D, x: str) -> str:
    x = graph.node("GlobalAveragePool", x, f"{layer.name}_mean")  # (batch, channels, 1, 1)
    return x if layer.keepdims else graph.node("Flatten", x, layer.name)


def _dense(graph: _Graph, layer: keras.layers.Dense, x: str) -> str:
    kernel, bias = _array(layer.kernel), _array(layer.bias)  # (in, out), (out,)
    if len(layer.input.shape) == 4:  # squeeze-and-excitation's: a 1x1 convolution of a single pixel
        weights = graph.constant(f"{layer.name}/kernel", kernel.T[:, :, None, None])
        x = graph.node("Conv", [x, weights, graph.constant(f"{layer.name}/bias", bias)], f"{layer.name}_linear")
        return graph.node(layer.activation.__name__.capitalize(), x, layer.name)
    if graph.dtype == np.float16:
        x = graph.cast(x, np.dtype(np.float32), f"{layer.name}_input")
    weights = graph.constant(f"{layer.name}/kernel", kernel, np.float32)
    return graph.node("Gemm", [x, weights, graph.constant(f"{layer.name}/bias", bias, np.float32)], layer.name)


_TRANSLATIONS: dict[type, Callable[..., str]] = {
    Normalize: _normalize,
    Conv2D: _convolution,
    PatchWhitening: _whitening,
    BatchNorm: _batch_norm,
    keras.layers.ReLU: lambda graph, layer, x: graph.node("Relu", x, layer.name),
    keras.layers.ZeroPadding2D: _zero_padding,
    MaxPooling2D: _max_pool,
    AveragePooling2D: _average_pool,
    IdentityShortcut: _identity_shortcut,
    keras.layers.Add: lambda graph, layer, x, y: graph.node("Add", [x, y], layer.name),
    keras.layers.Multiply: lambda graph, layer, x, y: graph.node("Mul", [x, y], layer.name),
    keras.layers.GlobalAveragePooling2D: _global_pool,
    keras.layers.Dense: _dense,
    keras.layers.Identity: lambda graph, layer, x: x,
}
