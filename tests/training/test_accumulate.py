"""Batches that are computed in parts: the same steps as in one part, but for batch norms that see the parts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from resnetlab import jobs
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.from_recipe import build_network
from resnetlab.recipes import Recipe
from resnetlab.training import memory
from resnetlab.training.build import make_stream
from resnetlab.training.trainer import train
from tests.training.test_trainer import BASE, EVERYTHING, Quiet, digits, interrupted_and_not, new_run, records, state
from tests.workers import Workers

# Batch norms with the statistics of the whole data set do not depend on the parts.
FIXED = BASE.changed(frozen_batch_norm=True, learning_rate=1e-3, batch_size=48, weight_decay=1e-3)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "nesterov": True, "ema": 0.9, "class_weights": True},
    "adamw": {"optimizer": "adamw", "gradient_clip": 0.5, "warmup": 1},
    "lamb": {"optimizer": "lamb", "learning_rate": 1e-2, "label_smoothing": 0.1},
    "muon": {"optimizer": "muon", "learning_rate": 1e-2},
}


def trained(folder: str, changes: dict[str, Any], parts: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Records, and all weights and averages, after four steps."""
    recipe = FIXED.changed(accumulate=parts, **changes)
    run = new_run(Path(folder, str(parts)), recipe)
    train(digits(), recipe, run, progress=Quiet(), network=build_network(recipe, 10))
    found = state(run)
    keys = [key for key in found if "accumulator" not in key and "iteration" not in key and "steps" not in key]
    return records(run), {key[4:]: found[key] for key in keys if "seed" not in key}


def test_parts_give_the_steps_of_the_whole_batch(on: Workers, backend: str, tmp_path: Path) -> None:
    assert_same_steps(on(backend), tmp_path, "sgd", parts=3)


@pytest.mark.parametrize(("name", "parts"), [("adamw", 2), ("lamb", 2), ("muon", 3)])
def test_parts_give_the_steps_of_other_optimizers(on: Workers, tmp_path: Path, name: str, parts: int) -> None:
    assert_same_steps(on("tensorflow"), tmp_path, name, parts=parts)


def assert_same_steps(run: Any, folder: Path, name: str, *, parts: int) -> None:
    rate = FIXED.changed(**OPTIMIZERS[name]).learning_rate
    whole, weights = run(trained, folder=str(folder), changes=OPTIMIZERS[name], parts=1)
    found, theirs = run(trained, folder=str(folder), changes=OPTIMIZERS[name], parts=parts)
    assert [record["step"] for record in found] == [record["step"] for record in whole] == [2, 4]
    for one, other in zip(whole, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    common = [key for key in weights if "total" not in key and "count" not in key]
    assert any("average" in key for key in common) == bool(OPTIMIZERS[name].get("ema"))
    for key in common:
        np.testing.assert_allclose(theirs[key], weights[key], rtol=2e-3, atol=0.02 * rate, err_msg=key)


@pytest.mark.parametrize(  # see test_trainer.py on PyTorch
    "backend", ["tensorflow", pytest.param("jax", marks=[pytest.mark.long, pytest.mark.benchmark])]
)
def test_a_run_in_parts_is_resumed_exactly(on: Workers, backend: str, tmp_path: Path) -> None:
    found = on(backend)(interrupted_and_not, folder=str(tmp_path), name="in parts")
    assert found["statuses"] == ["finished", "interrupted", "finished"]
    assert found["halfway"].step == 8
    assert found["steps"] == (list(range(1, 9)), list(range(9, 13)))
    whole, parts = found["states"]
    assert any("accumulator" in key for key in whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
    assert found["records"][1] == found["records"][0]


def test_the_parts_are_the_batch() -> None:
    whole = make_stream(FIXED, digits())
    inputs, targets, _ = whole.batch(1)
    parts = [replace(whole, accumulate=3).batch(1, part) for part in range(3)]
    for name, values in inputs.items():
        np.testing.assert_array_equal(np.concatenate([part[0][name] for part in parts]), values)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), targets)


