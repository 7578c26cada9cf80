"""The whitening stem: what it computes, and that training sets it once and does not change it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import resnetlab as rl
from resnetlab.models import architecture, build
from resnetlab.models.variants import PREPROCESSING
from resnetlab.training.whitening import EPSILON, IMAGES, initialize_whitening, patches, whitening_kernel


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images (40, 16, 16, 3) whose neighbouring pixels and channels are correlated, as in photographs."""
    noise = np.random.default_rng(0).standard_normal((40, 18, 18, 1))
    smooth = noise[:, 1:-1, 1:-1] + noise[:, :-2, 1:-1] + noise[:, 1:-1, :-2]
    return (128 + 30 * smooth + 5 * np.random.default_rng(1).standard_normal((40, 16, 16, 3))).clip(0, 255)


def test_the_components_of_patches_have_second_moments_of_one_and_products_of_zero(images: np.ndarray) -> None:
    network = build("fast-resnet8", input_shape=(16, 16, 3))
    initialize_whitening(network, images, np.arange(len(images)))
    stem = keras.Model(network.input, network.get_layer("stem_conv1").output)
    out = np.asarray(stem.predict_on_batch(images))
    assert out.shape == (40, 15, 15, 24)
    np.testing.assert_allclose(out[..., 12:], -out[..., :12], atol=1e-5)
    found = out[..., :12].reshape(-1, 12)
    mean, std = (np.float64(row) for row in PREPROCESSING["cifar10"])
    pixels = (images - mean) / std
    parts = [pixels[:, i : i + 15, j : j + 15] for i in (0, 1) for j in (0, 1)]
    samples = np.concatenate(parts, axis=-1).reshape(-1, 12)
    variances = np.linalg.eigvalsh(samples.T @ samples / len(samples))
    expected = np.diag(
        variances / (variances + EPSILON * variances.mean())
    )  # 1, but for components that are nearly constant
    np.testing.assert_allclose(found.T @ found / len(found), expected, atol=1e-3)
    assert network.get_layer("stem_conv1").trainable_weights == [network.get_layer("stem_conv1").bias]


def test_the_sign_of_a_component_does_not_depend_on_the_library(images: np.ndarray) -> None:
    samples = patches(images)
    kernel = whitening_kernel(samples.T @ samples / len(samples)).reshape(12, 24)[:, :12]
    assert (kernel[np.abs(kernel).argmax(axis=0), np.arange(12)] > 0).all()


@pytest.mark.parametrize("preprocessing", ["cifar10", "caffe", "unit"])
def test_grey_images_give_finite_components(preprocessing: str) -> None:
    """Their three channels are equal, so that nine of twelve components are constant."""
    grey = np.random.default_rng(0).integers(0, 256, (50, 12, 12, 1), np.uint8).repeat(3, axis=-1)
    arch = replace(architecture("fast-resnet8"), preprocessing=preprocessing)
    network = build(arch, input_shape=(12, 12, 3))
    initialize_whitening(network, grey, np.arange(50))
    components = keras.ops.convert_to_numpy(network.get_layer("stem_conv1").components)
    assert np.isfinite(components).all()
    assert np.abs(components).max() < 1e4
    out = keras.Model(network.input, network.get_layer("stem_conv1").output).predict_on_batch(grey)
    assert np.abs(np.asarray(out)).max() < 100


def test_at_most_so_many_images_are_read() -> None:
    seen: list[int] = []

    class Counted(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            seen.extend(np.atleast_1d(key).tolist())
            return np.asarray(self)[key]

    count = 2 * IMAGES - 1
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), np.uint8).view(Counted)
    initialize_whitening(build("fast-resnet8", input_shape=(9, 9, 3)), images, np.arange(count))
    assert len(seen) == len(set(seen)) == IMAGES
    assert (min(seen), max(seen)) == (0, count - 1)


def test_a_network_without_a_whitening_stem_is_left_alone(images: np.ndarray) -> None:
    network = build("resnet20", input_shape=(16, 16, 3))
    before = network.get_weights()
    initialize_whitening(network, images, np.arange(len(images)))
    for array, earlier in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, earlier)


def test_training_computes_the_components_from_its_images_and_keeps_them(tmp_path: Path) -> None:
    settings = {"model": "fast-resnet8", "recipe": "quick", "epochs": 1, "optimizer": "muon", "learning_rate": 0.1}
    run = rl.train("digits", run=tmp_path / "run", progress=None, **settings)
    trained = run.model.get_layer("stem_conv1")
    assert np.abs(keras.ops.convert_to_numpy(trained.bias)).max() > 0
    first = keras.ops.convert_to_numpy(trained.components)
    resumed = rl.train(resume=run, epochs=2, progress=None)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(resumed.model.get_layer("stem_conv1").components), first)
    untrained = build("fast-resnet8", num_classes=10).get_layer("stem_conv1")
    assert np.abs(first - keras.ops.convert_to_numpy(untrained.components)).max() > 0.1
