"""Class activation maps against their definitions in NumPy, on every backend; occlusion on a network that is known."""

from typing import Any

import keras
import numpy as np
import pytest

from resnetlab.errors import UsageError
from resnetlab.evaluation.explain import METHODS, _combine, explain, stages
from resnetlab.models import build
from tests.models.reference import randomise
from tests.workers import Workers


def images(count: int = 3, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def network() -> keras.Model:
    model = build("resnet-tiny", num_classes=5, input_shape=(32, 32, 3))
    randomise(model)
    return model


GRADIENT_METHODS = ("grad-cam", "grad-cam++", "hires-cam", "layer-cam")


def maps_and_parts() -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """The maps of each method at three stages; and of the network the last features and the head's kernel."""
    model = network()
    features = keras.Model(model.input, model.get_layer("stage3").output)
    maps = {
        (method, stage): explain(model, images(), method=method, stage=stage, classes=[1, 4, 0])
        for method in GRADIENT_METHODS
        for stage in ("stem", "stage2", "stage3")
    }
    return maps, {
        "features": np.asarray(keras.ops.convert_to_numpy(features(images(), training=False))),
        "kernel": keras.ops.convert_to_numpy(model.get_layer("head_logits").kernel),
    }


@pytest.fixture(scope="module")
def here() -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    return maps_and_parts()


def test_explaining_again_adds_nothing_to_the_network() -> None:
    """Keras keeps every use of a layer in a model; a server explains for weeks."""
    model = network()
    explain(model, images(), stage="stage2")
    uses = len(model.get_layer("head_logits")._inbound_nodes)
    for _ in range(3):
        explain(model, images(), stage="stage2")
    assert len(model.get_layer("head_logits")._inbound_nodes) == uses


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_with_a_linear_head_both_are_the_class_activation_map(here: Any, method: str) -> None:
    """Zhou 2016, arXiv:1512.04150: the features weighted by the head's kernel; the mean over 8x8 places divides it."""
    maps, network = here
    weights = network["kernel"][:, [1, 4, 0]].T[:, None, None, :] / 64
    expected = np.maximum((network["features"] * weights).sum(axis=-1), 0)
    found = maps[method, "stage3"]
    assert found.shape == (3, 8, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    assert expected.max() > 0


def test_the_last_stage_is_explained_where_none_is_named(here: Any) -> None:
    found = explain(network(), images(), classes=[1, 4, 0])
    np.testing.assert_allclose(found, here[0]["grad-cam", "stage3"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_maps_are_those_of_the_papers_formulas(method: str) -> None:
    """Place by place and channel by channel: equations 1 of Selvaraju, 10 and 19 of Chattopadhay, 6 and 7 of Jiang."""
    rng = np.random.default_rng(0)
    features, gradients = np.abs(rng.standard_normal((2, 3, 4, 5))), rng.standard_normal((2, 3, 4, 5))
    expected = np.zeros((2, 3, 4))
    for n, k in np.ndindex(2, 5):
        a, g = features[n, :, :, k], gradients[n, :, :, k]
        if method == "grad-cam":
            expected[n] += g.mean() * a
        elif method == "grad-cam++":
            alpha = np.array([[x**2 / (2 * x**2 + a.sum() * x**3 + 1e-6) for x in row] for row in g])
            expected[n] += sum(alpha[i, j] * max(g[i, j], 0) for i, j in np.ndindex(3, 4)) * a
        else:
            expected[n] += (g if method == "hires-cam" else np.where(g > 0, g, 0)) * a
    np.testing.assert_allclose(_combine(features, gradients, method), np.where(expected > 0, expected, 0), rtol=1e-9)


def test_all_backends_have_the_same_maps(on: Workers, other_backend: str, here: Any) -> None:
    there, _ = on(other_backend)(maps_and_parts)
    assert there.keys() == here[0].keys()
    for key, expected in here[0].items():
        assert expected.max() > 0
        np.testing.assert_allclose(there[key], expected, atol=1e-3 * expected.max(), err_msg=str(key))


def numeric_gradients(model: keras.Model, stage: str, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """At one place of a stage, of every channel: the gradient of the largest logit, by differences; and the value."""
    middle = model.get_layer(stage).output
    front, back = keras.Model(model.input, middle), keras.Model(middle, model.output)
    features = keras.ops.convert_to_numpy(front(images(1), training=False))
    chosen = int(keras.ops.convert_to_numpy(back(features, training=False)).argmax())
    steps = 1e-2 * np.eye(features.shape[-1], dtype=np.float32)
    moved = features.repeat(2 * len(steps), axis=0)
    moved[:, *place] += np.concatenate([steps, -steps])
    above, below = np.split(keras.ops.convert_to_numpy(back(moved, training=False))[:, chosen], 2)
    return (above - below) / 2e-2, features[0, *place]


def test_hires_cam_is_the_gradient_times_the_features() -> None:
    """At one place of an early stage, summed over all channels, by differences."""
    place, model = (5, 9), network()
    gradients, values = numeric_gradients(model, "stage1", place)
    expected = max(float(gradients @ values), 0)
    found = explain(model, images(1), method="hires-cam", stage="stage1")
    assert found[0][place] == pytest.approx(expected, abs=0.02 * float(found.max()))


def test_occlusion_finds_the_quadrant_that_a_network_looks_at() -> None:
    inputs = keras.Input((32, 32, 3))
    corner = keras.layers.Cropping2D(((0, 16), (16, 0)))(inputs)  # top right
    mean = keras.layers.GlobalAveragePooling2D()(corner)
    logits = keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")(mean)
    model = keras.Model(inputs, logits)
    model.layers[-1].set_weights([np.float32([[0.01, -0.01]] * 3)])
    bright = np.full((1, 32, 32, 3), 250, np.uint8)
    (found,) = explain(model, bright, method="occlusion")
    assert found.shape == (32, 32)
    assert found[:12, 20:].min() > 0
    assert found[16:, :16].max() < 1e-6
    assert found[:16, 16:].sum() > 0.6 * found.sum()


def test_what_cannot_be_explained_is_an_error() -> None:
    model = network()
    assert stages(model) == ["stem", "stage1", "stage2", "stage3"]
    with pytest.raises(UsageError, match="Unknown method 'gradcam'"):
        explain(model, images(), method="gradcam")
    with pytest.raises(UsageError, match="Unknown stage 'stage9'"):
        explain(model, images(), stage="stage9")
    with pytest.raises(UsageError, match="2 classes for 3 images"):
        explain(model, images(), classes=[0, 1])
    with pytest.raises(UsageError, match=r"classes \[9, 0, 0\], expected numbers from 0 to 4"):
        explain(model, images(), classes=[9, 0, 0])
    with pytest.raises(UsageError, match="no images"):
        explain(model, images(0))
    with pytest.raises(UsageError, match="leave it out"):
        explain(model, images(), method="occlusion", stage="stage1")
    assert set(METHODS) == {"grad-cam", "grad-cam++", "hires-cam", "layer-cam", "occlusion"}
