"""Stochastic depth in training: masks come with the batch, so they are the same on every backend, compiled or not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from resnetlab.models.from_recipe import build_network
from resnetlab.models.layers import StochasticDepth, SupplyMasks
from resnetlab.recipes import RECIPES, Recipe
from resnetlab.training.build import make_augmentation, make_stream, make_trainer
from tests.workers import Workers

RECIPE = RECIPES["quick"].changed(model="resnet20", stochastic_depth=0.5, batch_size=16, learning_rate=0.005, warmup=0)
STEPS = 5


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack(resolve("digits"), size=16, cache_dir=tmp_path_factory.mktemp("pack"), validation=0.0, test=0.2)


def losses(data: Pack, recipe: Recipe, jit_compile: bool | str = "auto", start: int = 0) -> list[float]:
    stream = make_stream(recipe, data)
    trainer = make_trainer(build_network(recipe, 10), recipe, stream, jit_compile=jit_compile)
    found = []
    for step in range(start, start + STEPS):
        inputs, targets, _ = stream.batch(step)
        trainer.reset_metrics()
        found.append(float(trainer.train_on_batch(inputs, targets, return_dict=True)["loss"]))
    keras.backend.clear_session()
    return found


@pytest.fixture(scope="module")
def expected(digits: Pack) -> list[float]:
    return losses(digits, RECIPE)


def test_losses_are_the_same_on_every_backend(
    on: Workers, other_backend: str, digits: Pack, expected: list[float]
) -> None:
    np.testing.assert_allclose(on(other_backend)(losses, data=digits, recipe=RECIPE), expected, rtol=1e-3)


def test_masks_make_a_difference(digits: Pack, expected: list[float]) -> None:
    without = losses(digits, RECIPE.changed(stochastic_depth=0.0))
    assert np.abs(np.array(without) / expected - 1).max() > 0.01


def test_losses_are_the_same_with_xla(digits: Pack) -> None:
    # At a low rate, as each step multiplies what rounding has changed.
    recipe = RECIPE.changed(model="resnet-tiny", learning_rate=0.0005)
    np.testing.assert_allclose(losses(digits, recipe, jit_compile=True), losses(digits, recipe), rtol=1e-4)


def test_a_branch_is_dropped_for_the_samples_whose_mask_is_zero(digits: Pack) -> None:
    stream, network = make_stream(RECIPE, digits), build_network(RECIPE, 10)
    trainer = make_trainer(network, RECIPE, stream)
    inputs, _, _ = stream.batch(3)
    layers = [layer for layer in network.layers if isinstance(layer, StochasticDepth)]
    rates = make_augmentation(RECIPE).drop_rates
    assert [layer.rate for layer in layers] == pytest.approx(rates)
    assert inputs["keep"].shape == (16, len(layers))
    for column, rate in zip(inputs["keep"].T, rates, strict=True):
        assert set(np.round(column, 5)) <= {0.0, np.float32(round(1 / (1 - rate), 5))}
    watched = keras.Model(network.input, [layer.output for layer in layers])
    trainer.get_layer("masks")(inputs["image"].astype("float32"), inputs["keep"], training=True)
    outputs = watched(inputs["image"], training=True)
    for kept, output in zip(inputs["keep"].T, outputs, strict=True):
        size = np.abs(keras.ops.convert_to_numpy(output)).max(axis=(1, 2, 3))
        np.testing.assert_array_equal(size > 0, kept > 0)
    assert not any(layer.supplied_masks for layer in layers)  # each mask is used once


def test_each_thread_has_its_own_masks() -> None:
    """TensorFlow's strategies trace the step once for each device, in threads that take turns."""
    layer = StochasticDepth(0.5, name="drop")
    supply = SupplyMasks(keras.Sequential([layer]), name="supply")
    masks = {"one": np.array([[0.0], [2.0]], np.float32), "other": np.array([[2.0], [0.0]], np.float32)}
    both_supplied = threading.Barrier(2)

    def run(name: str) -> np.ndarray:
        supply(np.zeros((2, 1), np.float32), masks[name], training=True)
        both_supplied.wait(timeout=60)
        return keras.ops.convert_to_numpy(layer(np.ones((2, 1, 1, 1), np.float32), training=True)).ravel()

    with ThreadPoolExecutor(2) as threads:
        for name, found in zip(masks, threads.map(run, masks), strict=True):
            np.testing.assert_array_equal(found, masks[name].ravel())


def test_layers_that_draw_their_own_masks_draw_different_ones() -> None:
    network = build_network(RECIPE, 10)
    layers = [layer for layer in network.layers if isinstance(layer, StochasticDepth)]
    drawn = [keras.random.uniform((100,), seed=layer.generator) for layer in layers]
    assert len({tuple(keras.ops.convert_to_numpy(each).tolist()) for each in drawn}) == len(layers) > 2


def test_masks_have_the_rates_of_the_blocks() -> None:
    from resnetlab.data.augmentation import sample_parameters

    augmentation = make_augmentation(RECIPE)
    draws, _ = sample_parameters(augmentation, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose((draws["keep"] == 0).mean(axis=0), augmentation.drop_rates, atol=0.015)
    np.testing.assert_allclose(draws["keep"].mean(axis=0), 1.0, atol=0.03)
