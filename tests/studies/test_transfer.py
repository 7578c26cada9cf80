"""The transfer study's own parts: which images it takes, and that it may be drawn."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab.data.pack import pack
from resnetlab.data.sources import resolve
from resnetlab.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))


@pytest.fixture(scope="module")
def study() -> Any:
    return importlib.import_module("transfer")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pack(resolve("digits"), size=16, cache_dir=tmp_path_factory.mktemp("pack"), validation=0.1, test=0.2)


def test_some_classes_of_a_pack_are_those_and_no_others(study: Any, digits: Any) -> None:
    some = study.of_classes(digits, ("7", "2"))
    for subset in ("train", "validation", "test"):
        expected = [i for i in digits.indices(subset) if digits.labels[i] in (7, 2)]
        np.testing.assert_array_equal(some.indices(subset), expected)
        np.testing.assert_array_equal(some.labels[expected] == 0, digits.labels[expected] == 7)
    assert some.key != digits.key != study.of_classes(digits, ("2", "7")).key != some.key


def test_a_seed_draws_so_many_training_images_of_each_class_and_no_test_image(study: Any, digits: Any) -> None:
    some = study.of_classes(digits, ("3", "5"))
    drawn = [study.some_of_training(some, 20, seed) for seed in (0, 0, 1)]
    for data in drawn:
        assert data.class_counts("train").tolist() == [20, 20]
        assert set(data.indices("train")) <= set(some.indices("train"))
        np.testing.assert_array_equal(data.indices("test"), some.indices("test"))
    np.testing.assert_array_equal(drawn[0].indices("train"), drawn[1].indices("train"))
    assert set(drawn[0].indices("train")) != set(drawn[2].indices("train"))


def test_a_row_is_of_a_network_trained_on_those_images(study: Any, digits: Any) -> None:
    recipe = RECIPES["quick"].changed(epochs=12, seed=1)
    row = study.tested(study.some_of_training(digits, 60, 1), recipe, None)
    assert row["seed"] == 1
    assert 0.5 < row["top1"] <= 1


def test_methods_differ_in_what_they_are_named_for(study: Any) -> None:
    tuned, *others = (study.METHODS[name] for name in (study.FINE_TUNED, study.TRAINING_MODE, study.HEAD))
    assert [differing(other, tuned) for other in others] == [{"frozen_batch_norm"}, {"frozen_epochs"}]


def differing(recipe: Any, other: Any) -> set[str]:
    """The keys in which two recipes differ."""
    return {key for key, value in recipe.model_dump().items() if value != getattr(other, key)}


def test_points_are_of_the_same_seeds(study: Any) -> None:
    rows = [{"method": "a", "top1": x} for x in (0.5, 0.6)] + [{"method": "b", "top1": x} for x in (0.4, 0.48)]
    assert study.points(rows, "a", "b") == "+11.0 ± 1.4 points"
