"""Averaged weights: what they are, step by step on every backend, and what they are worth."""

from typing import Any

import keras
import numpy as np
import pytest

from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from resnetlab.evaluation.logits import predict_logits
from resnetlab.models.from_recipe import build_network
from resnetlab.models.layers import BatchNorm
from resnetlab.recipes import RECIPES, Recipe
from resnetlab.training.build import make_stream, make_trainer
from tests.workers import Workers

STEPS = 6


def weights_by_step(data: Pack, recipe: Recipe) -> tuple[list[list[np.ndarray]], list[np.ndarray], list[np.ndarray]]:
    """The live weights before and after each step, the averages that would be evaluated, and the live weights then."""
    network, stream = build_network(recipe, 10), make_stream(recipe, data)
    trainer = make_trainer(network, recipe, stream)
    live = [network.get_weights()]
    for step in range(STEPS):
        inputs, targets, _ = stream.batch(step)
        trainer.train_on_batch(inputs, targets)
        live.append(network.get_weights())
    with trainer.get_layer("averages").applied():
        averages = network.get_weights()
    return live, averages, network.get_weights()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack(resolve("digits"), size=16, cache_dir=tmp_path_factory.mktemp("pack"), validation=0.0, test=0.2)


def test_averages_are_those_of_the_formula(on: Workers, backend: str, digits: Pack) -> None:
    ema = 0.3  # less than the warm-up's (1 + t) / (10 + t) from t = 3 on
    recipe = RECIPES["quick"].changed(ema=ema, batch_size=16, validation=0.0)
    live, averages, after = on(backend)(weights_by_step, data=digits, recipe=recipe)
    expected = live[0]
    for t, weights in enumerate(live):
        momentum = min(ema, (1 + t) / (10 + t))
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, weights, strict=True)]
    for received, wanted, last, now in zip(averages, expected, live[-1], after, strict=True):
        np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(now, last)  # the live weights are back


def test_statistics_that_are_not_learned_are_averaged_too(digits: Pack) -> None:
    recipe = RECIPES["quick"].changed(ema=0.9)
    network = build_network(recipe, 10)
    layer = make_trainer(network, recipe, make_stream(recipe, digits)).get_layer("averages")
    norms = [layer for layer in network.layers if isinstance(layer, BatchNorm)]
    assert len(layer.values) == len(network.weights)
    assert len(network.weights) == len(network.trainable_weights) + 2 * len(norms)
    assert not any("average" in variable.path for variable in network.weights)  # so weights files are as without


def accuracies(data: Pack, ema: float, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Top-1 on the test images of the live and of the averaged weights, after each of the last five of `steps`."""
    recipe = RECIPES["quick"].changed(
        ema=ema, epochs=600, schedule="constant", learning_rate=0.05, validation=0.0, seed=seed
    )
    network, stream = build_network(recipe, 10), make_stream(recipe, data)
    trainer = make_trainer(network, recipe, stream)
    test = data.indices("test")

    def top1() -> float:
        logits = predict_logits(network, data.images, test, size=recipe.image_size)
        return float((logits.argmax(axis=1) == data.labels[test]).mean())

    batches = stream.batches(0)
    trainer.fit(batches, steps_per_epoch=steps - 5, shuffle=False, verbose=0)
    live, averaged = [], []
    for step in range(steps - 5, steps):
        trainer.train_on_batch(*stream.batch(step)[:2])
        live.append(top1())
        with trainer.get_layer("averages").applied():
            averaged.append(top1())
    keras.backend.clear_session()
    return live, averaged


@pytest.mark.long
@pytest.mark.benchmark
@pytest.mark.parametrize(("ema", "steps"), [(0.99, 200), (0.999, 400)])
def test_averaged_weights_are_at_most_half_a_point_worse_than_live_ones(digits: Pack, ema: float, steps: int) -> None:
    """Means over the last five steps: early on, one step changes the live accuracy by ten points and more."""
    found = accuracies(digits, ema, steps, seed=0)
    live, averaged = np.mean(found[0]), np.mean(found[1])
    assert averaged > 0.85
    assert averaged >= live - 0.005, found


def interrupted(data: Pack, recipe: Recipe, folder: str) -> dict[str, Any]:
    """The averages after six steps; and of another trainer that goes on from a checkpoint after three of them."""
    from pathlib import Path

    from resnetlab.training import checkpoint

    def trainer() -> Any:
        return make_trainer(build_network(recipe, 10), recipe, stream)

    def train(model: Any, first: int, last: int) -> Any:
        for step in range(first, last):
            inputs, targets, _ = stream.batch(step)
            model.train_on_batch(inputs, targets)
        return model

    stream = make_stream(recipe, data)
    whole, path = train(trainer(), 0, 3), Path(folder) / "checkpoint.npz"
    checkpoint.write(path, whole, checkpoint.current_state(whole), {"step": 3})
    train(whole, 3, 6)
    resumed = trainer()
    checkpoint.restore(resumed, checkpoint.read(path)[1])
    train(resumed, 3, 6)
    return {
        name: [keras.ops.convert_to_numpy(v) for v in model.get_layer("averages").variables]
        for name, model in (("whole", whole), ("resumed", resumed))
    }


def test_averages_go_on_from_a_checkpoint_to_the_bit(on: Workers, backend: str, digits: Pack, tmp_path: Any) -> None:
    recipe = RECIPES["quick"].changed(ema=0.9, batch_size=16)
    found = on(backend)(interrupted, data=digits, recipe=recipe, folder=str(tmp_path))
    for whole, resumed in zip(found["whole"], found["resumed"], strict=True):
        np.testing.assert_array_equal(whole, resumed)
