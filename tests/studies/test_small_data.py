"""What studies/small_data.py trains on and tests on."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnetlab.data.sources import resolve
from resnetlab.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
small_data = importlib.import_module("small_data")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in of ten classes, with 500 training and 20 test images of each, each of its own colour."""
    rows, split = np.arange(5200), np.array(["train"] * 500 + ["test"] * 20)
    images = np.stack([rows // 256, rows % 256, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    labels = rows // 520
    names = tuple("abcdefghij")
    subset = np.tile(split, 10)
    packed = Namespace(
        images=np.broadcast_to(images[:, None, None], (5200, 32, 32, 3)),
        labels=labels,
        class_names=names,
        indices=lambda wanted: np.flatnonzero(subset == wanted),
    )
    monkeypatch.setattr(small_data, "resolve", lambda name: name)
    monkeypatch.setattr(small_data, "pack", lambda *args, **settings: packed)
    return packed


def files(folder: Path) -> dict[str, set[int]]:
    return {part.name: {int(path.stem) for path in part.rglob("*.png")} for part in folder.iterdir()}


def test_cifar_is_tested_on_its_test_images_and_tuned_on_training_images(cifar: Any, tmp_path: Path) -> None:
    final = files(small_data.subset_of_cifar(0, tmp_path, tuning=False))
    tuning = files(small_data.subset_of_cifar(0, tmp_path, tuning=True))
    other = files(small_data.subset_of_cifar(1, tmp_path, tuning=False))
    test = set(cifar.indices("test"))
    assert final["test"] == other["test"] == test
    assert final["train"] == tuning["train"] != other["train"]
    assert len(final["train"]) == 1000
    assert len(tuning["test"]) == 3000
    assert not (tuning["test"] | final["train"]) & test
    assert not tuning["test"] & tuning["train"]
    read = resolve(str(tmp_path / "cifar10-100-seed0"))
    assert {(sample.subset, sample.label) for sample in read.samples} == {
        (part, label) for part in ("train", "test") for label in range(10)
    }


def test_each_photograph_is_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    for name, count in (("cat", 12), ("dog", 13)):
        (photos / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (number, len(name), 0)).save(photos / name / f"{number}.jpg")
    monkeypatch.setattr(small_data, "resolve", lambda name: resolve(str(photos)))
    folds = list(small_data.folds_of_animals(tmp_path))
    everything = sorted(f"{path.parent.name}/{path.name}" for path in photos.rglob("*.jpg"))
    tested = [f"{path.parent.name}/{path.name}" for fold in folds for path in (fold / "test").rglob("*.jpg")]
    assert sorted(tested) == everything
    for fold in folds:
        trained = {f"{path.parent.name}/{path.name}" for path in (fold / "train").rglob("*.jpg")}
        assert not trained & {f"{path.parent.name}/{path.name}" for path in (fold / "test").rglob("*.jpg")}
        assert len(trained) in (19, 20, 21)  # of 25


def test_the_difference_is_that_of_pairs() -> None:
    rows = [{"recipe": name, "top1": top1} for name, top1 in [("a", 0.5), ("b", 0.6), ("a", 0.52), ("b", 0.66)]]
    assert list(small_data.summary(rows)) == [
        "a: top-1 51.00 ± 1.41 % (n = 2)",
        "b: top-1 63.00 ± 4.24 % (n = 2)",
        "b minus a: +12.00 points, from +10.00 to +14.00",
    ]


def test_the_recipes_that_are_compared_are_there() -> None:
    assert {name for names in small_data.COMPARED.values() for name in names} <= set(RECIPES)


def measured(part: str) -> dict[str, Any]:
    """What was measured, of the recipes as they are now."""
    path = Path(__file__).parents[2] / "results" / f"small-data-{part}.json"
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for name, then in result["configuration"]["recipes"].items():
        now = RECIPES[name].model_dump(mode="json")
        assert {**then, "description": ""} == {**now, "description": ""}, "the recipe was changed: measure it again"
    return result


def test_the_claim_about_photographs_is_what_was_measured() -> None:
    rows = measured("animals")["rows"]
    found = {(row["of"], row["recipe"]): row["top1"] for row in rows}
    folds = [f"fold{number}" for number in range(5)]
    assert sum(row["n"] for row in rows if row["recipe"] == "photos") == 240
    gains = [found[fold, "photos"] - found[fold, "animals"] for fold in folds]
    assert sum(gains) / 5 >= 0.12
    assert all(found[fold, "finetune"] > found[fold, "photos"] for fold in folds)  # as docs/recipes.md says


def test_the_claim_is_what_was_measured() -> None:
    result = measured("cifar")
    found = {(row["of"], row["recipe"]): row["top1"] for row in result["rows"]}
    seeds = {seed for seed, _ in found}
    assert len(seeds) >= 2
    assert all(found[seed, "cifar-small-data"] - found[seed, "cifar"] >= 0.12 for seed in seeds)
    assert {row["n"] for row in result["rows"]} == {10_000}
