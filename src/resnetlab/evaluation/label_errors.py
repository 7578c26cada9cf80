"""Which labels are probably wrong: confident learning (Northcutt 2019, arXiv:1911.00068) on logits.

The logits must be of images that the network was not trained on, as it fits wrong labels too.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetlab.evaluation.metrics import softmax


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong.

    Attributes:
        index: row of the logits.
        given: class number of its label.
        suggested: the most probable class.
        score: probability of the given class, by which suspects are ranked: the lowest first.
        confident: whether confident learning counts it as an error: the network is confident of another class, that
            is, as sure of it as it is on average of the images with that label.
    """

    index: int
    given: int
    suggested: int
    score: float
    confident: bool


def label_errors(logits: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """The images whose predicted class differs from their label, the most suspect first.

    They are ranked by self-confidence. That finds more errors than ranking only the confident ones, whose average
    precision is lower.

    Args:
        logits: (n, k).
        labels: (n,) class numbers.
    """
    probabilities, rows = softmax(logits), np.arange(len(labels))
    present = np.unique(labels)
    thresholds = np.full(probabilities.shape[1], np.inf)
    thresholds[present] = [probabilities[labels == k, k].mean() for k in present]
    sure = np.where(probabilities >= thresholds, probabilities, -1.0)
    confident = (sure.max(axis=1) >= 0) & (sure.argmax(axis=1) != labels)
    given, suggested = probabilities[rows, labels], probabilities.argmax(axis=1)
    suspect = np.flatnonzero(suggested != labels)
    order = suspect[np.argsort(given[suspect], kind="stable")].tolist()
    return [Suspect(i, int(labels[i]), int(suggested[i]), float(given[i]), bool(confident[i])) for i in order]


def write_label_errors(
    suspects: Sequence[Suspect], names: Sequence[str], class_names: Sequence[str], path: Path
) -> None:
    """Write a CSV file of `suspects`, in their order.

    Args:
        names: of all images, in the order of the logits.
        class_names: of all classes.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("rank", "name", "label", "suggested", "probability_of_label", "confident"))
        for rank, each in enumerate(suspects, start=1):
            classes = class_names[each.given], class_names[each.suggested]
            writer.writerow((rank, names[each.index], *classes, f"{each.score:.6f}", "yes" if each.confident else "no"))
