"""The studies' own parts: what they train, keep, take apart and draw. Their findings are in results/."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from resnetlab.data.pack import pack
from resnetlab.data.sources import resolve
from resnetlab.evaluation.blocks import BlockChain
from resnetlab.models import architecture, build
from resnetlab.recipes import RECIPES
from resnetlab.report import plots

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.py") if path.stem != "experiment")
KEPT = sorted((ROOT / "results").glob("study-*.json"))
sys.path.insert(0, str(ROOT / "studies"))


def study(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pack(resolve("digits"), size=16, cache_dir=tmp_path_factory.mktemp("pack"), validation=0.0, test=0.2)


def network(kind: str) -> tuple[Any, Any]:
    """A network of seven blocks whose branches say something, and its architecture."""
    arch = replace(architecture(kind), depths=(3, 2, 2))
    model = build(arch, num_classes=10, seed=1)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model, arch


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_states_its_claim_its_source_and_its_cost(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        study(name).main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for word in ("Claim", "Source", "Cost", "--quick"):
        assert word in shown


def test_a_study_is_a_script() -> None:
    command = [sys.executable, str(ROOT / "studies" / "degradation.py"), "--help"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    assert "--quick" in asked.stdout


@pytest.mark.parametrize("kind", ["resnet20", "plain20"])
def test_blocks_put_together_again_are_the_network(kind: str, digits: Any) -> None:
    model, arch = network(kind)
    blocks = BlockChain(model, arch)
    x = digits.images[:32]
    predicted = model.predict(x, verbose=0).argmax(axis=1)
    assert len(blocks.stages) == 7
    assert blocks.error(blocks.stages, x, predicted) == 0
    assert blocks.error(blocks.stages, x, (predicted + 1) % 10) == 1


def test_without_a_block_a_residual_network_is_the_one_whose_branch_is_silent(digits: Any) -> None:
    model, arch = network("resnet20")
    blocks = BlockChain(model, arch)
    rest = [name for name in blocks.stages if name != "stage2_block2"]
    norm = model.get_layer("stage2_block2_bn2")
    gamma, beta, *statistics = norm.get_weights()
    norm.set_weights([np.zeros_like(gamma), np.zeros_like(beta), *statistics])
    silent = model.predict(digits.images[:32], verbose=0).argmax(axis=1)
    assert blocks.error(rest, digits.images[:32], silent) == 0


def test_only_blocks_that_keep_the_shape_are_exchanged_and_in_their_stage() -> None:
    blocks = BlockChain(*network("resnet20"))
    assert blocks.removable == [
        "stage1_block1", "stage1_block2", "stage1_block3", "stage2_block2", "stage3_block2",
    ]  # fmt: skip
    before = list(blocks.stages)
    after = blocks.exchange(5, np.random.default_rng(0))
    assert sorted(after) == sorted(before)
    assert after != before
    assert [blocks.stages[name] for name in after] == [blocks.stages[name] for name in before]


def test_a_network_is_trained_once_for_all_studies(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path))
    experiment = study("experiment")
    recipe = RECIPES["quick"].changed(epochs=2, image_size=16)
    first, rows = experiment.trained(architecture("resnet-tiny"), recipe, digits)
    monkeypatch.setattr(experiment, "_epochs", None)  # training again would fail
    again, kept = experiment.trained(architecture("resnet-tiny"), recipe, digits)
    assert kept == rows
    assert [row["epoch"] for row in rows] == [1, 2]
    for old, new in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    test = digits.indices("test")
    right = again.predict(digits.images[test], verbose=0).argmax(axis=1) == digits.labels[test]
    assert rows[-1]["test_error"] == pytest.approx(1 - right.mean(), abs=1e-3)
    with pytest.raises(TypeError):
        experiment.trained(architecture("resnet-tiny"), recipe.changed(seed=1), digits)


def test_responses_are_those_after_each_batch_norm_of_the_path(digits: Any) -> None:
    model, _ = network("resnet20")
    rows = study("layer_responses").responses(model, digits)
    assert [row["layer"] for row in rows][:3] == ["stem_bn1", "stage1_block1_bn1", "stage1_block1_bn2"]
    images, _ = study("experiment").some_of_test(digits, study("layer_responses").IMAGES, 0)
    stem = keras.Model(model.input, model.get_layer("stem_bn1").output).predict(images, verbose=0)
    assert rows[0]["deviation"] == pytest.approx(float(stem.std()), rel=1e-4)


def test_some_of_the_test_images_are_of_all_classes_where_a_pack_is_sorted(digits: Any) -> None:
    order = np.argsort(digits.labels, kind="stable")
    by_class = replace(digits, images=digits.images[order], labels=digits.labels[order], subset=digits.subset[order])
    images, labels = study("experiment").some_of_test(by_class, 100, 0)
    assert images.shape == (100, 16, 16, 3)
    assert len(set(labels)) == 10
    assert set(map(bytes, images)) <= set(map(bytes, digits.images[digits.indices("test")]))


def test_the_quick_form_trains_on_a_share_of_each_class_that_the_seed_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = study("experiment")
    source = resolve("digits")
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(experiment, "resolve", lambda name: source)

    def data(*, quick: bool, seed: int = 0) -> Any:
        return experiment.data_for(experiment.choose_recipe(Namespace(quick=quick, seed=seed)))

    full, quick = data(quick=False), data(quick=True)
    assert len(full.indices("train")) == len(source.samples)
    share = quick.class_counts("train") / full.class_counts("train")
    np.testing.assert_allclose(share, 1 - experiment.QUICK["validation"], rtol=0.4)
    drawn = [set(part.indices("train")) for part in (quick, data(quick=True), data(quick=True, seed=1))]
    assert drawn[0] == drawn[1] != drawn[2]


def test_gradients_are_looked_at_before_and_after_the_steps(digits: Any) -> None:
    arch = replace(architecture("plain20"), depths=(1, 1, 1))
    rows = study("gradient_flow").look(arch, digits.images, digits.labels, steps=3, batch=16, seed=0)
    assert {row["steps"] for row in rows} == {0, 3}
    assert len(rows) == 2 * 7
    assert all(row["gradient_norm"] > 0 for row in rows)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_can_be_drawn_and_says_its_conditions(path: Path, tmp_path: Path) -> None:
    found = json.loads(path.read_text("utf-8"))
    assert {"what", "configuration", "measured_at", "commit", "environment", "device", "rows", "claims"} <= set(found)
    module = study(path.stem.removeprefix("study-").removesuffix("-quick").replace("-", "_"))
    plots.write(lambda figure: module.draw(figure, found["rows"]), tmp_path / "figure.png", size=(8, 5))
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_claims_of_a_result_follow_from_its_measurements(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    name = path.stem.removeprefix("study-").removesuffix("-quick").replace("-", "_")
    claims = [asdict(claim) for claim in study(name).claims(result["rows"])]
    assert claims == result["claims"]
    assert all(claim["reproduced"] in (True, False, None) for claim in claims)
