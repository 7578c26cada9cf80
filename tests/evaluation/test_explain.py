"""Class activation maps against their definitions in NumPy, on every backend; occlusion on a network that is known."""

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


def maps_and_parts(method: str, stage: str | None) -> dict[str, np.ndarray]:
    model = network()
    features = keras.Model(model.input, model.get_layer("stage3").output)
    head = model.get_layer("head_logits")
    return {
        "map": explain(model, images(), method=method, stage=stage, classes=[1, 4, 0]),
        "features": np.asarray(keras.ops.convert_to_numpy(features(images(), training=False))),
        "kernel": keras.ops.convert_to_numpy(head.kernel),
    }


def test_explaining_again_adds_nothing_to_the_network() -> None:
    """Keras keeps every use of a layer in a model; a server explains for weeks."""
    model = network()
    explain(model, images(), stage="stage2")
    uses = len(model.get_layer("head_logits")._inbound_nodes)
    for _ in range(3):
        explain(model, images(), stage="stage2")
    assert len(model.get_layer("head_logits")._inbound_nodes) == uses


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_with_a_linear_head_both_are_the_class_activation_map(on: Workers, backend: str, method: str) -> None:
    """Zhou 2016, arXiv:1512.04150: the features weighted by the head's kernel; the mean over 8x8 places divides it."""
    found = on(backend)(maps_and_parts, method=method, stage=None)
    weights = found["kernel"][:, [1, 4, 0]].T[:, None, None, :] / 64
    expected = np.maximum((found["features"] * weights).sum(axis=-1), 0)
    assert found["map"].shape == (3, 8, 8)
    np.testing.assert_allclose(found["map"], expected, atol=1e-5 * expected.max())
    assert expected.max() > 0


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "hires-cam", "layer-cam"])
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


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "hires-cam", "layer-cam"])
@pytest.mark.parametrize("stage", ["stem", "stage2"])
def test_all_backends_have_the_same_maps(on: Workers, backend: str, method: str, stage: str) -> None:
    here = maps_and_parts(method, stage)["map"]
    there = on(backend)(maps_and_parts, method=method, stage=stage)["map"]
    assert here.max() > 0
    np.testing.assert_allclose(there, here, atol=1e-3 * here.max())


def numeric_gradients(stage: str, channel: int, place: tuple[int, int]) -> tuple[float, float]:
    """The gradient of the largest logit at one value of a stage, by differences."""
    model = network()
    middle = model.get_layer(stage).output
    front, back = keras.Model(model.input, middle), keras.Model(middle, model.output)
    features = np.array(front(images(1), training=False))
    chosen = int(np.asarray(back(features, training=False)).argmax())
    values = []
    for step in (1e-2, -1e-2):
        moved = features.copy()
        moved[0, *place, channel] += step
        values.append(float(np.asarray(back(moved, training=False))[0, chosen]))
    return (values[0] - values[1]) / 2e-2, float(features[0, *place, channel])


def test_hires_cam_is_the_gradient_times_the_features() -> None:
    """At one place of an early stage, summed over all channels, by differences."""
    place, model = (5, 9), network()
    channels = model.get_layer("stage1").output.shape[-1]
    pairs = [numeric_gradients("stage1", channel, place) for channel in range(channels)]
    expected = max(sum(gradient * value for gradient, value in pairs), 0)
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
