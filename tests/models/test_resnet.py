"""The built model: its names, its inputs, its first weights; and it is an ordinary Keras model on every backend."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from resnetlab.errors import UsageError
from resnetlab.models import VARIANTS, Architecture, build, summarize
from tests.models.reference import assert_close, logits_of, randomise
from tests.workers import Workers

TINY = VARIANTS["resnet-tiny"]
# Every layer that a network can have, in twelve narrow blocks.
EVERYTHING = replace(
    TINY,
    name="everything",
    stem="deep",
    shortcut="D",
    block="bottleneck",
    depths=(2, 2, 2),
    widths=(8, 8, 16),
    base_width=32,
    groups=2,
    squeeze_reduction=8,
)
PREACTIVATION = replace(TINY, name="preactivation", preactivation=True, shortcut="A", zero_init_last=False)


def photograph_bytes(count: int = 4, size: int = 33) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_layer_names_say_where_a_layer_stands() -> None:
    names = [layer.name for layer in build("resnet-tiny").layers]
    first = ["image", "normalize", "stem_conv1", "stem_bn1", "stem_relu1", "stem"]
    block = [
        "stage1_block1_conv1",
        "stage1_block1_bn1",
        "stage1_block1_relu1",
        "stage1_block1_conv2",
        "stage1_block1_bn2",
        "stage1_block1_add",
        "stage1_block1_relu2",
        "stage1",
    ]
    assert names[: len(first) + len(block)] == first + block
    assert {"stage2_block1_shortcut_conv", "stage2_block1_shortcut_bn", "stage3"} < set(names)
    assert names[-2:] == ["head_pool", "head_logits"]


def test_names_are_the_same_in_every_model_of_a_process() -> None:
    assert [v.path for v in build(EVERYTHING).variables] == [v.path for v in build(EVERYTHING).variables]


@pytest.mark.parametrize("arch", [TINY, EVERYTHING, PREACTIVATION], ids=lambda arch: arch.name)
def test_end_points_are_named_layers(arch: Architecture) -> None:
    model = build(arch, input_shape=(33, 47, 3))
    for endpoint, _, height, channels in summarize(arch, 33).stages:
        shape = model.get_layer(endpoint).output.shape
        assert (shape[1], shape[3]) == (height, channels)
        assert shape[2] == {name: side for name, _, side, _ in summarize(arch, 47).stages}[endpoint]


def logits(arch: Architecture, images: np.ndarray) -> np.ndarray:
    model = build(arch)
    randomise(model)
    return logits_of(model, images)


def logits_of_bytes_and_floats(arch: Architecture) -> list[np.ndarray]:
    model = build(arch)
    randomise(model)
    return [logits_of(model, photograph_bytes().astype(dtype)) for dtype in (np.uint8, np.float32)]


@pytest.mark.parametrize("arch", [TINY, EVERYTHING, PREACTIVATION], ids=lambda arch: arch.name)
def test_bytes_and_floats_give_the_same_logits(on: Workers, backend: str, arch: Architecture) -> None:
    from_bytes, from_floats = on(backend)(logits_of_bytes_and_floats, arch=arch)
    np.testing.assert_array_equal(from_bytes, from_floats)
    assert from_bytes.shape == (4, 10)
    assert from_bytes.dtype == np.float32
    assert np.ptp(from_bytes, axis=0).min() > 0  # they depend on the image


def test_logits_are_float32_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = build(EVERYTHING)
    finally:
        keras.config.set_dtype_policy("float32")
    randomise(half)
    assert half.get_layer("stage3").output.dtype == "bfloat16"
    received = logits_of(half, photograph_bytes())
    assert received.dtype == np.float32
    assert_close(received, logits(EVERYTHING, photograph_bytes()), 5e-2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("zero", [True, False])
def test_with_a_last_gamma_of_zero_a_block_begins_as_the_identity(zero: bool, training: bool) -> None:
    model = build(replace(TINY, depths=(2, 2, 2), zero_init_last=zero))
    before = logits_of(model, photograph_bytes(), training=training)
    for layer in model.layers:
        if "_block" in layer.name and layer.name.endswith(("_conv1", "_conv2")) and "shortcut" not in layer.name:
            layer.set_weights([np.random.default_rng(1).standard_normal(w.shape) for w in layer.get_weights()])
    after = logits_of(model, photograph_bytes(), training=training)
    assert np.array_equal(before, after) is zero


def initial_weights(arch: Architecture, seed: int) -> dict[str, int]:
    """A checksum of the bytes of each weight."""
    model = build(arch, seed=seed)
    return {w.path: zlib.crc32(keras.ops.convert_to_numpy(w).tobytes()) for w in model.weights}


def test_initial_weights_are_the_same_bits_on_every_backend(on: Workers, other_backend: str) -> None:
    received = on(other_backend)(initial_weights, arch=EVERYTHING, seed=7)
    assert received == initial_weights(EVERYTHING, 7)


def test_another_seed_draws_every_kernel_anew() -> None:
    first, second = initial_weights(EVERYTHING, 0), initial_weights(EVERYTHING, 1)
    assert {path for path in first if first[path] != second[path]} == {p for p in first if p.endswith("kernel")}
    kernels = [checksum for path, checksum in first.items() if path.endswith("kernel")]
    assert len(set(kernels)) == len(kernels)


def save(path: Path, arch: Architecture, images: np.ndarray) -> np.ndarray:
    model = build(arch, stochastic_depth=0.2)
    randomise(model, seed=3)
    model.save(path)
    return np.asarray(model.predict(images, verbose=0))


def load_and_predict(path: Path, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.saving.load_model(path).predict(images, verbose=0))


Saved = Callable[[str, Architecture], tuple[Path, np.ndarray]]


@pytest.fixture(scope="module")
def saved(on: Workers, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Save an architecture's network on a backend, once: the file, and what the network predicts there."""
    folder = tmp_path_factory.mktemp("saved")

    @cache
    def file_and_logits(backend: str, arch: Architecture) -> tuple[Path, np.ndarray]:
        path = folder / f"{arch.name}-{backend}.keras"
        return path, on(backend)(save, path=path, arch=arch, images=photograph_bytes())

    return file_and_logits


