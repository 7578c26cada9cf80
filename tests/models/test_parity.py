"""Our networks against other people's, and each backend against the others: the same weights, the same logits.

All weights and all batch-norm statistics are random, so a wrong epsilon, a stride in the wrong place or an asymmetric
padding cannot hide; images are photographs, at the size networks are published for and at an odd one.
"""

from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models import ARCHITECTURES, build
from resnetlab.models.porting import arrays_of, keras_applications, port, torchvision, transformers
from tests.models.reference import (
    assert_close,
    assert_depends_on_the_image,
    assign,
    logits_of,
    randomise,
    randomised,
)
from tests.workers import Workers

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


@pytest.mark.parametrize("name", ["ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"])
def test_logits_are_those_of_keras_applications(name: str, at_both_sizes: list[np.ndarray]) -> None:
    module = keras.applications.resnet_v2 if name.endswith("V2") else keras.applications.resnet
    theirs, row = reference_of_keras(name), f"keras-{name.lower()}"
    weights = randomised(arrays_of(theirs))
    if not name.endswith("V2"):  # whose input is bytes, not [-1, 1]
        weights["conv1_conv/kernel"] /= 64
    assign(theirs, weights)
    ours = build(row)
    port(ours, weights, keras_applications(ARCHITECTURES[row]))
    for images in at_both_sizes:
        expected = logits_of(theirs, module.preprocess_input(images.astype(np.float32)))
        assert_depends_on_the_image(expected)
        assert_close(logits_of(ours, images), expected)
    keras.backend.clear_session()


