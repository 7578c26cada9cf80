"""The host's half of augmentation: what is to be done to each image of a batch, drawn as small arrays.

Everything is a pure function of the generator it is given; `augment.py` applies the draws on the device.
Boxes are (top, left, height, width) in pixels. A negative width mirrors the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Draws = dict[str, np.ndarray]
Generator = np.random.Generator

CROP_RATIO = (3 / 4, 4 / 3)  # width / height of a random resized crop (Szegedy 2014, arXiv:1409.4842)
ERASE_AREA, ERASE_RATIO = (0.02, 1 / 3), (0.3, 3.3)  # Zhong 2017, arXiv:1708.04896


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which draws a recipe asks for. `source_size` is the side of the packed images, `size` that of the network's."""

    source_size: int
    size: int
    crop: str = "none"  # "none": the centre; "pad": shifted by up to crop_padding; "resized": a random window
    crop_padding: int = 0
    crop_scale: float = 1.0
    flip: bool = False
    color_jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def resamples(self) -> bool:
        return self.crop != "none" or self.flip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape, without the batch axis, of each draw that `draw` makes."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.resamples:
            shapes["window"] = (4,)
        if self.color_jitter:
            shapes["color"] = (3,)
        if self.erase:
            shapes["erase"] = (4,)
        if self.mixes:
            shapes |= {"partner": (), "share": (), "paste": (4,)}
        return shapes


def draw(augmentation: Augmentation, count: int, rng: Generator) -> tuple[Draws, np.ndarray]:
    """Draws for `count` images, and the share (count,) of each image's own label in its target."""
    draws: Draws = {}
    if augmentation.resamples:
        draws["window"] = _window(augmentation, count, rng)
    if augmentation.color_jitter:
        low, high = 1 - augmentation.color_jitter, 1 + augmentation.color_jitter
        draws["color"] = rng.uniform(low, high, (count, 3)).astype(np.float32)
    if augmentation.erase:
        box = _box_of_area(rng.uniform(*ERASE_AREA, count), ERASE_RATIO, augmentation.size, rng)
        draws["erase"] = box * (rng.random((count, 1)) < augmentation.erase)  # an empty box erases nothing
    own: np.ndarray = np.ones(count, np.float32)
    if augmentation.mixes:
        draws |= _mix(augmentation, count, rng)
        area = draws["paste"][:, 2] * draws["paste"][:, 3] / augmentation.size**2
        own = draws["share"] * (1 - area)
    return draws, own


def _window(augmentation: Augmentation, count: int, rng: Generator) -> np.ndarray:
    """The box of the packed image that becomes the network's input: (count, 4) float32."""
    source, size = augmentation.source_size, augmentation.size
    if augmentation.crop == "resized":
        area = rng.uniform(augmentation.crop_scale, 1.0, count)
        box = _box_of_area(area, CROP_RATIO, source, rng)
    else:
        box = np.full((count, 4), size, np.float32)
        reach = augmentation.crop_padding if augmentation.crop == "pad" else 0
        box[:, :2] = (source - size) // 2 + rng.integers(-reach, reach + 1, (count, 2))
    if augmentation.flip:
        mirrored = rng.random(count) < 0.5
        box[mirrored, 1] += box[mirrored, 3]
        box[mirrored, 3] *= -1
    return box


def _box_of_area(area: np.ndarray, ratios: tuple[float, float], side: int, rng: Generator) -> np.ndarray:
    """Boxes that lie inside a square: shares of its area, log-uniform aspect ratios, uniform places, whole pixels."""
    count = len(area)
    ratio = np.exp(rng.uniform(np.log(ratios[0]), np.log(ratios[1]), count))
    height = np.clip(np.rint(side * np.sqrt(area / ratio)), 1, side)
    width = np.clip(np.rint(side * np.sqrt(area * ratio)), 1, side)
    top = np.floor(rng.random(count) * (side - height + 1))
    left = np.floor(rng.random(count) * (side - width + 1))
    return np.stack([top, left, height, width], axis=1).astype(np.float32)


def _mix(augmentation: Augmentation, count: int, rng: Generator) -> Draws:
    """Mixup (Zhang 2017, arXiv:1710.09412) or CutMix (Yun 2019, arXiv:1905.04899), by one coin for the whole batch."""
    share, paste = np.ones(count, np.float32), np.zeros((count, 4), np.float32)
    cuts = rng.random() < 0.5 if augmentation.mixup and augmentation.cutmix else augmentation.cutmix > 0
    if cuts:
        area = 1 - rng.beta(augmentation.cutmix, augmentation.cutmix, count)
        paste = _box_of_area(area, (1.0, 1.0), augmentation.size, rng)
    else:
        share = rng.beta(augmentation.mixup, augmentation.mixup, count).astype(np.float32)
    return {"partner": rng.permutation(count).astype(np.int32), "share": share, "paste": paste}
