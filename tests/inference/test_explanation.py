"""Explanations of a run's predictions, and their pictures."""

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import resnetlab as rl
from resnetlab import lesson
from resnetlab.data.pack import Pack
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.evaluation.explain import explain
from resnetlab.inference.explanation import Explanation, explanations
from resnetlab.inference.images import ImageInput
from resnetlab.inference.predictor import Predictor
from resnetlab.run_folder import RunFolder


@pytest.fixture(scope="module")
def predictor(trained: tuple[RunFolder, Path, Pack]) -> Predictor:
    return Predictor(trained[0])


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> rl.Run:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    run = rl.train("digits", recipe="quick", epochs=6, warmup=1, run=folder, progress=None)
    assert run.history[-1]["val_top1"] > 0.9
    return run


def inputs(folder: Path, count: int = 4) -> list[ImageInput]:
    paths = sorted(folder.rglob("*.jpg"))[::7][:count]
    return [ImageInput(str(path), path) for path in paths]


def test_an_explanation_is_of_the_class_that_is_predicted(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack]
) -> None:
    images = inputs(trained[1])
    found = list(explanations(predictor, images))
    for explanation, prediction in zip(found, predictor.predict(images), strict=True):
        assert explanation.path == prediction.path
        assert explanation.class_name == prediction.label
        assert explanation.probability == pytest.approx(prediction.probability, abs=1e-5)
        assert explanation.image is not None
        assert explanation.image.shape == (24, 24, 3)
        assert explanation.map is not None
        assert explanation.map.shape == (24, 24)
        assert explanation.map.min() >= 0
        assert explanation.map.max() in (0, pytest.approx(1))
    assert any(explanation.map.max() > 0 for explanation in found)  # type: ignore[union-attr]


def test_another_class_has_another_map(predictor: Predictor, trained: tuple[RunFolder, Path, Pack]) -> None:
    images = inputs(trained[1])
    by_class = {
        name: list(explanations(predictor, images, class_name=name, method="layer-cam", stage="stage2"))
        for name in ("crane", "stork")
    }
    assert {each.class_name for each in by_class["crane"]} == {"crane"}
    pairs = zip(by_class["crane"], by_class["stork"], strict=True)
    assert any(np.abs(one.map - other.map).max() > 0.1 for one, other in pairs)
    with pytest.raises(UsageError, match="Unknown class 'cran'"):
        list(explanations(predictor, images, class_name="cran"))


def test_an_image_that_cannot_be_used_has_its_problem(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    found = list(explanations(predictor, [ImageInput(str(broken), broken), *inputs(trained[1], 1)]))
    assert (found[0].path, found[0].problem, found[0].map) == (str(broken), "not an image", None)
    with pytest.raises(ResnetlabError, match=r"no picture of .*broken\.jpg: not an image"):
        found[0].save(tmp_path / "none.png")
    assert found[1].map is not None


def test_a_picture_has_the_image_and_the_map_side_by_side(tmp_path: Path) -> None:
    heat = np.zeros((32, 32), np.float32)
    heat[:16, 16:] = 1
    grey = np.full((32, 32, 3), 100, np.uint8)
    explanation = Explanation("a.jpg", "cat", 0.9, grey, heat)
    overlay = np.asarray(explanation.overlay)
    assert (overlay[16:] == 100).all()
    assert (overlay[:16, 16:] != 100).any(axis=-1).all()
    explanation.save(str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * 224 + 8, 224)
        np.testing.assert_array_equal(np.asarray(picture)[:, :224], 100)


def test_feature_maps_are_tiles_of_the_strongest_channels(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack], tmp_path: Path
) -> None:
    found, plain = (
        next(iter(explanations(predictor, inputs(trained[1], 1), stage="stage1", features=wanted)))
        for wanted in (True, False)
    )
    assert found.features is not None
    height, width, channels = found.features.shape
    means = found.features.mean(axis=(0, 1))
    assert sorted(found.channels) == list(range(channels))
    assert list(means[found.channels]) == sorted(means, reverse=True)
    found.save_features(tmp_path / "features.png")
    columns, factor = int(np.ceil(np.sqrt(channels))), int(np.ceil(64 / height))
    with Image.open(tmp_path / "features.png") as picture:
        assert picture.width == columns * (factor * width + 2) - 2
        first = np.asarray(picture)[: factor * height : factor, : factor * width : factor]
    strongest = found.features[..., found.channels[0]]
    brightest, darkest = (np.unravel_index(find(strongest), strongest.shape) for find in (np.argmax, np.argmin))
    assert first[brightest].tolist() == [253, 231, 37]  # the ends of viridis
    assert first[darkest].tolist() == [68, 1, 84]
    assert (plain.features, plain.channels) == (None, [])
    with pytest.raises(ResnetlabError, match="were not asked for"):
        plain.save_features(tmp_path / "none.png")


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "layer-cam"])
def test_randomised_weights_change_the_map(method: str, digits_run: rl.Run) -> None:
    """The sanity check of Adebayo et al. 2018, arXiv:1810.03292: a map that stays does not explain the network."""
    images, labels = (array[:60] for array in lesson.load_images(digits_run, "test"))
    network, rng = digits_run.model, np.random.default_rng(0)
    other = keras.models.clone_model(network)
    other.set_weights([w if w.ndim < 2 else rng.standard_normal(w.shape) * w.std() for w in network.get_weights()])
    maps = [explain(each, images, method=method, classes=labels.tolist()) for each in (network, other)]
    pairs = [(one.ravel(), two.ravel()) for one, two in zip(*maps, strict=True) if one.std() > 0 and two.std() > 0]
    assert len(pairs) > 20
    assert np.mean([np.corrcoef(one, two)[0, 1] for one, two in pairs]) < 0.4
