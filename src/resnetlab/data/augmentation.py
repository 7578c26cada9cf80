"""Augmentation on the host: sample the parameters for each image of a batch, as small arrays.

Everything is a pure function of the generator it is given; `augment.py` applies them on the device.
Boxes are (top, left, height, width) in pixels. A negative width mirrors the box.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from resnetlab.recipes import BASE, Recipe

Parameters = dict[str, np.ndarray]
Generator = np.random.Generator

CROP_RATIO = (3 / 4, 4 / 3)  # width / height of a random resized crop (Szegedy 2014, arXiv:1409.4842)
ERASE_AREA, ERASE_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong 2017, arXiv:1708.04896; the area as timm has it
ATTEMPTS = 10  # boxes that are tried before the fallback, as in torchvision and timm

# RandAugment (Cubuk 2019, arXiv:1909.13719) as timm's "rand-mM-mstd0.5-inc1", which Wightman 2021 trained with.
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize-add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)
LAYERS = 2  # operations per image; below: their probability, the std of their magnitude, and its maximum
OPERATION_PROBABILITY, MAGNITUDE_STD, MAGNITUDE_MAX = 0.5, 0.5, 10.0


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation settings of a recipe; `Recipe` documents the fields and has the same defaults.

    `source_size` is the side of the packed images, `size` that of the network's input.
    """

    source_size: int
    size: int
    crop: str = BASE.crop
    crop_padding: int = BASE.crop_padding
    crop_border: str = BASE.crop_border
    crop_scale: float = BASE.crop_scale
    flip: bool | str = BASE.flip
    rand_augment: float = BASE.rand_augment
    color_jitter: float = BASE.color_jitter
    erase: float = BASE.erase
    mixup: float = BASE.mixup
    cutmix: float = BASE.cutmix
    drop_rates: tuple[float, ...] = ()  # of the residual branches that stochastic depth drops, from stem to head

    @classmethod
    def of(cls, recipe: Recipe, *, drop_rates: tuple[float, ...] = ()) -> Augmentation:
        """The augmentation of a recipe."""
        shared = {field.name: getattr(recipe, field.name) for field in fields(cls) if hasattr(recipe, field.name)}
        return cls(source_size=recipe.pack_size, size=recipe.image_size, drop_rates=drop_rates, **shared)

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def resamples(self) -> bool:
        return self.crop != "none" or bool(self.flip)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape, without the batch axis, of each array of `sample_parameters`."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.resamples:
            shapes["window"] = (4,)
        if self.rand_augment:
            shapes |= {"operation": (LAYERS,), "amount": (LAYERS,), "affine": (LAYERS, 6)}
        if self.color_jitter:
            shapes["color"] = (3,)
        if self.erase:
            shapes["erase"] = (4,)
        if self.mixes:
            shapes |= {"permutation": (), "fraction": (), "paste": (4,)}
        if self.drop_rates:
            shapes["keep"] = (len(self.drop_rates),)
        return shapes


