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
ATTEMPTS = 10  # at a box that fits, as in torchvision


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
    drop_rates: tuple[float, ...] = ()  # of the residual branches that stochastic depth drops, from stem to head

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
        if self.drop_rates:
            shapes["keep"] = (len(self.drop_rates),)
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
        areas = augmentation.size**2 * rng.uniform(*ERASE_AREA, (count, ATTEMPTS))
        boxes = _candidates(areas, ERASE_RATIO, rng)
        box, found = _first_that_fits(boxes, augmentation.size, rng, whole=False)
        # An empty box erases nothing.
        draws["erase"] = box * (found & (rng.random(count) < augmentation.erase))[:, None].astype(np.float32)
    own: np.ndarray = np.ones(count, np.float32)
    if augmentation.mixes:
        draws |= _mix(augmentation, count, rng)
        area = draws["paste"][:, 2] * draws["paste"][:, 3] / augmentation.size**2
        own = draws["share"] * (1 - area)
    if augmentation.drop_rates:
        rates = np.array(augmentation.drop_rates)
        draws["keep"] = ((rng.random((count, len(rates))) >= rates) / (1 - rates)).astype(np.float32)
    return draws, own


def _window(augmentation: Augmentation, count: int, rng: Generator) -> np.ndarray:
    """The box of the packed image that becomes the network's input: (count, 4) float32."""
    source, size = augmentation.source_size, augmentation.size
    if augmentation.crop == "resized":
        areas = source**2 * rng.uniform(augmentation.crop_scale, 1.0, (count, ATTEMPTS))
        boxes = _candidates(areas, CROP_RATIO, rng)
        box, found = _first_that_fits(boxes, source, rng, whole=True)
        box[~found] = (0, 0, source, source)  # of a square, the central crop is all of it
    else:
        box = np.full((count, 4), size, np.float32)
        reach = augmentation.crop_padding if augmentation.crop == "pad" else 0
        box[:, :2] = (source - size) // 2 + rng.integers(-reach, reach + 1, (count, 2))
    if augmentation.flip:
        mirrored = rng.random(count) < 0.5
        box[mirrored, 1] += box[mirrored, 3]
        box[mirrored, 3] *= -1
    return box


def _candidates(area: np.ndarray, ratios: tuple[float, float], rng: Generator) -> np.ndarray:
    """(height, width) of boxes of these areas (n, attempts), whose width / height is log-uniform between `ratios`."""
    ratio = np.exp(rng.uniform(np.log(ratios[0]), np.log(ratios[1]), area.shape))
    return np.rint(np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=-1))  # (n, attempts, 2)


def _first_that_fits(sizes: np.ndarray, side: int, rng: Generator, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """The first of each row's boxes (n, attempts, 2) that fits a square, at a uniform place; and whether one fits.

    `whole` allows a box as large as the square. As torchvision draws crops and erased boxes: ten attempts, then none.
    """
    fits = np.all((sizes >= 1) & (sizes <= side if whole else sizes < side), axis=-1)  # (n, attempts)
    chosen = sizes[np.arange(len(sizes)), fits.argmax(axis=1)]  # (n, 2)
    corner = np.floor(rng.random((len(sizes), 2)) * np.maximum(side - chosen + 1, 1))
    return np.concatenate([corner, chosen], axis=1).astype(np.float32), fits.any(axis=1)


def _cutmix_box(fraction: np.ndarray, side: int, rng: Generator) -> np.ndarray:
    """Square boxes of this fraction of the area, centred uniformly and clipped at the border (Yun 2019)."""
    count, half = len(fraction), np.floor(side * np.sqrt(fraction))[:, None] // 2
    centre = np.floor(rng.random((count, 2)) * side)
    low, high = np.clip(centre - half, 0, side), np.clip(centre + half, 0, side)
    return np.concatenate([low, high - low], axis=1).astype(np.float32)


def _mix(augmentation: Augmentation, count: int, rng: Generator) -> Draws:
    """Mixup (Zhang 2017, arXiv:1710.09412) or CutMix (Yun 2019, arXiv:1905.04899), by one coin for the whole batch."""
    share, paste = np.ones(count, np.float32), np.zeros((count, 4), np.float32)
    cuts = rng.random() < 0.5 if augmentation.mixup and augmentation.cutmix else augmentation.cutmix > 0
    if cuts:
        fraction = 1 - rng.beta(augmentation.cutmix, augmentation.cutmix, count)
        paste = _cutmix_box(fraction, augmentation.size, rng)
    else:
        share = rng.beta(augmentation.mixup, augmentation.mixup, count).astype(np.float32)
    return {"partner": rng.permutation(count).astype(np.int32), "share": share, "paste": paste}