@pytest.mark.parametrize("processes", [1, 2])
def test_images_are_mixed_with_others_of_their_part(processes: int) -> None:
    recipe = EVERYTHING.changed(accumulate=2, mixup=0.5, cutmix=0.0, label_smoothing=0.0, class_weights=False)
    stream = make_stream(recipe, digits())
    for part in range(2):
        rows = [replace(stream, process=(number, processes)).batch(3, part) for number in range(processes)]
        permutation, fraction = (np.concatenate([row[0][key] for row in rows]) for key in ("permutation", "fraction"))
        assert sorted(permutation) == list(range(8))
        targets = np.concatenate([row[1] for row in rows])
        plain = make_stream(recipe.changed(mixup=0.0), digits())
        labels = plain.batch(3, part)[1].argmax(axis=1)  # the same samples, each of its own class
        expected = np.zeros_like(targets)
        expected[np.arange(8), labels] = fraction
        expected[np.arange(8), labels[permutation]] += 1 - fraction
        np.testing.assert_allclose(targets, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 5}, "batch_size=16 cannot be divided into accumulate=5 equal parts"),
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": "some"}, "accumulate"),
        ({"accumulate": 2, "precision": "float16"}, "not for precision"),
        ({"accumulate": "auto", "precision": "float16"}, "not for precision"),
        ({"accumulate": 16, "mixup": 0.2}, "at least 2"),
    ],
)
def test_parts_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BASE.changed(**changes)


class Small:
    """A model on a GPU that has memory for a few images."""

    def __init__(self, most: int, tried: list[int]) -> None:
        self.most, self.tried = most, tried

    def train_on_batch(self, inputs: Any, targets: Any, weights: Any) -> None:
        self.tried.append(len(targets))
        if len(targets) > self.most:
            raise MemoryError


@pytest.mark.parametrize(("most", "parts"), [(100, 1), (8, 2), (7, 4), (1, 16)])
def test_as_few_parts_as_fit(monkeypatch: pytest.MonkeyPatch, most: int, parts: int) -> None:
    tried: list[int] = []
    monkeypatch.setattr("resnetlab.backend.device", lambda: "gpu")
    monkeypatch.setattr("resnetlab.training.build.make_trainer", lambda *_, **__: Small(most, tried))
    assert jobs.parts_that_fit(BASE.changed(accumulate="auto"), digits(), None) == parts
    assert tried == [16 // number for number in (1, 2, 4, 8, 16) if number <= parts]


def test_where_not_even_single_images_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnetlab.backend.device", lambda: "gpu")
    monkeypatch.setattr("resnetlab.training.build.make_trainer", lambda *_, **__: Small(0, []))
    with pytest.raises(ResnetlabError, match=r"Out of memory: training resnet-tiny on 1 images of 16x16 at a time"):
        jobs.parts_that_fit(BASE.changed(accumulate="auto"), digits(), None)


def test_images_that_are_mixed_are_tried_in_pairs_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr("resnetlab.backend.device", lambda: "gpu")
    monkeypatch.setattr("resnetlab.training.build.make_trainer", lambda *_, **__: Small(1, tried))
    with pytest.raises(ResnetlabError, match=r"Out of memory: training resnet-tiny on 2 images"):
        jobs.parts_that_fit(BASE.changed(accumulate="auto", mixup=0.2), digits(), None)
    assert tried == [16, 8, 4, 2]


def test_trying_leaves_the_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(BASE, 10)
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.variables]
    monkeypatch.setattr("resnetlab.backend.device", lambda: "gpu")
    assert jobs.parts_that_fit(BASE.changed(accumulate="auto"), digits(), network) == 1
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_on_a_cpu_a_batch_is_computed_at_once() -> None:
    assert jobs.parts_that_fit(BASE.changed(accumulate="auto"), digits(), None) == 1


@pytest.mark.parametrize(
    ("recipe", "fits", "advice"),
    [
        (Recipe(batch_size=30), 10, "--accumulate 3, for the same batch in parts of 10 images"),
        (Recipe(batch_size=30), 7, "--accumulate 5, for the same batch in parts of 6 images"),
        (Recipe(batch_size=30, accumulate=5), None, "--accumulate 10, for the same batch in parts of 3 images"),
        (Recipe(batch_size=32, precision="float16"), 8, "a smaller batch, .*--batch-size 8 --learning-rate 0.025"),
    ],
)
def test_what_to_do_about_too_little_memory(recipe: Recipe, fits: int | None, advice: str) -> None:
    assert re.search(f"Use {advice}", memory.out_of_memory(recipe, MemoryError(), fits))
