"""Split into train, validation and test: stratified by class, and determined by the content of each image.

Each distinct image has a number u in [0, 1) made of the seed and its SHA-256 alone. It is a test image where
u < test, a validation image where test <= u < test + validation, and otherwise for training. So copies of one
image are always in the same subset, and adding files does not move existing ones. In return, the fraction of a class
is exact only in expectation: with 1,000 images, 20 % is 20 ± 1.3 %.

In a small class the deviation is large (24 images: 20 ± 8 %), so a count that is zero or deviates by more than a
third from the requested one is corrected, by moving the images whose u is nearest to the boundary to or from training.
Only in such classes can adding files move an existing image to another subset.

A run that begins with the weights of another inherits that run's split (see `split`'s `inherited`): what the
weights were trained on, or selected by, is never tested on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from resnetlab.errors import UsageError
from resnetlab.run_folder import DIGITS, SUBSET_PRIORITY

TOLERANCE = 1 / 3
UNUSED = "unused"  # the subset of an image that the data has held out and an ancestor was trained on


def split(
    hashes: Sequence[str],
    labels: Sequence[int],
    subsets: Sequence[str | None],
    *,
    validation: float,
    test: float,
    seed: int = 0,
    inherited: Mapping[str, str] | None = None,
) -> NDArray[np.str_]:
    """The subset of each of n samples: "train", "validation", "test", or UNUSED.

    Args:
        hashes: n digests of content; equal content, equal hash.
        labels: n class indices.
        subsets: n subsets that the source itself gives, or None. A given one is kept, but a part
            that is asked for and not given is carved out of the training part.
        validation, test: fractions of each class, in [0, 1) and together below 1.
        inherited: the strongest subset that each image had in the runs that the weights come from, by the
            first DIGITS of its hash (see `run_folder.strongest`). An image keeps it, or is trained on where this run
            has no such part; only images without one are carved. What the data itself holds out, and a run
            before this one was trained on (or, for a test image, selected its best epoch by), is UNUSED.

    Guarantees, for each class and counted in distinct images:
        - each requested subset gets at least one image, and so does training; if there are too few images, training
          has priority, then test;
        - otherwise it is off by at most a third of itself (or of training's fraction, if that is smaller), or by
          what rounding to a whole image takes;
        - an image's subset depends only on the seed and its content, unless it is moved to meet these guarantees.
    """
    check_fractions(validation=validation, test=test)
    inherited = inherited or {}
    given = {subset for subset in subsets if subset is not None}
    fractions = {"test": test, "validation": validation}  # in this order where images are few
    fractions = {name: fraction for name, fraction in fractions.items() if fraction > 0 and name not in given}

    classes: dict[int, dict[str, float]] = defaultdict(dict)  # of each class, its distinct images with their u
    for content, label, subset in zip(hashes, labels, subsets, strict=True):
        if subset in (None, "train") and content[:DIGITS] not in inherited:
            classes[label][content] = _uniform(content, seed)
    carved: dict[str, str] = {}
    for images in classes.values():
        carved.update(_carve(images, fractions))

    def final_subset(content: str, subset: str | None) -> str:
        before = inherited.get(content[:DIGITS])
        if subset in (None, "train"):
            if before is None:
                return carved[content]
            return before if before in fractions else "train"
        return UNUSED if before is not None and SUBSET_PRIORITY[before] < SUBSET_PRIORITY[subset] else subset

    return np.array([final_subset(*sample) for sample in zip(hashes, subsets, strict=True)], dtype="U10")


def check_fractions(*, validation: float, test: float) -> None:
    """Raise UsageError unless both are fractions that leave something to train on."""
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise UsageError(f"{name} fraction {fraction}: expected a number from 0 up to, but not including, 1.")
    if validation + test >= 1:
        raise UsageError(
            f"Nothing left to train on: validation {validation} and test {test} make {validation + test:g}. "
            "Expected fractions that together are below 1."
        )


def _uniform(content: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{content}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # exact in a double, and below 1


def _carve(images: dict[str, float], fractions: dict[str, float]) -> dict[str, str]:
    """The subset of each of one class's distinct images (hash to u)."""
    ordered = sorted(images, key=lambda content: (images[content], content))
    sides: dict[str, list[str]] = {}
    rest, edge = ordered, 0.0
    for name, fraction in fractions.items():
        edge += fraction
        stop = sum(images[content] < edge for content in rest)
        sides[name], rest = rest[:stop], rest[stop:]

    # A surplus goes to training; a deficit is filled from training, nearest to the boundary first.
    counts = _counts({name: len(side) for name, side in sides.items()}, len(ordered), fractions)
    train = [content for name, side in sides.items() for content in side[counts[name] :]] + rest
    carved: dict[str, str] = {}
    for name, side in sides.items():
        lacking = max(0, counts[name] - len(side))
        carved |= dict.fromkeys(side[: counts[name]] + train[:lacking], name)
        del train[:lacking]
    return carved | dict.fromkeys(train, "train")


def _counts(drawn: dict[str, int], n: int, fractions: dict[str, float]) -> dict[str, int]:
    """The number of the n images in each subset: the drawn count, clipped to the tolerance."""
    counts = {}
    available = n - 1  # training keeps one
    for later, (name, fraction) in zip(reversed(range(len(fractions))), fractions.items(), strict=True):
        slack = TOLERANCE * n * min(fraction, 1 - sum(fractions.values()))
        least, most = max(1, ceil(n * fraction - slack)), max(1, floor(n * fraction + slack))
        most = min(max(least, most), max(1, available - later), available)
        counts[name] = min(max(drawn[name], least), most)
        available -= counts[name]
    return counts
