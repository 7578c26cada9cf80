"""Verify an export against Keras on real images, before it is used."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetlab.data.preprocess import Interpolation
from resnetlab.environment import usable_cores
from resnetlab.errors import ResnetlabError
from resnetlab.inference.engines import Engine


class LoadSettings(TypedDict):
    """Arguments of `load_image`."""

    shorter_side: int
    centre_crop: int
    interpolation: Interpolation


TOLERANCE = 1e-4  # of a probability, in float32
LOSS = 0.01  # of accuracy, in a reduced precision
FLIPS = 0.05  # without labels, a change between nearly tied classes cannot be distinguished from an error
BATCHES = (1, 3, 32)  # of the first two batches, and of all others: an export with a fixed batch axis would fail


def probabilities_of(engine: Engine, images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Probabilities (len(indices), classes) of `images[indices]`, in batches of several sizes."""
    edges = [0, *np.cumsum(BATCHES[:-1]), *range(sum(BATCHES), len(indices) + BATCHES[-1], BATCHES[-1])]
    parts = [indices[start:stop] for start, stop in pairwise(edges)]
    return np.concatenate([engine(np.ascontiguousarray(images[part])) for part in parts if len(part)])


def compare(
    received: np.ndarray, expected: np.ndarray, *, precision: str, labels: np.ndarray | None = None
) -> dict[str, Any]:
    """What `export.json` records about an export's probabilities (n, classes) beside Keras's.

    In float32, no probability may differ by more than TOLERANCE, and the top class may change only between classes tied
    within twice that. In a reduced precision the accuracy may drop by at most LOSS or, without labels, at most the
    fraction FLIPS of the images may change class. One image is always allowed to.

    Raises:
        ResnetlabError: the export deviates more than is allowed.
    """
    if received.shape != expected.shape or not np.isfinite(received).all():
        raise ResnetlabError(
            f"The export gives probabilities of shape {received.shape}, finite: {np.isfinite(received).all()}; Keras "
            f"{expected.shape}. It was not kept."
        )
    difference = float(np.abs(received - expected).max())
    first, theirs = received.argmax(1), expected.argmax(1)
    rows = np.arange(len(expected))
    flipped = int(np.sum(first != theirs))
    tied = expected[rows, theirs] - expected[rows, first] <= 2 * TOLERANCE
    found: dict[str, Any] = {
        "images": len(expected),
        "largest_difference": difference,
        "same_class": 1 - flipped / len(expected),
    }
    if labels is not None:
        found["accuracy_keras"] = float(np.mean(theirs == labels))
        found["accuracy"] = float(np.mean(first == labels))

    if precision == "float32":
        if difference > TOLERANCE or np.any((first != theirs) & ~tied):
            raise ResnetlabError(
                f"The export differs from Keras by {difference:.2g} in a probability and in the class of {flipped} of "
                f"{len(rows)} images; expected at most {TOLERANCE:g} and none. It was not kept. Please report this."
            )
    elif labels is None and flipped > max(1, FLIPS * len(rows)):
        raise ResnetlabError(
            f"In {precision} the export changes the class of {flipped} of {len(rows)} images, expected at most "
            f"{FLIPS:.0%}. It was not kept: export in float32."
        )
    elif labels is not None and np.sum(theirs == labels) - np.sum(first == labels) > max(1, LOSS * len(rows)):
        raise ResnetlabError(
            f"In {precision} the accuracy falls from {found['accuracy_keras']:.2%} to {found['accuracy']:.2%} on "
            f"{len(rows)} images, expected at most {LOSS:.0%} less. It was not kept: export in float32."
        )
    return found


def sample_images(size: int, count: int = 64) -> np.ndarray:
    """Real images (count, size, size, 3) if a run has no data: crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    generator, tiles = np.random.default_rng(0), []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = int(generator.integers(96, min(photograph.size)))
        left, top = (int(generator.integers(0, whole - side + 1)) for whole in photograph.size)
        tiles.append(np.asarray(photograph.resize((size, size), box=(left, top, left + side, top + side))))
    return np.stack(tiles)


def write_samples(folder: Path) -> list[Path]:
    """`sample_images` as image files, in encodings that are easily misread."""
    upside_down, files = Image.Exif(), []
    upside_down[0x0112] = 3  # orientation
    for number, array in enumerate(sample_images(600)):
        image, exif, suffix = Image.fromarray(array), Image.Exif(), "jpg"
        match number % 5:
            case 1:
                image.putalpha(Image.linear_gradient("L").resize(image.size))
                suffix = "png"
            case 2:
                image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 4)  # 12 bits of 16
                suffix = "tif"
            case 3:
                image = image.convert("CMYK")
            case 4:
                exif = upside_down
        files.append(folder / f"{number}.{suffix}")
        image.save(files[-1], exif=exif)
    return files


def read_files(
    preprocess: Path, files: Sequence[Path], settings: LoadSettings, expected: np.ndarray
) -> NDArray[np.uint8]:
    """The files' pixels (n, size, size, 3) as an export's preprocess.py reads them, checked against `expected`.

    Raises:
        ResnetlabError: they differ by more than one level.
    """
    load_image = runpy.run_path(str(preprocess))["load_image"]
    with ThreadPoolExecutor(usable_cores()) as pool:
        images = np.stack(list(pool.map(lambda file: load_image(file, **settings), files)))
    for file, image, pixels in zip(files, images, expected, strict=True):
        if image.shape != pixels.shape or np.abs(image.astype(int) - pixels).max() > 1:
            raise ResnetlabError(
                f"The export's preprocess.py does not read {file} as training did. It was not kept. If the file has "
                "changed meanwhile, export again; otherwise please report this."
            )
    return images
