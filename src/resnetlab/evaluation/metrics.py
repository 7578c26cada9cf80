"""Metrics of a classifier from its logits. Uses only NumPy, so that logits of any backend or file can be evaluated.

    evaluation = evaluate_logits(logits, labels, class_names)
    print(evaluation.summary())

Conventions, where textbooks differ:
    - **Ties.** Of equal logits the class with the lower index ranks first, as in `argmax`. So top-1, the confusion
      matrix and the predictions agree, and a network with equal logits for all classes does not score in top-5.
    - **Zero division.** Precision of a class that was never predicted, and recall of a class without samples, are
      None (undefined), not 0. F1 is 2 TP / (2 TP + FP + FN), and None only where that is 0 / 0.
    - **Macro averages** are over the classes that have samples; there, a precision of None counts as 0, because the
      class has samples that were missed. Macro recall is also called balanced accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.cells import cell_len, set_cell_size

from resnetlab.errors import ResnetlabError

TOP = 5
BINS = 15  # as Guo et al. 2017
WORST_KEPT = 24  # a contact sheet of 6 x 4
ROWS_AT_ONCE = 4096  # bounds the float64 copies: 50,000 x 1,000 logits would make several of 400 MB
TABLE_CLASSES = 25
TABLE_WORST = 10

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassScore:
    """One class: fractions in [0, 1] (None: see the module's conventions), and how many samples it has."""

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """The predictions with a confidence in (low, high]; the means are None where there are none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the row of the sample, its class and the predicted one, and the probability of the latter."""

    index: int
    true: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class ConfusedPair:
    """`count` of the `support` samples of class `true` were predicted as `predicted`."""

    true: str
    predicted: str
    count: int
    support: int

    @property
    def fraction(self) -> float:
        return self.count / self.support


@dataclass(frozen=True, eq=False)  # an array has no single truth value; compare to_json()
class Evaluation:
    """What `evaluate_logits` found. All fractions and errors are in [0, 1]; the intervals are Wilson's at 95 %."""

    n: int
    loss: float  # mean cross-entropy, in nats
    top1: float
    top1_interval: Interval
    top5: float | None  # None with five classes or fewer, where it carries no information
    top5_interval: Interval | None
    macro_precision: float
    macro_recall: float
    macro_f1: float
    calibration_error: float  # expected calibration error over `bins`
    classes: tuple[ClassScore, ...]  # k
    confusion: NDArray[np.int64]  # (k, k), rows true, columns predicted; read-only
    bins: tuple[CalibrationBin, ...]
    worst: tuple[Mistake, ...]  # the most confident mistakes, at most WORST_KEPT
    subset: str | None = None  # of a run's own images: "test" or "validation"
    top1_with_flips: float | None = None  # of the mean of each image's logits and its mirror image's
    top1_with_flips_interval: Interval | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(score.name for score in self.classes)

    @property
    def balanced_accuracy(self) -> float:
        return self.macro_recall

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the predicted class. Above `top1`, the network is over-confident."""
        return sum(b.count * b.confidence for b in self.bins if b.confidence is not None) / self.n

    def most_confused(self, limit: int = 10) -> tuple[ConfusedPair, ...]:
        """The pairs with the most mistakes; of equal ones, that with the larger fraction of its class first."""
        return most_confused(self.confusion, self.class_names, limit=limit)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with finite numbers only; `balanced_accuracy` and `most_confused` are there for the reader."""
        return asdict(self) | {
            "top1_interval": list(self.top1_interval),
            "top5_interval": None if self.top5_interval is None else list(self.top5_interval),
            "top1_with_flips_interval": self.top1_with_flips_interval and list(self.top1_with_flips_interval),
            "balanced_accuracy": self.balanced_accuracy,
            "classes": [asdict(score) for score in self.classes],
            "confusion": self.confusion.tolist(),
            "bins": [asdict(b) for b in self.bins],
            "worst": [asdict(mistake) for mistake in self.worst],
            "most_confused": [asdict(pair) for pair in self.most_confused()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ResnetlabError if `data` is not what that makes."""
        try:
            top5_interval = data["top5_interval"]
            confusion = np.array(data["confusion"], dtype=np.int64)
            confusion.setflags(write=False)
            evaluation = cls(
                n=int(data["n"]),
                loss=float(data["loss"]),
                top1=float(data["top1"]),
                top1_interval=_pair(data["top1_interval"]),
                top5=None if data["top5"] is None else float(data["top5"]),
                top5_interval=None if top5_interval is None else _pair(top5_interval),
                macro_precision=float(data["macro_precision"]),
                macro_recall=float(data["macro_recall"]),
                macro_f1=float(data["macro_f1"]),
                calibration_error=float(data["calibration_error"]),
                classes=tuple(ClassScore(**score) for score in data["classes"]),
                confusion=confusion,
                bins=tuple(CalibrationBin(**b) for b in data["bins"]),
                worst=tuple(Mistake(**mistake) for mistake in data["worst"]),
                subset=data.get("subset"),
                top1_with_flips=data.get("top1_with_flips"),
                top1_with_flips_interval=data.get("top1_with_flips_interval")
                and _pair(data["top1_with_flips_interval"]),
            )
        except KeyError as error:
            raise ResnetlabError(f"This is not an evaluation: it has no {error}. Make it with `evaluate`.") from None
        except (TypeError, ValueError) as error:
            raise ResnetlabError(f"This is not an evaluation: {error}. Run `resnetlab evaluate` again.") from None
        k = len(evaluation.classes)
        if confusion.shape != (k, k):
            raise ResnetlabError(
                f"This is not an evaluation: {k} classes, but a confusion matrix of shape {confusion.shape}."
                " Run `resnetlab evaluate` again."
            )
        return evaluation

    def summary(self) -> str:
        """Plain text: headline metrics, a table of classes, and the most frequent confusions."""
        excess = self.mean_confidence - self.top1
        if self.calibration_error < 0.01 or abs(excess) < self.calibration_error / 2:
            calibration = ""  # correct on average, so neither word applies
        else:
            calibration = " (over-confident)" if excess > 0 else " (under-confident)"
        headline = [f"Top-1 {_with_interval(self.top1, self.top1_interval)} on {self.n:,} images"]
        if self.top1_with_flips is not None and self.top1_with_flips_interval is not None:
            headline.append(
                f"With test-time flips {_with_interval(self.top1_with_flips, self.top1_with_flips_interval)}"
            )
        if self.top5 is not None and self.top5_interval is not None:
            headline.append(f"Top-5 {_with_interval(self.top5, self.top5_interval)}")
        headline.append(
            f"Loss {self.loss:.4g} · balanced accuracy {_percent(self.balanced_accuracy)}"
            f" · calibration error {_percent(self.calibration_error)}{calibration}"
        )
        parts = ["\n".join(headline), self._table()]
        if pairs := self.most_confused(5):
            text = [f"{_short(pair.true)} predicted as {_short(pair.predicted)}" for pair in pairs]
            width, digits = max(map(cell_len, text)), len(f"{pairs[0].count:,}")
            lines = [
                f"  {set_cell_size(line, width)}  {pair.count:>{digits},} of {pair.support:,} "
                f"({_percent(pair.fraction)})"
                for line, pair in zip(text, pairs, strict=True)
            ]
            parts.append("\n".join(["Most frequent confusions", *lines]))
        return "\n\n".join(parts)

    def _table(self) -> str:
        shown, note = self.classes, ""
        if len(shown) > TABLE_CLASSES:
            scored = [score for score in shown if score.f1 is not None]
            shown = tuple(sorted(scored, key=lambda score: score.f1 or 0.0)[:TABLE_WORST])
            note = f"\n  the {len(shown)} of {len(self.classes)} classes with the lowest F1"
        rows = [
            (_short(s.name), f"{s.support:,}", _percent(s.precision), _percent(s.recall), _percent(s.f1)) for s in shown
        ]
        macro = (_percent(self.macro_precision), _percent(self.macro_recall), _percent(self.macro_f1))
        rows = [("class", "images", "precision", "recall", "F1"), *rows, ("macro average", f"{self.n:,}", *macro)]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [set_cell_size(row[0], widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        rule = "─" * cell_len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]]) + note


def evaluate_logits(
    logits: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    *,
    subset: str | None = None,
    mirrored: ArrayLike | None = None,
) -> Evaluation:
    """Evaluate a classifier by its logits.

    Args:
        logits: (n, k) real numbers, k >= 2.
        labels: (n,) integers, each the index of a class.
        class_names: k names.
        subset: "test" or "validation" for a run's own images.
        mirrored: (n, k) logits of the mirror images, for `top1_with_flips`.

    Raises ResnetlabError for no samples, for shapes that disagree, for logits that are not finite and for labels
    that are no class.
    """
    logits, labels = _checked(logits, labels, class_names)
    n, k = logits.shape
    losses, confidences, predicted, ranks = _by_sample(logits, labels)
    hits_with_flips = None
    if mirrored is not None:
        hits_with_flips = int(np.sum((logits + _checked(mirrored, labels, class_names)[0]).argmax(axis=1) == labels))
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    confusion.setflags(write=False)
    classes = _scores(confusion, class_names)
    with_samples = [score for score in classes if score.support]
    correct = predicted == labels
    bins = _bins(confidences, correct)
    hits = int(correct.sum())
    hits5 = int(np.sum(ranks < TOP)) if k > TOP else None
    wrong = np.flatnonzero(~correct)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:WORST_KEPT]]  # of equals, the first
    return Evaluation(
        n=n,
        loss=float(losses.mean()),
        top1=hits / n,
        top1_interval=wilson(hits, n),
        top5=None if hits5 is None else hits5 / n,
        top5_interval=None if hits5 is None else wilson(hits5, n),
        macro_precision=_mean([score.precision for score in with_samples]),
        macro_recall=_mean([score.recall for score in with_samples]),
        macro_f1=_mean([score.f1 for score in with_samples]),
        calibration_error=expected_calibration_error(bins),
        classes=classes,
        confusion=confusion,
        bins=bins,
        worst=tuple(Mistake(int(i), int(labels[i]), int(predicted[i]), float(confidences[i])) for i in worst),
        subset=subset,
        top1_with_flips=None if hits_with_flips is None else hits_with_flips / n,
        top1_with_flips_interval=None if hits_with_flips is None else wilson(hits_with_flips, n),
    )


def _by_sample(
    logits: NDArray[Any], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each sample: the loss, the predicted class's probability, that class, and the rank (from 0) of the true."""
    n, k = logits.shape
    losses, confidences = np.empty(n), np.empty(n)
    predicted, ranks = np.empty(n, np.int64), np.empty(n, np.int64)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = logits[rows].astype(np.float64)  # (rows, k)
        own = np.take_along_axis(part, labels[rows, None], axis=1)  # (rows, 1)
        before = np.arange(k) < labels[rows, None]
        ranks[rows] = np.sum((part > own) | ((part == own) & before), axis=1)
        predicted[rows] = part.argmax(axis=1)
        shifted = part - part.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1)
        losses[rows] = np.log(total) - np.take_along_axis(shifted, labels[rows, None], axis=1)[:, 0]
        confidences[rows] = 1 / total  # the largest logit is the predicted class's: exp(0) over the sum
    return losses, confidences, predicted, ranks


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64 and of the shape of `logits`; finite for any finite logits."""
    values = np.asarray(logits).astype(np.float64)
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def wilson(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval for a fraction of `hits` in `n` (Wilson 1927), without continuity correction.

    Unlike p ± 1.96 √(p(1-p)/n) it stays inside [0, 1] and does not shrink to nothing when all were right.
    """
    if not 0 <= hits <= n or n == 0:
        raise ResnetlabError(f"A fraction needs 0 <= hits <= n and n > 0; received {hits} of {n}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    # At the ends the bounds are 0 and 1 exactly; rounding would miss them.
    return (0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half)


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean over all samples of their bin's |accuracy - confidence| (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    gaps = (
        b.count * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None
    )
    return sum(gaps) / sum(b.count for b in bins)


def most_confused(
    confusion: NDArray[np.integer], class_names: Sequence[str], *, limit: int = 10
) -> tuple[ConfusedPair, ...]:
    """The pairs with the most mistakes in a (k, k) matrix of counts, rows true: `limit` of them at most."""
    support = confusion.sum(axis=1)
    pairs = [
        ConfusedPair(class_names[i], class_names[j], int(confusion[i, j]), int(support[i]))
        for i, j in np.argwhere(confusion)
        if i != j
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, -pair.fraction))[:limit])


