"""Explanations as pictures: the maps of `evaluation/explain.py` laid over the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, sqrt
from os import PathLike
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from resnetlab.atomic import atomic_file
from resnetlab.errors import ResnetlabError, unknown_name
from resnetlab.evaluation.explain import check, explain
from resnetlab.evaluation.features import feature_maps, filters_as_images, strongest_channels
from resnetlab.evaluation.logits import centre_crop
from resnetlab.inference.images import ImageInput
from resnetlab.inference.predictor import Predictor

BATCH_SIZE = 16
COLOURS = "viridis"  # perceptually uniform
OPACITY = 0.55  # of the map where it is largest; it is transparent where it is zero
CHANNELS = 64  # feature maps in a picture
TILE = 64  # least side in pixels of one of them


@dataclass(frozen=True, eq=False)
class Explanation:
    """An explanation of the prediction of a class for an image.

    Attributes:
        path: of the file; None for an image in memory.
        class_name: the class that is explained.
        probability: of that class.
        image: what the network sees: (size, size, 3) uint8.
        map: (size, size) float32, 1 at its largest; 0 everywhere if no feature is evidence for the class.
        features: the stage's output (height, width, channels) float32, where it is asked for.
        problem: why the image cannot be used; then there is nothing else but the path.
    """

    path: str | None
    class_name: str | None = None
    probability: float | None = None
    image: np.ndarray | None = None
    map: np.ndarray | None = None
    features: np.ndarray | None = None
    problem: str | None = None

    @property
    def overlay(self) -> Image.Image:
        """The image with the map over it."""
        if self.image is None or self.map is None:
            raise ResnetlabError(f"There is no picture of {self.path}: {self.problem}.")
        return _overlay(self.image, self.map)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a PNG: the image, and beside it the image with the map, at least 224 pixels high each."""
        overlay = self.overlay
        assert self.image is not None
        side = max(224, self.image.shape[0])
        pair = Image.new("RGB", (2 * side + 8, side), "white")
        for place, picture in enumerate((Image.fromarray(self.image), overlay)):
            pair.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (place * (side + 8), 0))
        _write_png(pair, path)

    @property
    def channels(self) -> list[int]:
        """The channels that `save_features` shows, in its order: those with the largest mean response."""
        return [] if self.features is None else strongest_channels(self.features, CHANNELS).tolist()

    def save_features(self, path: str | PathLike[str]) -> None:
        """Write a PNG of the feature maps of `channels`, from left to right and down; each has its own range."""
        if self.features is None:
            raise ResnetlabError(f"There are no feature maps of {self.path}: they were not asked for.")
        maps = np.moveaxis(self.features[..., self.channels], -1, 0)  # (channels, height, width)
        low, high = (function(maps, axis=(1, 2), keepdims=True) for function in (np.min, np.max))
        coloured = 255 * matplotlib.colormaps[COLOURS]((maps - low) / np.maximum(high - low, 1e-12))[..., :3]
        _write_png(tiled(np.rint(coloured).astype(np.uint8)), path)


def save_filters(filters: np.ndarray, path: str | PathLike[str]) -> None:
    """Write a PNG of filters (n, size, size, 3), in their order; grey is 0."""
    _write_png(tiled(filters_as_images(filters)), path)


def tiled(images: np.ndarray) -> Image.Image:
    """Images (n, height, width, 3) in rows of equal length, enlarged to TILE pixels or more without smoothing."""
    columns = ceil(sqrt(len(images)))
    factor = max(1, ceil(TILE / images.shape[1]))
    height, width = (factor * side for side in images.shape[1:3])
    picture = Image.new("RGB", (columns * (width + 2) - 2, ceil(len(images) / columns) * (height + 2) - 2), "white")
    for number, image in enumerate(images):
        tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(tile, (number % columns * (width + 2), number // columns * (height + 2)))
    return picture


def _write_png(picture: Image.Image, path: str | PathLike[str]) -> None:
    with atomic_file(Path(path)) as temporary:
        picture.save(temporary, format="png")


def _overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    colours = 255 * matplotlib.colormaps[COLOURS](heat)[..., :3]
    opacity = OPACITY * heat[..., None]
    return Image.fromarray(np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8))


def overlays(predictor: Predictor, images: np.ndarray, classes: Sequence[int]) -> list[Image.Image]:
    """Images (n, size, size, 3) with the Grad-CAM of these classes over them."""
    maps = explain(predictor.network, images, classes=classes)
    return [_overlay(image, enlarged(heat, image.shape[0])) for image, heat in zip(images, maps, strict=True)]


def enlarged(heat: np.ndarray, size: int) -> np.ndarray:
    """A map at the image's size, and 1 at its largest."""
    large = np.asarray(Image.fromarray(heat).resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return large / max(float(large.max()), 1e-12)


def explanations(
    predictor: Predictor,
    images: Iterable[ImageInput],
    *,
    method: str = "grad-cam",
    stage: str | None = None,
    class_name: str | None = None,
    features: bool = False,
) -> Iterator[Explanation]:
    """An explanation of each image, in order; of the predicted class, or of `class_name`.

    Args:
        features: with the stage's feature maps; of the last stage by default, and for occlusion.

    Raises:
        UsageError: an unknown method, stage or class, before any image is read.
    """
    if class_name is not None and class_name not in predictor.class_names:
        raise unknown_name("class", str(class_name), predictor.class_names)
    check(predictor.network, method, stage)
    return _explanations(predictor, images, method, stage, class_name, features)


def _explanations(
    predictor: Predictor,
    images: Iterable[ImageInput],
    method: str,
    stage: str | None,
    class_name: str | None,
    features: bool,
) -> Iterator[Explanation]:
    decoded = predictor.read(images)
    while batch := list(islice(decoded, BATCH_SIZE)):
        usable = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
        made = iter(_explain(predictor, np.stack(usable), method, stage, class_name) if usable else ())
        for path, pixels in batch:
            if isinstance(pixels, str):
                yield Explanation(path, problem=pixels)
            else:
                image, heat, chosen, probability = next(made)
                maps = feature_maps(predictor.network, image[None], stage=stage)[0] if features else None
                yield Explanation(path, predictor.class_names[chosen], probability, image, heat, maps)


def _explain(
    predictor: Predictor, images: np.ndarray, method: str, stage: str | None, class_name: str | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int, float]]:
    size = predictor.recipe.test_size
    images = np.ascontiguousarray(centre_crop(images, size))
    probabilities = predictor.engine(images)
    if class_name is None:
        classes = probabilities.argmax(axis=1)
    else:
        classes = np.full(len(images), predictor.class_names.index(class_name))
    maps = explain(predictor.network, images, method=method, stage=stage, classes=classes.tolist())
    for image, heat, chosen, row in zip(images, maps, classes, probabilities, strict=True):
        yield image, enlarged(heat, size), int(chosen), float(row[chosen])
