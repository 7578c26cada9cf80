"""Our networks against other people's, and each backend against the others: the same weights, the same logits.

All weights and all batch-norm statistics are random, so a wrong epsilon, a stride in the wrong place or an asymmetric
padding cannot hide; images are photographs, at the size networks are published for and at an odd one.
"""

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from resnetlab.models import VARIANTS, build
from resnetlab.weights.arrays import collect_arrays
from resnetlab.weights.convert import assign_weights
from resnetlab.weights.mapping import recognise
from tests.models.randomised import randomised
from tests.models.reference import (
    assert_close,
    assert_depends_on_the_image,
    assign,
    logits_of,
    randomise,
)
from tests.workers import Workers

DEEP = [pytest.mark.long, pytest.mark.benchmark]  # more blocks of the same kinds
ODD = (113, 97)  # height, width: 97 is odd at every stage, 113 at all but two


@pytest.fixture(scope="module")
def at_both_sizes(photographs: np.ndarray) -> list[np.ndarray]:
    odd = [np.asarray(Image.fromarray(photo).resize(ODD[::-1])) for photo in photographs]
    return [photographs, np.stack(odd)]


# ----------------------------------------------------------------------------------------- keras.applications
def reference_of_keras(name: str) -> keras.Model:
    """keras.applications' network with its 1000 logits, for images of any size."""
    function = getattr(keras.applications, name)
    base = function(weights=None, include_top=False, pooling="avg", input_shape=(None, None, 3))
    # include_top=True adds exactly this (and a softmax), but for one size of image.
    return keras.Model(base.input, keras.layers.Dense(1000, name="predictions")(base.output))


@pytest.mark.parametrize(
    "name",
    [
        "ResNet50",
        "ResNet50V2",
        *(pytest.param(f"ResNet{n}", marks=DEEP) for n in ("101", "101V2", "152", "152V2")),
    ],
)
def test_logits_are_those_of_keras_applications(name: str, at_both_sizes: list[np.ndarray]) -> None:
    module = keras.applications.resnet_v2 if name.endswith("V2") else keras.applications.resnet
    theirs, row = reference_of_keras(name), f"keras-{name.lower()}"
    weights = randomised(collect_arrays(theirs))
    if not name.endswith("V2"):  # whose input is bytes, not [-1, 1]
        weights["conv1_conv/kernel"] /= 64
    assign(theirs, weights)
    arch, naming, num_classes = recognise(weights)
    assert (arch.name, naming.family, num_classes) == (row, "keras.applications", 1000)
    ours = build(arch)
    assign_weights(ours, weights, naming)
    for images in at_both_sizes:
        expected = logits_of(theirs, module.preprocess_input(images.astype(np.float32)))
        assert_depends_on_the_image(expected)
        assert_close(logits_of(ours, images), expected)
    keras.backend.clear_session()


# ----------------------------------------------------------------------------------------------- transformers
TRANSFORMERS = {
    "resnet50": {},
    "resnet50-v1": {"downsample_in_bottleneck": True},
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
}