def _checked(
    logits: ArrayLike, labels: ArrayLike, class_names: Sequence[str]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2:
        raise ResnetlabError(f"Logits have shape {logits.shape}; expected (samples, classes).")
    n, k = logits.shape
    if labels.shape != (n,):
        hint = " They look one-hot: pass labels.argmax(axis=1)." if labels.shape == (n, k) else ""
        raise ResnetlabError(f"Labels have shape {labels.shape}; expected ({n},), one for each row of logits.{hint}")
    if len(class_names) != k:
        raise ResnetlabError(
            f"There are {len(class_names)} class names, but logits for {k} classes. "
            "Expected one name for each; is this the data that the model was trained on?"
        )
    if n == 0:
        raise ResnetlabError("There are no samples to evaluate. Expected at least one.")
    if k < 2:
        raise ResnetlabError("There are logits for 1 class; expected one column for each of at least 2 classes.")
    # Besides NaN and infinity, this rejects values beyond the float32 range, on which float64 would overflow.
    bad = n - int(np.sum(np.all(np.abs(logits) <= np.finfo(np.float32).max, axis=1)))
    if bad:
        raise ResnetlabError(
            f"The logits of {bad:,} of {n:,} samples are not finite: training diverged. "
            "Take the weights of an earlier epoch, or train again with a lower learning rate or a longer warm-up."
        )
    if labels.dtype.kind not in "iu":
        raise ResnetlabError(f"Labels are {labels.dtype}; expected integers, the indices of classes.")
    outside = (labels < 0) | (labels >= k)
    if outside.any():
        raise ResnetlabError(
            f"{int(outside.sum()):,} of {n:,} labels are not class indices: "
            f"received {labels[outside][0]}, expected 0 to {k - 1}."
        )
    return logits, labels.astype(np.int64)


def _scores(confusion: NDArray[np.int64], class_names: Sequence[str]) -> tuple[ClassScore, ...]:
    scores = []
    for i, name in enumerate(class_names):
        hits, support, named = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
        scores.append(
            ClassScore(
                name=str(name),
                support=support,
                precision=hits / named if named else None,
                recall=hits / support if support else None,
                f1=2 * hits / (support + named) if support + named else None,  # TP+FN + TP+FP
            )
        )
    return tuple(scores)


def _bins(confidences: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    edges = np.linspace(0, 1, BINS + 1)
    where = np.digitize(confidences, edges[1:-1], right=True)  # (low, high], as in the paper
    counts = np.bincount(where, minlength=BINS)
    confidence = np.bincount(where, weights=confidences, minlength=BINS)
    accuracy = np.bincount(where, weights=correct, minlength=BINS)
    return tuple(
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(count),
            confidence=float(confidence[i] / count) if count else None,
            accuracy=float(accuracy[i] / count) if count else None,
        )
        for i, count in enumerate(counts)
    )


def _mean(values: Sequence[float | None]) -> float:
    return sum(value or 0.0 for value in values) / len(values)


def _pair(values: Sequence[float]) -> Interval:
    low, high = values
    return float(low), float(high)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _with_interval(fraction: float, interval: Interval) -> str:
    low, high = interval
    return f"{_percent(fraction)} (95 % interval {100 * low:.1f}–{100 * high:.1f} %)"


def _short(name: str, width: int = 32) -> str:
    """On one line, at most `width` columns of a terminal, in which an East Asian character takes two."""
    name = " ".join(name.split())
    return name if cell_len(name) <= width else set_cell_size(name, width - 1).rstrip() + "…"