def sample_parameters(
    augmentation: Augmentation,
    count: int,
    rng: Generator,
    aspect: np.ndarray | None = None,
    mirrored: np.ndarray | None = None,
    groups: int = 1,
) -> tuple[Parameters, np.ndarray]:
    """Augmentation parameters of `count` images, and the fraction (count,) of each image's own label in its target.

    `aspect` (count,) is the width / height of images that were squeezed to squares; None where they were not.
    `mirrored` (count,) states which images are mirrored; None where that is random. Images are mixed with others of
    their group, of so many equal `groups`; "permutation" has their numbers in it.
    """
    parameters: Parameters = {}
    if augmentation.resamples:
        parameters["window"] = window = _window(augmentation, count, aspect, rng)
        if augmentation.flip:
            chosen = rng.random(count) < 0.5 if mirrored is None else mirrored
            window[chosen, 1] += window[chosen, 3]
            window[chosen, 3] *= -1
    if augmentation.rand_augment:
        parameters |= _rand_augment(augmentation, count, rng)
    if augmentation.color_jitter:
        low, high = 1 - augmentation.color_jitter, 1 + augmentation.color_jitter
        parameters["color"] = rng.uniform(low, high, (count, 3)).astype(np.float32)
    if augmentation.erase:
        side = np.full(count, augmentation.size)
        box, fits = _first_fitting_box(ERASE_AREA, ERASE_RATIO, side, side, rng, most=augmentation.size - 1)
        erased = fits & (rng.random(count) < augmentation.erase)
        parameters["erase"] = box * erased[:, None]  # an empty box erases nothing
    own: np.ndarray = np.ones(count, np.float32)
    if augmentation.mixes:
        parameters |= _mix(augmentation, count, rng, groups)
        area = parameters["paste"][:, 2] * parameters["paste"][:, 3] / augmentation.size**2
        own = parameters["fraction"] * (1 - area)
    if augmentation.drop_rates:
        rates = np.array(augmentation.drop_rates)
        parameters["keep"] = ((rng.random((count, len(rates))) >= rates) / (1 - rates)).astype(np.float32)
    return parameters, own


def _window(augmentation: Augmentation, count: int, aspect: np.ndarray | None, rng: Generator) -> np.ndarray:
    """The box of the packed image that becomes the network's input: (count, 4) float32."""
    source, size = augmentation.source_size, augmentation.size
    if augmentation.crop == "resized":
        box = _resized_crop(augmentation, count, np.ones(count) if aspect is None else aspect, rng)
    else:
        box = np.full((count, 4), size, np.float32)
        reach = augmentation.crop_padding if augmentation.crop == "pad" else 0
        box[:, :2] = (source - size) // 2 + rng.integers(-reach, reach + 1, (count, 2))
    return box


def _resized_crop(augmentation: Augmentation, count: int, aspect: np.ndarray, rng: Generator) -> np.ndarray:
    """Random resized crops as torchvision's `RandomResizedCrop.get_params` samples them: (count, 4) float32.

    A crop is sampled in an image of the original aspect ratio (count,) whose shorter side is that of the packed image,
    and then converted to pixels of the packed image, a square that the whole image was squeezed to. If no attempt fits,
    the fallback is the largest centre crop with an aspect ratio in `CROP_RATIO`.
    """
    side = augmentation.source_size
    height, width = np.rint(side * np.maximum(1 / aspect, 1)), np.rint(side * np.maximum(aspect, 1))
    box, fits = _first_fitting_box((augmentation.crop_scale, 1.0), CROP_RATIO, height, width, rng)
    h, w = np.minimum(height, np.rint(width / CROP_RATIO[0])), np.minimum(width, np.rint(height * CROP_RATIO[1]))
    fallback = np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)
    squeezed = side / np.stack([height, width, height, width], axis=1)
    return (np.where(fits[:, None], box, fallback) * squeezed).astype(np.float32)


