"""A run of version 0.1, kept as a fixture, gives the numbers it gave then."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from resnetlab.data.pack import Pack, prepare_pack
from resnetlab.data.sources import resolve
from resnetlab.evaluation.metrics import evaluate_logits
from resnetlab.inference.predictor import Predictor
from resnetlab.run_folder import RunFolder
from resnetlab.training import checkpoint

FIXTURE = Path(__file__).parent / "fixtures" / "run-0.1"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(RunFolder.open(FIXTURE))


@pytest.fixture
def pack(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path))
    return prepare_pack(resolve("digits"), predictor.recipe)


def test_its_logits_and_its_evaluation_are_the_same(predictor: Predictor, pack: Pack) -> None:
    kept = np.load(FIXTURE / "predictions.npz")
    np.testing.assert_array_equal(pack.indices("test"), kept["indices"])
    logits = predictor.logits(pack.images, kept["indices"])
    np.testing.assert_allclose(logits, kept["logits"], atol=1e-4 * np.abs(kept["logits"]).max())
    found = evaluate_logits(logits, kept["labels"], pack.class_names)
    then = json.loads((FIXTURE / "evaluation.json").read_text("utf-8"))
    assert (found.n, found.top1) == (then["n"], then["top1"])
    assert found.loss == pytest.approx(then["loss"], rel=1e-5)


def test_its_split_is_the_same(pack: Pack) -> None:
    assert {digest[:16]: str(subset) for digest, subset in zip(pack.hashes, pack.subset, strict=True)} == (
        RunFolder.open(FIXTURE).split()
    )


def test_its_checkpoint_holds_the_weights_of_its_last_epoch(predictor: Predictor) -> None:
    progress, arrays = checkpoint.read(FIXTURE / "checkpoint.npz")
    assert progress["step"] == 60
    assert progress["best_epoch"] == 3  # so the best weights are the last ones
    variables = [v for layer in predictor.network.layers for v in layer.variables if "seed_generator" not in v.path]
    for variable, array in zip(variables, arrays, strict=False):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), array)
