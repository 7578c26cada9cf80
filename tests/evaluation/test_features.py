"""Feature maps and filters: on every backend what the layers compute, from the weights that they have."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.evaluation.features import feature_maps, filters_as_images, first_filters, strongest_channels
from resnetlab.models import architecture, build
from tests.models.reference import randomise
from tests.workers import Workers


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


def maps_and_filters(stage: str | None) -> dict[str, np.ndarray]:
    network = build("resnet-tiny", num_classes=5, input_shape=(32, 32, 3))
    randomise(network)
    return {
        "maps": feature_maps(network, images(), stage=stage),
        "filters": first_filters(network),
        "kernel": keras.ops.convert_to_numpy(network.get_layer("stem_conv1").kernel),
        "logits": network.predict_on_batch(images()),
        "head": keras.ops.convert_to_numpy(network.get_layer("head_logits").kernel),
        "bias": keras.ops.convert_to_numpy(network.get_layer("head_logits").bias),
    }


def test_the_last_maps_averaged_are_what_the_head_sees(on: Workers, backend: str) -> None:
    found = on(backend)(maps_and_filters, stage=None)
    assert found["maps"].shape[:3] == (2, 8, 8)
    expected = found["maps"].mean(axis=(1, 2)) @ found["head"] + found["bias"]
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    for number, weights in enumerate(found["filters"]):
        np.testing.assert_array_equal(weights, found["kernel"][..., number])


def test_all_backends_have_the_same_maps(on: Workers, other_backend: str) -> None:
    here, there = maps_and_filters("stage1")["maps"], on(other_backend)(maps_and_filters, stage="stage1")["maps"]
    assert here.shape[:3] == (2, 32, 32)
    np.testing.assert_allclose(there, here, atol=1e-3 * here.max())


def test_a_filter_as_an_image_is_grey_where_its_weight_is_0() -> None:
    filters = np.float32([[[[0, 1, -1]]], [[[0, -0.5, 0.25]]]])
    assert filters_as_images(filters).tolist() == [[[[128, 255, 0]]], [[[128, 0, 191]]]]


def test_the_strongest_channels_are_those_of_the_largest_mean() -> None:
    assert strongest_channels(np.float32([[[1, 5, 3]], [[1, 0, 3]]]), 2).tolist() == [2, 1]


def test_the_filters_of_a_whitening_stem_are_its_components() -> None:
    network = build("fast-resnet8", num_classes=5, input_shape=(32, 32, 3))
    components = keras.ops.convert_to_numpy(network.get_layer("stem_conv1").components)
    np.testing.assert_array_equal(first_filters(network), np.moveaxis(components, -1, 0))


def test_the_filters_of_a_network_of_bgr_images_are_rgb_too() -> None:
    networks = [
        build(replace(architecture("resnet-tiny"), preprocessing=name), input_shape=(16, 16, 3), num_classes=2)
        for name in ("imagenet", "caffe")
    ]
    rgb, bgr = map(first_filters, networks)  # of the same initial kernels
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_what_cannot_be_shown_is_an_error() -> None:
    network = build("resnet-tiny", num_classes=5, input_shape=(32, 32, 3))
    with pytest.raises(UsageError, match="Unknown stage 'stage9'"):
        feature_maps(network, images(), stage="stage9")
    with pytest.raises(UsageError, match="no images"):
        feature_maps(network, images()[:0])
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ResnetlabError, match="no convolution of colour images"):
        first_filters(dense)