def of_transformers(
    config: dict[str, object], images: list[np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Random weights of the transformers library's ResNet of a configuration, and its logits for batches of images."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000, **config)).eval()
    weights = randomised(collect_arrays(model.state_dict()))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    logits = []
    for batch in images:
        scaled = (batch / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)  # as its image processor
        with torch.no_grad():
            pixels = torch.from_numpy(scaled.astype(np.float32).transpose(0, 3, 1, 2))
            logits.append(model(pixel_values=pixels).logits.numpy())
    return collect_arrays(model.state_dict()), logits


def ported_logits(
    weights: dict[str, np.ndarray], images: list[np.ndarray], stride_on: str
) -> tuple[str, str, list[np.ndarray]]:
    arch, naming, num_classes = recognise(weights, stride_on=stride_on)
    model = build(arch, num_classes=num_classes)
    assign_weights(model, weights, naming)
    return arch.name, naming.family, [logits_of(model, batch) for batch in images]


@pytest.mark.parametrize("row", TRANSFORMERS)
def test_logits_are_those_of_transformers(on: Workers, row: str, at_both_sizes: list[np.ndarray]) -> None:
    config = TRANSFORMERS[row]
    weights, expected = on("torch")(of_transformers, config=config, images=at_both_sizes)
    stride_on = "1x1" if config.get("downsample_in_bottleneck") else "3x3"
    for backend in ("tensorflow", "torch") if row == "resnet50" else ("tensorflow",):
        arguments = {"weights": weights, "images": at_both_sizes, "stride_on": stride_on}
        name, family, received = on(backend)(ported_logits, **arguments)
        assert (name, family) == (row, "transformers")
        for batch, reference in zip(received, expected, strict=True):
            assert_depends_on_the_image(reference)
            assert_close(batch, reference)


# --------------------------------------------------------------------------------------- torchvision and timm
KEPT = np.load(Path(__file__).with_name("torch_reference.npz"), allow_pickle=False)  # by make_torch_reference.py
NAMES = json.loads(str(KEPT["names"]))
ROWS = {  # where our name is not theirs
    "resnext50_32x4d": "resnext50-32x4d",
    "wide_resnet50_2": "wide-resnet50-2",
    "seresnet50": "se-resnet50",
}


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=DEEP if name.endswith(("101", "152")) else ()) for name in NAMES]
)
def test_logits_are_those_of_torchvision_and_timm(network: str) -> None:
    weights = randomised({name: np.empty(shape, np.float32) for name, shape in NAMES[network]})
    theirs = network.split()[1]
    row, family, [received] = ported_logits(weights, [KEPT["photographs"]], "3x3")
    assert (row, family) == (ROWS.get(theirs, theirs), "torchvision")
    assert_depends_on_the_image(KEPT[network])
    assert_close(received, KEPT[network])
    keras.backend.clear_session()


# ------------------------------------------------------------------------------------------ the three backends
REPRESENTATIVE = {  # one of each kind of block, shortcut and stem, and its side in pixels
    "resnet50": 97,
    "resnet50d": 97,
    "resnext50-32x4d": 64,
    "se-resnet50": 64,
    "preresnet18": 97,
    "keras-resnet50v2": 97,
    "resnet20": 33,
    "plain20": 33,
    "wrn-16-8": 32,
}
TRAINED = ("resnet-tiny", "resnet18d", "resnet20", "plain20", "preresnet164")


def logits(name: str, images: np.ndarray, training: bool) -> np.ndarray:
    arch = VARIANTS[name]  # shallow, as the later blocks of a stage are alike, and batch statistics are of few images
    arch = replace(arch, depths=tuple(min(depth, 2) for depth in arch.depths))
    model = build(arch)
    randomise(model, gain=2.0 if arch.shortcut == "none" else 1.0)
    result = logits_of(model, images, training=training)
    keras.backend.clear_session()
    return result


def resized(photographs: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(photo).resize((size, size))) for photo in photographs])


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_backends_agree_at_inference(on: Workers, name: str, photographs: np.ndarray) -> None:
    arguments = {"name": name, "images": resized(photographs, REPRESENTATIVE[name]), "training": False}
    expected = on("tensorflow")(logits, **arguments)
    assert_depends_on_the_image(expected)
    for backend in ("jax", "torch"):
        assert_close(on(backend)(logits, **arguments), expected)


@pytest.mark.parametrize("name", TRAINED)
def test_backends_agree_in_training(on: Workers, name: str, photographs: np.ndarray) -> None:
    quarters = photographs.reshape(-1, 2, 112, 2, 112, 3).swapaxes(2, 3).reshape(-1, 112, 112, 3)
    arguments = {"name": name, "images": resized(quarters, 49), "training": True}
    expected = on("tensorflow")(logits, **arguments)
    for backend in ("jax", "torch"):
        assert_close(on(backend)(logits, **arguments), expected)