def _first_fitting_box(
    area: tuple[float, float],
    ratio: tuple[float, float],
    height: np.ndarray,
    width: np.ndarray,
    rng: Generator,
    *,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The first of `ATTEMPTS` boxes that fits each image, and whether one does: (count, 4) float32, (count,) bool.

    A box has a uniform fraction of the image's area, a log-uniform aspect ratio (width / height), whole pixels and a
    uniform place. `most` is the longest side that a box may have. All attempts are sampled at once, so that the
    number of random values does not depend on how many are needed.
    """
    shape = (len(height), ATTEMPTS)
    areas = rng.uniform(*area, shape) * (height * width)[:, None]
    ratios = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), shape))
    heights, widths = np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))
    place = rng.random((2, len(height)))
    fits = (heights > 0) & (widths > 0) & (heights <= height[:, None]) & (widths <= width[:, None])
    if most is not None:
        fits &= (heights <= most) & (widths <= most)
    rows, first = np.arange(len(height)), fits.argmax(axis=1)
    h, w = heights[rows, first], widths[rows, first]
    top, left = np.floor(place[0] * (height - h + 1)), np.floor(place[1] * (width - w + 1))
    return np.stack([top, left, h, w], axis=1).astype(np.float32), fits.any(axis=1)


def _rand_augment(augmentation: Augmentation, count: int, rng: Generator) -> Parameters:
    """Operations (count, LAYERS) with their arguments, and affine maps (a, b, c, d, e, f) as Pillow has them.

    An output pixel (x, y) is read at (a x + b y + c, d x + e y + f). The arguments are those of timm's
    `_RAND_INCREASING_TRANSFORMS`: degrees, bits that are kept, thresholds, summands, blending factors, and shears and
    translations as fractions of the image's side.
    """
    shape, size = (count, LAYERS), augmentation.size
    operation = rng.integers(1, len(OPERATIONS), shape) * (rng.random(shape) < OPERATION_PROBABILITY)
    magnitude = np.clip(rng.normal(augmentation.rand_augment, MAGNITUDE_STD, shape), 0.0, MAGNITUDE_MAX)
    level = magnitude / MAGNITUDE_MAX
    signed = level * np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    arguments = {
        "rotate": 30.0 * signed,
        "posterize": 4 - np.floor(4 * level),
        "solarize": 256 - np.floor(256 * level),
        "solarize-add": np.floor(110 * level),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), np.maximum(0.1, 1.0 + 0.9 * signed)),
        **dict.fromkeys(("shear-x", "shear-y"), 0.3 * signed),
        **dict.fromkeys(("translate-x", "translate-y"), 0.45 * signed),
    }
    amount = np.select([operation == OPERATIONS.index(name) for name in arguments], list(arguments.values()), 0.0)

    def of(name: str) -> np.ndarray:
        return amount * (operation == OPERATIONS.index(name))

    angle, centre = np.radians(of("rotate")), size / 2
    cos, sin = np.cos(angle), np.sin(angle)
    affine = [
        cos,
        of("shear-x") - sin,
        of("translate-x") * size + centre * (1 - cos + sin),
        of("shear-y") + sin,
        cos,
        of("translate-y") * size + centre * (1 - cos - sin),
    ]
    return {
        "operation": operation.astype(np.int32),
        "amount": amount.astype(np.float32),
        "affine": np.stack(affine, axis=-1).astype(np.float32),
    }


def _mix(augmentation: Augmentation, count: int, rng: Generator, groups: int) -> Parameters:
    """Mixup (Zhang 2017, arXiv:1710.09412) or CutMix (Yun 2019, arXiv:1905.04899), one of them for a whole batch."""
    fraction, paste = np.ones(count, np.float32), np.zeros((count, 4), np.float32)
    cuts = rng.random() < 0.5 if augmentation.mixup and augmentation.cutmix else augmentation.cutmix > 0
    if cuts:
        paste = _cutmix_box(rng.beta(augmentation.cutmix, augmentation.cutmix, count), augmentation.size, rng)
    else:
        fraction = rng.beta(augmentation.mixup, augmentation.mixup, count).astype(np.float32)
    permutation = np.concatenate([rng.permutation(count // groups) for _ in range(groups)])
    return {"permutation": permutation.astype(np.int32), "fraction": fraction, "paste": paste}


def _cutmix_box(own: np.ndarray, size: int, rng: Generator) -> np.ndarray:
    """CutMix's boxes (count, 4) float32: uniform centres over the whole image, clipped at its borders (`rand_bbox`).

    `own` (count,) is the fraction that each image would keep of itself if nothing were clipped.
    """
    half = np.floor(size * np.sqrt(1 - own)).astype(int)[:, None] // 2
    centre = rng.integers(0, size, (len(own), 2))
    start, end = np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)
    return np.concatenate([start, end - start], axis=1).astype(np.float32)