@pytest.mark.parametrize("arch", [EVERYTHING, PREACTIVATION], ids=lambda arch: arch.name)
@pytest.mark.parametrize(
    ("saved_on", "loaded_on"), [("tensorflow", "jax"), ("tensorflow", "torch"), ("jax", "tensorflow")]
)
def test_a_saved_model_predicts_the_same_elsewhere(
    on: Workers, saved: Saved, saved_on: str, loaded_on: str, arch: Architecture
) -> None:
    path, expected = saved(saved_on, arch)
    assert_close(on(loaded_on)(load_and_predict, path=path, images=photograph_bytes()), expected)


def fit(images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Loss of the last epoch, and the share that a prediction gets right."""
    keras.utils.set_random_seed(0)
    model = build(replace(TINY, squeeze_reduction=8), num_classes=2, stochastic_depth=0.1)
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = model.fit(images, labels, batch_size=36, epochs=4, verbose=0).history["loss"]
    right = model.predict(images, batch_size=36, verbose=0).argmax(-1) == labels
    return losses[-1], float(right.mean())


def test_plain_compile_and_fit_tells_noughts_from_ones(on: Workers, backend: str) -> None:
    digits = load_digits(n_class=2)  # 360 of 8x8, 0 to 16: ten whole batches
    images = np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, axis=-1)
    loss, accuracy = on(backend)(fit, images=images, labels=digits.target)
    assert loss < 0.2
    assert accuracy > 0.9


def test_a_bare_name_of_a_model_is_enough_from_the_package() -> None:
    import resnetlab

    model = resnetlab.build("resnet-tiny", num_classes=3)
    assert isinstance(model, keras.Model)
    assert model.output_shape == (None, 3)
    assert model.name == "resnet_tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet5O"}, "Unknown model 'resnet5O'. Did you mean"),
        ({"model": TINY, "num_classes": 0}, "Received num_classes=0, expected at least 1"),
        ({"model": TINY, "input_shape": (32, 32, 1)}, "Received input_shape=(32, 32, 1), expected (height, width, 3)"),
        ({"model": TINY, "input_shape": (32, 32)}, "Received input_shape=(32, 32), expected"),
        ({"model": TINY, "stochastic_depth": 1.0}, "Received stochastic_depth=1.0, expected 0 <= rate < 1"),
    ],
)
def test_build_says_what_was_received_and_expected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        build(**arguments)
    assert message in str(error.value)
