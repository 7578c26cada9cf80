"""What a prediction rests on, as a picture: the maps of `evaluation/explain.py` laid over the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from resnetlab.atomic import atomic_file
from resnetlab.errors import ResnetlabError, unknown_name
from resnetlab.evaluation.explain import check, explain
from resnetlab.evaluation.logits import centre_crop
from resnetlab.inference.images import ImageInput
from resnetlab.inference.predictor import Predictor

BATCH_SIZE = 16
COLOURS = "viridis"  # perceptually uniform
OPACITY = 0.55  # of the map where it is largest; it is transparent where it is zero


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the prediction of a class for an image rests on.

    Attributes:
        path: of the file; None for an image in memory.
        class_name: the class that is explained.
        probability: of that class.
        image: what the network sees: (size, size, 3) uint8.
        map: (size, size) float32, 1 at its largest; 0 everywhere if no feature is evidence for the class.
        problem: why the image cannot be used; then there is nothing else but the path.
    """

    path: str | None
    class_name: str | None = None
    probability: float | None = None
    image: np.ndarray | None = None
    map: np.ndarray | None = None
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
        with atomic_file(Path(path)) as temporary:
            pair.save(temporary, format="png")


def _overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    colours = 255 * matplotlib.colormaps[COLOURS](heat)[..., :3]
    opacity = OPACITY * heat[..., None]
    return Image.fromarray(np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8))


def overlays(predictor: Predictor, images: np.ndarray, classes: Sequence[int]) -> list[Image.Image]:
    """Images (n, size, size, 3) with the Grad-CAM of these classes over them."""
    maps = explain(predictor.network, images, classes=classes)
    return [_overlay(image, _enlarged(heat, image.shape[0])) for image, heat in zip(images, maps, strict=True)]


def _enlarged(heat: np.ndarray, size: int) -> np.ndarray:
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
) -> Iterator[Explanation]:
    """An explanation of each image, in order; of the predicted class, or of `class_name`.

    Raises:
        UsageError: an unknown method, stage or class, before any image is read.
    """
    if class_name is not None and class_name not in predictor.class_names:
        raise unknown_name("class", str(class_name), predictor.class_names)
    check(predictor.network, method, stage)
    return _explanations(predictor, images, method, stage, class_name)


def _explanations(
    predictor: Predictor, images: Iterable[ImageInput], method: str, stage: str | None, class_name: str | None
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
                yield Explanation(path, predictor.class_names[chosen], probability, image, heat)


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
        yield image, _enlarged(heat, size), int(chosen), float(row[chosen])
