"""Folding, and the ONNX graph: the same logits as the network in Keras, for every kind of block, stem and shortcut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from PIL import Image

from resnetlab.errors import ResnetlabError
from resnetlab.inference.folding import folded
from resnetlab.inference.formats import Artefact, write_onnx
from resnetlab.inference.onnx_graph import onnx_model
from resnetlab.models import VARIANTS, build
from resnetlab.models.layers import BatchNorm, StochasticDepth
from tests.models.reference import assert_close, assert_depends_on_the_image, logits_of, randomise

onnxruntime = pytest.importorskip("onnxruntime")

REPRESENTATIVE = {  # one of each kind of block, shortcut, stem and preprocessing, and its side in pixels
    "resnet50": 97,
    "resnet18d": 97,  # the average pool of its shortcuts sees odd sides
    "resnext50-32x4d": 64,
    "se-resnet50": 64,
    "preresnet18": 97,
    "keras-resnet50": 64,  # BGR
    "keras-resnet50v2": 97,
    "resnet20": 33,
    "plain20": 33,
    "wrn-16-8": 32,
    "fast-resnet8": 32,
    "fast-resnet11": 33,
}


def network_of(name: str, narrower: int = 4) -> keras.Model:
    row = VARIANTS[name]
    small = replace(
        row,
        depths=tuple(min(depth, 2) for depth in row.depths),
        widths=tuple(width // narrower for width in row.widths),
        stem_width=row.stem_width // narrower,
    )
    network = build(small, stochastic_depth=0.0 if row.shortcut == "none" else 0.2)
    randomise(network, gain=2.0 if row.shortcut == "none" else 1.0)
    return network


def resized(photographs: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(photograph).resize((size, size))) for photograph in photographs])


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_logits_are_those_of_the_network(name: str, photographs: np.ndarray) -> None:
    network, size = network_of(name), REPRESENTATIVE[name]
    images = resized(photographs, size)
    expected = logits_of(network, images)
    assert_depends_on_the_image(expected)
    copy = folded(network, size)
    assert_close(logits_of(copy, images), expected, tolerance=1e-5)
    model = onnx_model(copy, [str(k) for k in range(expected.shape[1])], softmax=False)
    assert_close(run(model, images), expected)
    keras.backend.clear_session()


def test_a_folded_network_has_fewer_layers_and_leaves_the_original_alone() -> None:
    network = network_of("resnet18")
    before = network.get_weights()
    copy = folded(network, 64)
    assert not any(isinstance(layer, (BatchNorm, StochasticDepth)) for layer in copy.layers)
    for array, earlier in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, earlier)
    # A pre-activation block begins with a batch norm of the sum: that one, and the one before the head, must stay.
    left = [layer.name for layer in folded(network_of("preresnet18"), 64).layers if isinstance(layer, BatchNorm)]
    assert left == [f"stage{stage}_block{block}_bn1" for stage in (1, 2, 3, 4) for block in (1, 2)] + ["head_bn"]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_graph_says_what_goes_in_and_what_comes_out(batch_size: int | None, photographs: np.ndarray) -> None:
    network = network_of("resnet-tiny")
    names = [f"клас {k}" for k in range(10)]
    model = onnx_model(folded(network, 24), names, batch_size=batch_size)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", [batch_size or "batch", 24, 24, 3])
    assert (output.name, output.type, output.shape) == ("probabilities", "tensor(float)", [batch_size or "batch", 10])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == names
    probabilities = run(model, resized(photographs[:2], 24))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_half_precision_halves_the_file_and_keeps_three_digits(photographs: np.ndarray) -> None:
    network, images = network_of("resnet20", narrower=1), resized(photographs, 32)
    copy, names = folded(network, 32), [str(k) for k in range(10)]
    half, single = (onnx_model(copy, names, float16=float16, softmax=False) for float16 in (True, False))
    assert half.ByteSize() < 0.6 * single.ByteSize()
    assert_close(run(half, images), run(single, images), tolerance=5e-3)


def test_int8_leaves_batch_norms_that_stand_alone_in_float(photographs: np.ndarray, tmp_path: Path) -> None:
    copy = folded(network_of("preresnet18"), 32)
    images = resized(photographs, 32)
    names = [str(k) for k in range(1000)]
    write_onnx(Artefact(copy, names, precision="int8", batch_size=None, calibration=images), tmp_path)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    adds = [node for node in nodes if node.op_type == "Add"]
    alone = {layer.name for layer in copy.layers if isinstance(layer, BatchNorm)}
    assert {node.name for node in adds} > alone
    for node in adds:  # those of the blocks have inputs of eight bits
        expected = {"Mul", None} if node.name in alone else {"DequantizeLinear"}
        assert {made_by.get(name) for name in node.input} == expected
    assert all(
        made_by[name] == "DequantizeLinear" for node in nodes if node.op_type == "Conv" for name in node.input[:2]
    )


def test_an_unknown_layer_is_named() -> None:
    image = keras.Input((8, 8, 3), name="image")
    network = keras.Model(image, keras.layers.GaussianNoise(0.1, name="strange")(image))
    with pytest.raises(ResnetlabError, match="strange: received a layer of type GaussianNoise, expected one of Norm"):
        onnx_model(network, ["a"])
