"""Logits of many images, computed in batches of a fixed shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resnetlab.data.shards import Images

if TYPE_CHECKING:  # so that cropping, and prediction by another engine, does not load it
    import keras

BATCH_SIZE = 64


def centre_crop(images: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size) of images (..., h, w, 3); a view."""
    top, left = ((side - size) // 2 for side in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]


def predict_logits(
    network: keras.Model,
    images: Images,
    indices: np.ndarray,
    *,
    size: int,
    batch_size: int = BATCH_SIZE,
    mirrored: bool = False,
    multiple: int = 1,
) -> np.ndarray:
    """Logits (len(indices), num_classes) float32 of `images[indices]`, or their mirror images: the middle (size, size).

    The last batch is padded, so that the network is compiled for one shape, and the padded rows are dropped. Batches
    have a `multiple` of images, as several devices need; each of them computes all.
    """
    batch_size = -(-min(batch_size, len(indices)) // multiple) * multiple
    rows = []
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        batch = centre_crop(images[chosen], size)[:, :, :: -1 if mirrored else 1]
        filled = np.concatenate([batch, np.repeat(batch[:1], batch_size - len(chosen), axis=0)])
        rows.append(np.asarray(network.predict_on_batch(filled), np.float32)[: len(chosen)])
    return np.concatenate(rows)