# ----------------------------------------------------------------------------------------------- transformers
def transformers_resnet50(images: list[np.ndarray]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Random weights of the transformers library's ResNet-50 (v1.5), and its logits for batches of images."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()
    weights = randomised(arrays_of(model.state_dict()))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    logits = []
    for batch in images:
        scaled = (batch / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)  # as its image processor
        with torch.no_grad():
            pixels = torch.from_numpy(scaled.astype(np.float32).transpose(0, 3, 1, 2))
            logits.append(model(pixel_values=pixels).logits.numpy())
    return arrays_of(model.state_dict()), logits


def ported_logits(weights: dict[str, np.ndarray], images: list[np.ndarray]) -> list[np.ndarray]:
    model = build("resnet50")
    port(model, weights, transformers(ARCHITECTURES["resnet50"]))
    return [logits_of(model, batch) for batch in images]


def test_logits_are_those_of_transformers(on: Workers, at_both_sizes: list[np.ndarray]) -> None:
    weights, expected = on("torch")(transformers_resnet50, images=at_both_sizes)
    for backend in ("tensorflow", "torch"):
        received = on(backend)(ported_logits, weights=weights, images=at_both_sizes)
        for batch, reference in zip(received, expected, strict=True):
            assert_depends_on_the_image(reference)
            assert_close(batch, reference)


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
    arch = ARCHITECTURES[name]
    if training:  # batch statistics of few images: keep it shallow
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


# ----------------------------------------------------------------------------------------------------- porting
def torch_names(arch_name: str) -> dict[str, np.ndarray]:
    """What a state dict of torchvision or timm holds for a row: the names as their sources define them."""
    arch, arrays = ARCHITECTURES[arch_name], {}

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        arrays[f"{name}.weight"] = np.zeros((outputs, inputs, kernel, kernel), np.float32)

    def norm(name: str, channels: int) -> None:
        for weight in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{name}.{weight}"] = np.zeros(channels, np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)

    if arch.stem == "deep":
        for name, outputs, inputs in (("conv1.0", 32, 3), ("conv1.3", 32, 32), ("conv1.6", 64, 32)):
            conv(name, outputs, inputs, 3)
        for name, channels in (("conv1.1", 32), ("conv1.4", 32), ("bn1", 64)):
            norm(name, channels)
    else:
        conv("conv1", 64, 3, 7)
        norm("bn1", 64)
    inputs = 64
    for stage, (depth, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        inner = width * arch.base_width // 64 * arch.groups
        for index in range(depth):
            block = f"layer{stage}.{index}"
            sizes = ((inner, inputs, 1), (inner, inner // arch.groups, 3), (4 * width, inner, 1))
            for i, (outputs, channels, kernel) in enumerate(sizes, start=1):
                conv(f"{block}.conv{i}", outputs, channels, kernel)
                norm(f"{block}.bn{i}", outputs)
            if index == 0:
                first = 1 if arch.shortcut == "D" else 0
                conv(f"{block}.downsample.{first}", 4 * width, inputs, 1)
                norm(f"{block}.downsample.{first + 1}", 4 * width)
            if arch.squeeze_reduction:
                for name, outputs, channels in (
                    ("fc1", 4 * width // 16, 4 * width),
                    ("fc2", 4 * width, 4 * width // 16),
                ):
                    conv(f"{block}.se.{name}", outputs, channels, 1)
                    arrays[f"{block}.se.{name}.bias"] = np.zeros(outputs, np.float32)
            inputs = 4 * width
    arrays |= {"fc.weight": np.zeros((1000, 2048), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    return arrays


@pytest.mark.parametrize("name", ["resnet50", "resnet50d", "se-resnet50"])
def test_weights_named_as_torchvision_and_timm_name_them_all_find_their_place(name: str) -> None:
    foreign = randomised(torch_names(name))
    model = build(name)
    port(model, foreign, torchvision(ARCHITECTURES[name]))
    ours = arrays_of(model)
    assert sum(array.size for array in ours.values()) == sum(array.size for array in foreign.values())
    for array in (foreign["layer2.0.conv2.weight"], foreign["fc.weight"]):
        twin = ours["stage2_block1_conv2/kernel" if array.ndim == 4 else "head_logits/kernel"]
        # Element (out, in, row, column) of theirs is (row, column, in, out) of ours.
        assert twin[(1, 2, 3, 5) if array.ndim == 4 else (3, 5)] == array[(5, 3, 1, 2) if array.ndim == 4 else (5, 3)]
    first = 1 if name == "resnet50d" else 0
    np.testing.assert_array_equal(
        ours["stage3_block1_shortcut_bn/moving_variance"], foreign[f"layer3.0.downsample.{first + 1}.running_var"]
    )
    np.testing.assert_array_equal(ours["stage4_block3_bn3/gamma"], foreign["layer4.2.bn3.weight"])
    keras.backend.clear_session()


def tiny_source() -> tuple[keras.Model, dict[str, np.ndarray]]:
    """A small network, and its own weights under torchvision's names."""
    arch = replace(ARCHITECTURES["resnet18"], depths=(1, 1, 1, 1), widths=(4, 4, 8, 8), stem_width=4)
    model, naming = build(arch, num_classes=5), torchvision(arch)
    arrays = {}
    for path, array in randomised(arrays_of(model)).items():
        layout = array if array.ndim < 2 else np.moveaxis(array, (-1, -2), (0, 1))
        arrays[naming.of(*path.split("/"))] = layout
    return model, arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("layer2.0.conv1.weight"), "received no layer2.0.conv1.weight, expected it for stage2_block1"),
        (lambda a: a.update({"layer5.bias": np.zeros(3)}), "received layer5.bias, expected no such array"),
        (
            lambda a: a.update({"fc.weight": np.zeros((7, 8))}),
            "fc.weight: received (8, 7), expected (8, 5) for head_logits/kernel",
        ),
    ],
)
def test_porting_accepts_nothing_missing_left_over_or_misshapen(change: object, message: str) -> None:
    model, source = tiny_source()
    before = arrays_of(model)
    change(source)
    with pytest.raises(ResnetlabError) as error:
        port(model, source, torchvision(ARCHITECTURES["resnet18"]))
    assert message in str(error.value)
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_porting_ignores_only_the_step_counts_of_pytorch() -> None:
    model, source = tiny_source()
    port(model, source | {"bn1.num_batches_tracked": np.array(3)}, torchvision(ARCHITECTURES["resnet18"]))
    np.testing.assert_array_equal(arrays_of(model)["stem_bn1/beta"], source["bn1.bias"])


def test_pytorch_sources_have_no_preactivation_networks() -> None:
    for naming in (torchvision, transformers):
        with pytest.raises(UsageError, match="Received 'preresnet18'"):
            naming(ARCHITECTURES["preresnet18"])
