"""RandAugment's operations on the device, as Pillow defines them on 8-bit images, with parameters of `augmentation.py`.

An operation is a blend with a degenerate image, a lookup table of 256 levels, or an affine transform. In each layer an
image passes through one of each kind, at least two of which are identities: cost and memory do not grow with the number
of operations.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from resnetlab import backend
from resnetlab.data.augmentation import LAYERS, OPERATIONS

Tensor = Any

FILL = (124.0, 116.0, 104.0)  # colour outside the image and of erased boxes: the mean colour, as in He 2015
# Pillow truncates. Backends round differently, so this is added before truncation to keep integers unchanged.
ROUNDING = 1e-3


def rand_augment(images: Tensor, operation: Tensor, amount: Tensor, affine: Tensor) -> Tensor:
    """Apply `LAYERS` operations to each image (batch, size, size, 3), 0-255, which is rounded to 8 bits first."""
    x = ops.floor(images + 0.5 + ROUNDING)
    operation = ops.cast(operation, "int32")
    for layer in range(LAYERS):
        chosen, argument = operation[:, layer], amount[:, layer]
        x = blend(x, chosen, argument)
        x = map_levels(x, chosen, argument)
        x = transform(x, affine[:, layer])
    return x


def _is(operation: Tensor, *names: str) -> Tensor:
    """Which images have one of these operations: booleans (batch, 1, 1, 1)."""
    numbers = backend.constant(tuple(OPERATIONS.index(name) for name in names), "int32")
    return ops.reshape(ops.any(operation[:, None] == numbers, axis=1), (-1, 1, 1, 1))


def blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Color, contrast, brightness, sharpness: `PIL.ImageEnhance`, between a degenerate image and the image itself."""
    weights = backend.constant((19595.0, 38470.0, 7471.0), "float32")  # Pillow's luma, of 65536
    grey = ops.floor((ops.sum(images * weights, axis=-1, keepdims=True) + 32768.0) / 65536.0)
    mean = ops.floor(ops.mean(grey, axis=(1, 2), keepdims=True) + 0.5 + ROUNDING)
    degenerate = ops.where(_is(operation, "color"), grey, 0.0)  # of brightness, black
    degenerate = ops.where(_is(operation, "contrast"), mean, degenerate)
    degenerate = ops.where(_is(operation, "sharpness"), _smooth(images), degenerate)
    blends = _is(operation, "color", "contrast", "brightness", "sharpness")
    factor = ops.where(blends, ops.reshape(factor, (-1, 1, 1, 1)), 1.0)
    return ops.floor(ops.clip(degenerate + factor * (images - degenerate), 0.0, 255.0) + ROUNDING)


def _smooth(images: Tensor) -> Tensor:
    """`PIL.ImageFilter.SMOOTH`: 3x3 weights of 1, and 5 in the middle; the border is left as it is."""
    height, width = images.shape[1:3]
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4.0 * images[:, 1:-1, 1:-1]
    inner = ops.pad(ops.floor(total / 13.0 + 0.5), [(0, 0), (1, 1), (1, 1), (0, 0)])
    y, x = ops.arange(height)[:, None, None], ops.arange(width)[None, :, None]
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return ops.where(inside[None], inner, images)


def map_levels(images: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Autocontrast, equalize, invert, posterize, solarize, solarize-add: a table for each image and channel."""
    x = ops.cast(images, "int32")
    batch, height, width, _ = ops.shape(x)
    row = ops.arange(batch, dtype="int32")[:, None, None, None] * 3 + ops.arange(3, dtype="int32")
    index = row * 256 + x  # of each pixel's level in the tables of the batch, one after the other
    count = ops.segment_sum(ops.ones_like(ops.reshape(images, (-1,))), ops.reshape(index, (-1,)), batch * 768)
    histogram = ops.reshape(ops.cast(count, "int32"), (-1, 3, 256))
    argument = ops.reshape(ops.cast(amount, "int32"), (-1, 1, 1))
    level = ops.arange(256, dtype="int32")[None, None]
    low, high = ops.min(x, axis=(1, 2))[..., None], ops.max(x, axis=(1, 2))[..., None]
    above = ops.cumsum(histogram, axis=-1) - histogram  # pixels that are darker than a level
    last = ops.take_along_axis(histogram, high, axis=-1)
    step = (height * width - last) // 255
    kept_bits = ops.take(
        backend.constant(tuple(2**bits for bits in range(8, -1, -1)), "int32"), ops.clip(argument, 0, 8)
    )
    tables = {
        "autocontrast": ops.clip((level - low) * 255 // ops.maximum(high - low, 1), 0, 255),
        "equalize": ops.where(step > 0, ops.minimum((step // 2 + above) // ops.maximum(step, 1), 255), level),
        "invert": 255 - level,
        "posterize": level // kept_bits * kept_bits,
        "solarize": ops.where(level < argument, level, 255 - level),
        "solarize-add": ops.where(level < 128, ops.minimum(level + argument, 255), level),
    }
    tables["autocontrast"] = ops.where(high > low, tables["autocontrast"], level)
    table = ops.broadcast_to(level, ops.shape(histogram))
    for name, levels in tables.items():
        table = ops.where(_is(operation, name)[..., 0], levels, table)
    return ops.cast(ops.take(ops.reshape(table, (-1,)), index), "float32")


def transform(images: Tensor, affine: Tensor) -> Tensor:
    """Rotate, shear, translate: `PIL.Image.transform` with AFFINE and BILINEAR, and `FILL` outside."""
    batch, (height, width) = ops.shape(images)[0], images.shape[1:3]
    a, b, c, d, e, f = (affine[:, i, None, None] for i in range(6))
    x, y = ops.arange(width, dtype="float32") + 0.5, ops.arange(height, dtype="float32")[:, None] + 0.5
    column, row = a * x + b * y + c, d * x + e * y + f  # (batch, height, width)
    inside = (column >= 0.0) & (column < width) & (row >= 0.0) & (row < height)
    left, top = ops.floor(column - 0.5), ops.floor(row - 0.5)
    right_weight, bottom_weight = (column - 0.5 - left)[..., None], (row - 0.5 - top)[..., None]
    pixels = ops.reshape(images, (-1, 3))
    start = ops.arange(batch, dtype="int32")[:, None, None] * (height * width)

    def at(row: Tensor, column: Tensor) -> Tensor:
        row, column = (ops.cast(ops.clip(v, 0, side - 1), "int32") for v, side in ((row, height), (column, width)))
        return ops.take(pixels, start + row * width + column, axis=0)

    upper = at(top, left) * (1.0 - right_weight) + at(top, left + 1.0) * right_weight
    lower = at(top + 1.0, left) * (1.0 - right_weight) + at(top + 1.0, left + 1.0) * right_weight
    read = ops.floor(upper * (1.0 - bottom_weight) + lower * bottom_weight + ROUNDING)
    return ops.where(inside[..., None], read, backend.constant(FILL, "float32"))
