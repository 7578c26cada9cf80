"""The numbers against scikit-learn, SciPy, published values and sums done by hand."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics

from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.metrics import (
    BINS,
    ROWS_AT_ONCE,
    WORST_KEPT,
    CalibrationBin,
    Evaluation,
    evaluate_logits,
    expected_calibration_error,
    most_confused,
    softmax,
    wilson,
)


def names(k):
    return [f"class {i}" for i in range(k)]


def sample(n=600, k=10, gain=2.0, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, k, n)
    logits = random.normal(size=(n, k)).astype(np.float32)
    logits[np.arange(n), labels] += gain
    return logits, labels


def sure(confidence, correct):
    """Two-class logits with this probability for the predicted class 0, and labels that make them right or wrong."""
    confidence = np.asarray(confidence, float)
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)
    return logits, np.where(correct, 0, 1)


def test_agrees_with_scikit_learn():
    logits, labels = sample(ROWS_AT_ONCE + 500)  # more than one part
    e = evaluate_logits(logits, labels, names(10))
    predicted = logits.argmax(1)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    assert e.n == len(labels)
    assert e.loss == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), rel=1e-12)
    assert e.top1 == sklearn.metrics.accuracy_score(labels, predicted)
    assert e.top5 == sklearn.metrics.top_k_accuracy_score(labels, logits, k=5)
    assert e.balanced_accuracy == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    np.testing.assert_array_equal(e.confusion, sklearn.metrics.confusion_matrix(labels, predicted))
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(labels, predicted)
    np.testing.assert_allclose([c.precision for c in e.classes], precision)
    np.testing.assert_allclose([c.recall for c in e.classes], recall)
    np.testing.assert_allclose([c.f1 for c in e.classes], f1)
    assert [c.support for c in e.classes] == support.tolist()
    assert e.macro_precision == pytest.approx(precision.mean())
    assert e.macro_recall == pytest.approx(recall.mean())
    assert e.macro_f1 == pytest.approx(f1.mean())
    assert e.mean_confidence == pytest.approx(probabilities.max(1).mean())


def test_by_hand():
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    e = evaluate_logits(logits, [0, 1, 1, 2], ["a", "b", "c"])
    assert e.loss == pytest.approx(-np.log(0.7 * 0.6 * 0.3 * 0.6) / 4)
    assert e.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert [(c.precision, c.recall) for c in e.classes] == [(0.5, 1.0), (1.0, 0.5), (1.0, 1.0)]
    assert [c.f1 for c in e.classes] == pytest.approx([2 / 3, 2 / 3, 1])
    assert e.top1 == 0.75
    assert (e.top5, e.top5_interval) == (None, None)  # of three classes, five say nothing


def test_top5_begins_at_six_classes():
    assert evaluate_logits(np.zeros((1, 5)), [0], names(5)).top5 is None
    assert evaluate_logits(np.zeros((1, 6)), [0], names(6)).top5 == 1


def test_a_tie_goes_to_the_lower_index_as_in_argmax():
    k = 10
    e = evaluate_logits(np.zeros((k, k)), np.arange(k), names(k))  # a network that says nothing
    assert e.top1 == 1 / k
    assert e.top5 == 5 / k  # not 1
    assert e.confusion[:, 0].sum() == k
    # Top-1 is the diagonal, however many ties there are.
    random = np.random.default_rng(1)
    logits, labels = random.integers(0, 3, (500, k)).astype(float), random.integers(0, k, 500)
    e = evaluate_logits(logits, labels, names(k))
    assert e.top1 == np.trace(e.confusion) / 500
    first = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert e.top5 == np.mean((first == labels[:, None]).any(1))


def test_what_cannot_be_divided_is_none_and_silent():
    # Class 1 is never predicted, 2 has no samples, 3 neither.
    logits = np.eye(4)[[0, 0, 2, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = evaluate_logits(logits, [0, 0, 0, 1], names(4))
    zero, one, two, three = e.classes
    assert (zero.precision, zero.recall) == (2 / 3, 2 / 3)
    assert (one.precision, one.recall, one.f1) == (None, 0, 0)
    assert (two.precision, two.recall, two.f1) == (0, None, 0)
    assert (three.precision, three.recall, three.f1, three.support) == (None, None, None, 0)
    assert e.macro_precision == pytest.approx((2 / 3 + 0) / 2)  # over the two classes with samples
    assert e.macro_recall == pytest.approx((2 / 3 + 0) / 2)
    assert "–" in e.summary()


def test_wilson_has_the_published_values():
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, n), interval in published.items():
        assert wilson(hits, n) == pytest.approx(interval, abs=5.1e-5)
    for hits, n in [(0, 1), (1, 1), (3, 7), (599, 600), (600, 600), (43210, 50000)]:
        expected = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(600, 600)[1] == 1
    assert wilson(9, 10, level=0.99)[0] < wilson(9, 10)[0]
    with pytest.raises(ResnetlabError, match="3 of 2"):
        wilson(3, 2)


def test_intervals_are_those_of_the_shares():
    e = evaluate_logits(*sample(), names(10))
    assert e.top1_interval == wilson(round(e.top1 * 600), 600)
    assert e.top5_interval == wilson(round(e.top5 * 600), 600)


def test_calibration_error_of_constructed_cases():
    # In every bin as often right as sure.
    confidence = np.repeat([0.6, 0.7, 0.8, 0.9], 100)
    correct = np.concatenate([np.arange(100) < fraction for fraction in (60, 70, 80, 90)])
    e = evaluate_logits(*sure(confidence, correct), names(2))
    assert e.calibration_error == pytest.approx(0, abs=1e-12)
    assert "confident" not in e.summary()

    # Ten points too sure everywhere.
    correct = np.concatenate([np.arange(100) < fraction for fraction in (50, 60, 70, 80)])
    e = evaluate_logits(*sure(confidence, correct), names(2))
    assert e.calibration_error == pytest.approx(0.1)
    assert e.mean_confidence - e.top1 == pytest.approx(0.1)
    assert "over-confident" in e.summary()

    # By hand: |0.95 - 1/2| on two of three, |0.55 - 1| on one.
    e = evaluate_logits(*sure([0.95, 0.95, 0.55], [True, False, True]), names(2))
    assert e.calibration_error == pytest.approx((2 * 0.45 + 0.45) / 3)


def test_calibration_against_the_definition():
    logits, labels = sample(2000, gain=1.0)
    e = evaluate_logits(logits, labels, names(10))
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for m in range(1, BINS + 1):  # Guo et al. 2017, equations 2 and 3
        inside = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        assert e.bins[m - 1].count == inside.sum()
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert e.calibration_error == pytest.approx(error, rel=1e-9)
    assert sum(b.count for b in e.bins) == 2000
    assert (e.bins[0].low, e.bins[-1].high) == (0, 1)
    assert expected_calibration_error([CalibrationBin(0, 1, 5, 0.75, 0.25)]) == 0.5


def test_complete_confidence_falls_into_the_last_bin():
    e = evaluate_logits([[1000.0, -1000.0]], [0], names(2))
    assert e.bins[-1].count == 1
    assert e.bins[-1].confidence == 1
    assert e.bins[0].confidence is None


def test_worst_mistakes_are_the_most_confident_wrong_ones():
    logits, labels = sure([0.6, 0.99, 0.8, 0.9, 0.8], [False, True, False, False, False])
    e = evaluate_logits(logits, labels, names(2))
    assert [m.index for m in e.worst] == [3, 2, 4, 0]  # of equals, the first
    assert [m.confidence for m in e.worst] == pytest.approx([0.9, 0.8, 0.8, 0.6])
    assert {(m.true, m.predicted) for m in e.worst} == {(1, 0)}
    assert len(evaluate_logits(*sample(gain=0), names(10)).worst) == WORST_KEPT


def test_most_confused_pairs():
    matrix = np.array([[90, 7, 3], [3, 20, 0], [0, 7, 993]])
    pairs = most_confused(matrix, ["cat", "dog", "cow"])
    assert [(p.true, p.predicted, p.count, p.support) for p in pairs] == [
        ("cat", "dog", 7, 100),  # as many as of cows, but a larger fraction
        ("cow", "dog", 7, 1000),
        ("dog", "cat", 3, 23),
        ("cat", "cow", 3, 100),
    ]
    assert pairs[0].fraction == 0.07
    assert len(most_confused(matrix, names(3), limit=2)) == 2
    assert most_confused(np.eye(3, dtype=int), names(3)) == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax(dtype):
    logits = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(dtype)
    np.testing.assert_allclose(softmax(logits), scipy.special.softmax(logits.astype(np.float64), axis=-1), rtol=1e-12)
    assert softmax(logits).dtype == np.float64
    assert softmax([1e4, 0, -1e4]).tolist() == [1, 0, 0]


def test_a_wide_gap_between_logits_keeps_the_loss_exact():
    e = evaluate_logits(np.array([[0.0, 1e4]], np.float32), [0], names(2))
    assert e.loss == 1e4  # a softmax in float32 would have said infinity


def test_flips_average_the_logits_and_change_nothing_else():
    logits, labels = sample()
    mirrored, _ = sample(seed=1)
    plain, flipped = (evaluate_logits(logits, labels, names(10), mirrored=m) for m in (None, mirrored))
    assert flipped.top1_with_flips == np.mean((logits + mirrored).argmax(axis=1) == labels)
    assert flipped.top1_with_flips_interval == wilson(round(600 * flipped.top1_with_flips), 600)
    new = {"top1_with_flips", "top1_with_flips_interval"}
    before, after = plain.to_json(), flipped.to_json()
    assert {key for key in after if before[key] != after[key]} == new
    assert "With test-time flips" in flipped.summary()
    assert "flips" not in plain.summary()


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("k", [3, 10])
def test_json_round_trip(k, flips):
    logits, labels = sample(50, k)
    labels[labels == 1] = 0  # a class without samples
    e = evaluate_logits(logits, labels, names(k), mirrored=logits[:, ::-1] if flips else None)
    text = json.dumps(e.to_json(), allow_nan=False)
    back = Evaluation.from_json(json.loads(text))
    assert json.loads(text) == e.to_json() == back.to_json()
    assert back.summary() == e.summary()
    assert back.confusion.dtype == e.confusion.dtype
    assert back.class_names == tuple(names(k))


def test_json_that_is_no_evaluation():
    good = evaluate_logits(*sample(20, 3), names(3)).to_json()
    with pytest.raises(ResnetlabError, match="'bins'"):
        Evaluation.from_json({key: value for key, value in good.items() if key != "bins"})
    with pytest.raises(ResnetlabError, match="not an evaluation"):
        Evaluation.from_json(good | {"loss": "much"})
    with pytest.raises(ResnetlabError, match=r"3 classes.*\(2, 2\)"):
        Evaluation.from_json(good | {"confusion": [[1, 0], [0, 1]]})


def test_summary_is_aligned_and_says_what_matters():
    logits, labels = sample(400, 4)
    lines = evaluate_logits(logits, labels, ["cat", "蜘蛛", "x" * 60, "dog"]).summary().splitlines()
    assert lines[0].startswith("Top-1 ")
    assert "95 % interval" in lines[0]
    assert "400 images" in lines[0]
    start = next(i for i, line in enumerate(lines) if line.startswith("class "))
    from rich.cells import cell_len  # two columns for an East Asian character

    assert len({cell_len(line) for line in lines[start : start + 8]}) == 1
    assert "x" * 60 not in "\n".join(lines)


def test_summary_of_many_classes_shows_the_worst():
    logits, labels = sample(2000, 40)
    logits[labels == 7] = np.eye(40)[8]  # never right
    text = evaluate_logits(logits, labels, names(40)).summary()
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 1 + 1 + 10 + 1 + 1 + 1
    assert table[2].startswith("class 7 ")
    assert "10 of 40" in table[-1]
    assert "class 7 predicted as class 8" in text


def test_is_frozen():
    e = evaluate_logits(*sample(20, 3), names(3))
    with pytest.raises(AttributeError):
        e.loss = 0.0
    with pytest.raises(ValueError, match="read-only"):
        e.confusion[0, 0] = 5


BAD = {
    "no samples": (np.zeros((0, 3)), np.zeros(0, int), 3, "no samples"),
    "not a matrix": (np.zeros(3), np.zeros(3, int), 3, r"shape \(3,\); expected \(samples, classes\)"),
    "too few labels": (np.zeros((4, 3)), np.zeros(3, int), 3, r"\(3,\); expected \(4,\)"),
    "one-hot": (np.zeros((4, 3)), np.zeros((4, 3), int), 3, "one-hot"),
    "names": (np.zeros((4, 3)), np.zeros(4, int), 2, "2 class names, but logits for 3"),
    "one class": (np.zeros((4, 1)), np.zeros(4, int), 1, "at least 2"),
    "nan": (np.array([[0, np.nan], [0, 1], [np.inf, 0]]), np.zeros(3, int), 2, "2 of 3 samples.*training diverged"),
    "beyond float32": (np.array([[1e308, -1e308]]), np.zeros(1, int), 2, "1 of 1 samples.*training diverged"),
    "too high": (np.zeros((4, 3)), np.array([0, 3, 1, 9]), 3, "2 of 4 labels.*received 3, expected 0 to 2"),
    "negative": (np.zeros((2, 3)), np.array([0, -1]), 3, "received -1"),
    "not integers": (np.zeros((2, 3)), np.array([0.0, 1.0]), 3, "float64; expected integers"),
}


@pytest.mark.parametrize(("logits", "labels", "k", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(logits, labels, k, message):
    with pytest.raises(ResnetlabError, match=message):
        evaluate_logits(logits, labels, names(k))
