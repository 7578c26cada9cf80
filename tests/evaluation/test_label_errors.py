"""Suspect labels: by hand, and on digits with labels that were flipped."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict

from resnetlab.evaluation.label_errors import Suspect, label_errors


def test_by_hand() -> None:
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],  # class 0, confident
            [0.7, 0.2, 0.1],  # class 0, whose threshold is the mean of 0.9, 0.7 and 0.05
            [0.05, 0.9, 0.05],  # labelled 0, but confidently 1: suspect
            [0.1, 0.8, 0.1],  # class 1
            [0.45, 0.5, 0.05],  # class 1, not confident of any class
            [0.2, 0.2, 0.6],  # class 2
        ]
    )
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert np.isclose(probabilities[:3, 0].mean(), 0.55)
    with np.errstate(divide="ignore"):
        found = label_errors(np.log(np.maximum(probabilities, 1e-9)), labels)
    assert [(each.index, each.given, each.suggested, each.confident) for each in found] == [(2, 0, 1, True)]
    assert np.isclose(found[0].score, 0.05, atol=1e-6)


def test_of_a_class_without_images_the_network_is_never_confident() -> None:
    logits = np.array([[0.0, 0.0, 9.0], [0.0, 5.0, 9.0], [5.0, 0.0, 9.0]])
    found = label_errors(logits, np.array([0, 1, 0]))
    assert [(each.index, each.suggested, each.confident) for each in found] == [
        (0, 2, False),
        (1, 2, False),
        (2, 2, False),
    ]


def test_flipped_labels_are_ranked_first() -> None:
    digits = load_digits()
    rng = np.random.default_rng(0)
    flipped = rng.random(len(digits.target)) < 0.05
    labels = np.where(flipped, (digits.target + rng.integers(1, 10, len(flipped))) % 10, digits.target)
    model = LogisticRegression(C=0.01, max_iter=2000)
    probabilities = cross_val_predict(model, digits.data, labels, cv=5, method="predict_proba")
    found = label_errors(np.log(probabilities + 1e-12), labels)

    def precision(ranked: list[Suspect]) -> float:
        scores = np.zeros(len(labels))
        scores[[each.index for each in ranked]] = np.arange(len(ranked), 0, -1)
        return float(average_precision_score(flipped, scores))

    confident = [each for each in found if each.confident]
    assert precision(found) > 0.9 > precision(confident)
    assert all(each.given != each.suggested for each in found)
    assert flipped[[each.index for each in confident]].mean() > 0.7  # with a linear classifier
    assert 0.6 * flipped.sum() < len(confident) < 1.1 * flipped.sum()
