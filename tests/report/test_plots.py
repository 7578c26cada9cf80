"""The pictures: there, whole, of their size, different for different data, and never half written."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.metrics import CalibrationBin, evaluate_logits
from resnetlab.report import plots


def records(n, **changes):
    made = [
        {
            "epoch": epoch,
            "step": 100 * epoch,
            "loss": 2 / epoch,
            "accuracy": 1 - 0.8 / epoch,
            "val_loss": 2 / epoch + 0.02 * epoch,  # lowest at epoch 10
            "val_top1": 0.9 - 0.7 / epoch,
            "learning_rate": 0.1 / epoch,
            "images_per_second": 900.0,
            "seconds": 10.0,
        }
        for epoch in range(1, n + 1)
    ]
    return [record | changes for record in made]


def bins_of(n=500, gain=2.0):
    random = np.random.default_rng(0)
    labels, logits = random.integers(0, 4, n), random.normal(size=(n, 4))
    logits[np.arange(n), labels] += gain
    return evaluate_logits(logits, labels, "abcd").bins


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def figures(monkeypatch):
    """The figures that get drawn, for a look at what stands in them."""
    seen = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k))[1])
    return seen


@pytest.fixture
def texts(figures):
    def read():
        from matplotlib.text import Text

        return [text.get_text() for text in figures[-1].findobj(Text) if text.get_text()]

    return read


def test_curves(tmp_path, texts):
    path = tmp_path / "curves.png"
    plots.curves(records(20), path)
    image = pixels(path)
    assert image.shape == (1275, 1200, 3)
    assert image.min() < 100  # not blank
    assert "Validation loss is lowest at epoch 10: 0.4" in texts()
    assert "Validation top-1 at that epoch: 83.0 %" in texts()
    assert {"training", "validation", "best epoch"} <= set(texts())
    assert [item.name for item in tmp_path.iterdir()] == ["curves.png"]


def test_the_same_data_gives_the_same_bytes_and_other_data_others(tmp_path):
    one, two, three = (tmp_path / name for name in ("1.png", "2.png", "3.png"))
    plots.curves(records(5), one)
    plots.curves(records(5), two)
    plots.curves(records(5, val_loss=1.0), three)
    assert one.read_bytes() == two.read_bytes()
    assert np.any(pixels(one) != pixels(three))


def test_one_epoch_is_a_dot_that_can_be_seen(tmp_path):
    plots.curves(records(1), tmp_path / "a.png")
    blue = np.all(pixels(tmp_path / "a.png") == (0x00, 0x72, 0xB2), axis=-1)
    # A disc in the loss and one in the top-1 panel, besides the legend's short line at the top right.
    assert blue[100:, :].sum() > 100


def test_without_validation(tmp_path, texts):
    training = [{key: value for key, value in r.items() if not key.startswith("val_")} for r in records(3)]
    plots.curves(training, tmp_path / "a.png")
    assert "best epoch" not in texts()
    assert "validation" not in texts()


def test_losses_that_are_not_finite_are_left_out_and_said(tmp_path, figures, texts):
    made = records(6)
    made[2]["loss"] = math.nan
    made[3]["val_loss"] = None  # what NaN becomes in metrics.jsonl
    made[5]["loss"] = made[5]["val_loss"] = math.inf
    plots.curves(made, tmp_path / "a.png")
    assert "shaded: loss not finite (3 of 6 epochs)" in texts()
    assert "Validation loss is lowest at epoch 5: 0.5" in texts()
    plots.curves(records(1, loss=None, val_loss=math.nan), tmp_path / "b.png")
    assert "The loss was never finite" in texts()


def test_losses_over_orders_of_magnitude_get_a_logarithmic_axis(tmp_path, figures):
    plots.curves(records(3), tmp_path / "a.png")
    assert figures[-1].axes[0].get_yscale() == "linear"
    made = records(3)
    made[1]["loss"] = 5000.0
    plots.curves(made, tmp_path / "a.png")
    assert figures[-1].axes[0].get_yscale() == "log"


def test_of_records_for_the_same_epoch_the_last_counts(tmp_path):
    made = records(4)
    plots.curves(made, tmp_path / "a.png")
    plots.curves([made[3], made[1] | {"loss": 9.0}, *made[:3]], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("k", [2, 20, 21, 100])
def test_confusion(tmp_path, texts, k):
    matrix = np.full((k, k), 1) + np.eye(k, dtype=int) * 976
    names = [f"class {i}" for i in range(k)]
    plots.confusion(matrix, names, tmp_path / "a.png")
    image = pixels(tmp_path / "a.png")
    assert 500 < min(image.shape[:2]) <= max(image.shape[:2]) < 3000
    assert ("977" in texts()) == (k <= 20)  # counts in the cells
    assert set(names) <= set(texts())


def test_confusion_says_what_is_most_often_confused(tmp_path, texts):
    matrix = np.array([[97, 3], [0, 100]])
    plots.confusion(matrix, ["cat", "dog"], tmp_path / "a.png")
    assert "98.5 % of 200 images on the diagonal" in texts()
    assert "most often: cat predicted as dog, 3 of 100" in texts()
    plots.confusion(matrix.T, ["cat", "dog"], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_confusion_of_a_thousand_classes_names_some(tmp_path, texts):
    plots.confusion(np.eye(1000, dtype=int), [f"class {i}" for i in range(1000)], tmp_path / "a.png")
    assert max(pixels(tmp_path / "a.png").shape) < 3000
    assert {"class 0", "class 10", "class 990"} <= set(texts())
    assert "class 1" not in texts()


def test_colour_is_the_share_of_the_true_class(tmp_path, figures):
    plots.confusion([[9, 1], [900, 100]], ["a", "b"], tmp_path / "a.png")
    (image,) = figures[-1].axes[0].images
    np.testing.assert_allclose(image.get_array(), [[0.9, 0.1], [0.9, 0.1]])


def test_odd_class_names_and_a_class_without_samples(tmp_path, texts):
    matrix = np.array([[5, 1, 0], [0, 0, 0], [2, 0, 5]])
    plots.confusion(matrix, ["$x_{", "猫", "a very long name of a class\nthat goes on and on"], tmp_path / "a.png")
    assert "$x_{" in texts()
    assert "a very long name of a c…" in texts()
    assert np.any(np.all(pixels(tmp_path / "a.png") == 0xF3, axis=-1))  # the grey of the empty row
    plots.confusion(np.zeros((2, 2)), ["a", "b"], tmp_path / "b.png")
    assert "no images" in texts()


def test_reliability(tmp_path, texts):
    plots.reliability(bins_of(), tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape == (1050, 975, 3)
    plots.reliability(
        [CalibrationBin(0.0, 0.5, 0, None, None), CalibrationBin(0.5, 1.0, 10, 0.9, 0.6)], tmp_path / "b.png"
    )
    assert "Calibration error 30.0 %, over-confident" in texts()
    plots.reliability([CalibrationBin(0.5, 1.0, 10, 0.7, 0.9)], tmp_path / "c.png")
    assert "Calibration error 20.0 %, under-confident" in texts()
    assert np.any(pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png"))


def test_nothing_is_left_when_drawing_raises(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the picture before")

    def half(self, file, **_):
        file.write_bytes(b"half a pict")
        raise RuntimeError("out of ink")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(RuntimeError, match="out of ink"):
        plots.curves(records(2), path)
    assert path.read_bytes() == b"the picture before"
    assert [item.name for item in tmp_path.iterdir()] == ["curves.png"]

    monkeypatch.setattr(Axes, "plot", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plots.reliability(bins_of(), tmp_path / "new.png")
    assert [item.name for item in tmp_path.iterdir()] == ["curves.png"]


def test_leaves_no_global_state(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.reliability(bins_of(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ResnetlabError, match="no epochs"):
        plots.curves([], tmp_path / "a.png")
    with pytest.raises(ResnetlabError, match=r"\(3, 3\); expected \(2, 2\)"):
        plots.confusion(np.eye(3), ["a", "b"], tmp_path / "a.png")
    with pytest.raises(ResnetlabError, match="no predictions"):
        plots.reliability([CalibrationBin(0.0, 1.0, 0, None, None)], tmp_path / "a.png")
    with pytest.raises(ResnetlabError, match="Cannot write"):
        plots.reliability(bins_of(), tmp_path / "no such folder" / "a.png")
    assert not list(tmp_path.iterdir())
