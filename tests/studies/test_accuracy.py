"""What studies/accuracy.py trains, and that it mixes nothing up."""

import importlib
import json
import statistics
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import resnetlab as rl
from resnetlab.models import VARIANTS, architecture, summarize
from resnetlab.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
accuracy = importlib.import_module("accuracy")


def options(**changes: Any) -> Namespace:
    return Namespace(**({"recipe": "cifar-94", "model": None, "without": None, "set": []} | changes))


def test_each_recipe_that_the_text_names_is_there() -> None:
    for name in ("cifar-90", "cifar-94", "cifar-96", "cifar-paper-quick"):
        assert name in accuracy.__doc__
        assert accuracy.choose(options(recipe=name)) == (name, RECIPES[name])


@pytest.mark.parametrize("without", accuracy.WITHOUT)
def test_an_ablation_differs_in_its_ingredient(without: str) -> None:
    name, recipe = accuracy.choose(options(without=without))
    assert name == f"cifar-94-without-{without}"
    fields, changes = accuracy.WITHOUT[without]
    before, base = RECIPES["cifar-94"], architecture("fast-resnet8")
    changed = {key for key, value in recipe if value != getattr(before, key)}
    assert changed == (set(fields) if not changes else {"model"})
    try:
        ablated = architecture(recipe.model)
        assert {key for key in asdict(base) if getattr(ablated, key) != getattr(base, key)} - {"name"} == set(changes)
        assert summarize(ablated, 32).depth == 8
    finally:
        VARIANTS.pop(f"fast-resnet8-without-{without}", None)


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("cifar-90", "accuracy-cifar-90", "{top1:.2f} % ({seeds} seeds)"),
        (
            "cifar-paper-quick",
            "accuracy-cifar-paper-quick-resnet20",
            "ResNet-20 {top1:.2f} % ({seeds} seeds; paper: 91.25 %)",
        ),
    ],
)
def test_a_recipe_has_the_accuracy_that_its_description_states(name: str, file: str, expected: str) -> None:
    found = json.loads((Path(__file__).parents[2] / "results" / f"{file}.json").read_text("utf-8"))
    recipe, rows = RECIPES[name], found["rows"]
    assert {(row["subset"], row["n"]) for row in rows} == {("test", 10_000)}
    top1 = 100 * statistics.fmean(row["top1"] for row in rows)
    assert expected.format(top1=top1, seeds=len(rows)) in recipe.description
    measured = {key: value for key, value in found["configuration"].items() if key in type(recipe).model_fields}
    expected_fields = recipe.model_dump(mode="json") | {"precision": measured["precision"]}  # auto, there bfloat16
    assert {**measured, "description": "", "seed": 0} == {**expected_fields, "description": "", "seed": 0}


def test_in_tuning_the_test_images_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rl.train("digits", recipe="quick", epochs=1, warmup=0, run=tmp_path / "run", progress=None)
    monkeypatch.setattr(rl.Run, "evaluate", None)
    found = accuracy.judged(run)
    assert (found["subset"], found["top1"]) == ("validation", run.history[-1]["val_top1"])


def test_a_run_of_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    recipe = RECIPES["quick"].changed(epochs=1, warmup=0)
    rl.train("digits", recipe=recipe, run=tmp_path / "run", progress=None)
    assert accuracy.finished_run("digits", recipe, tmp_path / "run").status == "finished"
    with pytest.raises(SystemExit, match="trained by another recipe"):
        accuracy.finished_run("digits", recipe.changed(learning_rate=0.1), tmp_path / "run")


def test_small_images_cost_what_their_pixels_cost() -> None:
    recipe = RECIPES["cifar-94"]
    whole = accuracy.floating_point_operations(recipe.changed(progressive=()), 50_000)
    assert whole == 6 * summarize(architecture("fast-resnet8"), 32, 10).multiply_adds * 50_000 * recipe.epochs
    assert 0.5 * whole < accuracy.floating_point_operations(recipe, 50_000) < 0.95 * whole


def test_the_seeds_of_an_earlier_run_stay(tmp_path: Path) -> None:
    recipe = RECIPES["cifar-94"]

    def seeds() -> list[tuple[int, float]]:
        rows = json.loads((tmp_path / "accuracy-x.json").read_text("utf-8"))["rows"]
        return [(row["seed"], row["top1"]) for row in rows]

    accuracy.keep("x", recipe, [{"seed": 1, "top1": 0.5}], tmp_path)
    accuracy.keep("x", recipe, [{"seed": 0, "top1": 0.6}, {"seed": 1, "top1": 0.7}], tmp_path)
    assert seeds() == [(0, 0.6), (1, 0.7)]
    accuracy.keep("x", recipe.changed(epochs=3), [{"seed": 2, "top1": 0.8}], tmp_path)
    assert seeds() == [(2, 0.8)]
