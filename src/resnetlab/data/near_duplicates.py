"""Near-duplicates across the split: images that are held out, and trained on in another version.

Exact copies are always in the same subset; a photograph that was saved again, resized or brightened is another file.
Two images are near-duplicates where their grey thumbnails of THUMBNAIL x THUMBNAIL pixels correlate by at least
CORRELATION, which brightness and contrast do not change. At 0.97, between CIFAR-10's test and training images, nearly
all pairs that were looked at are versions of one photograph; below 0.96, others of the same layout are among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from resnetlab.data.pack import Pack
from resnetlab.data.shards import Images

THUMBNAIL = 16
CORRELATION = 0.97
MAX_PAIRS = 3e9  # compared in about a minute on two cores; with more, nothing is searched
CHUNK = 512


@dataclass(frozen=True)
class NearDuplicate:
    """Rows of the pack: an image that is not trained on, and the training image that is most like it."""

    held_out: int
    training: int
    correlation: float


def near_duplicates(pack: Pack) -> list[NearDuplicate] | None:
    """The held-out images with a near-duplicate among the training images, the most similar first.

    None where the images are too many to compare each with each.
    """
    training = pack.indices("train")
    held_out = np.concatenate([pack.indices("validation"), pack.indices("test")])
    if len(training) * len(held_out) > MAX_PAIRS:
        return None
    found, seen = [], _thumbnails(pack.images, training)
    for start in range(0, len(held_out), CHUNK):
        rows = held_out[start : start + CHUNK]
        correlations = _thumbnails(pack.images, rows) @ seen.T  # (rows, training images)
        nearest = correlations.argmax(axis=1)
        found += [
            NearDuplicate(int(row), int(training[place]), float(correlations[i, place]))
            for i, (row, place) in enumerate(zip(rows, nearest, strict=True))
            if correlations[i, place] >= CORRELATION
        ]
    return sorted(found, key=lambda pair: -pair.correlation)


def _thumbnails(images: Images, rows: np.ndarray) -> np.ndarray:
    """(rows, THUMBNAIL²) float32 of mean 0 and norm 1; 0 for an image of one value, which is like no other."""
    found = np.empty((len(rows), THUMBNAIL**2), np.float32)
    for place, row in enumerate(rows):
        grey = Image.fromarray(images[row]).convert("L")
        found[place] = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
    found -= found.mean(axis=1, keepdims=True)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1.0)
    return found
