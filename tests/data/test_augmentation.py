"""What is drawn on the host: within bounds, distributed as the papers' code has it, a function of the generator alone.

The references are loops as torchvision, timm and the CutMix paper's code write them, on Python's own generator.
"""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from resnetlab.data.augmentation import CROP_RATIO, ERASE_AREA, Augmentation, sample_parameters

COUNT = 4000
ALL = Augmentation(
    source_size=37,
    size=32,
    crop="resized",
    crop_scale=0.25,
    flip=True,
    rand_augment=6.0,
    color_jitter=0.3,
    erase=0.5,
    mixup=0.2,
    cutmix=1.0,
)
PLAIN = Augmentation(source_size=32, size=32, flip=False)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def upright(window: np.ndarray) -> np.ndarray:
    """Windows with their mirroring undone."""
    top, left, height, width = window.T
    return np.stack([top, left + np.minimum(width, 0), height, np.abs(width)], axis=1)


def assert_inside(box: np.ndarray, side: int) -> None:
    top, left, height, width = box.T
    np.testing.assert_array_equal(box, np.rint(box))
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + height).max() <= side
    assert (left + width).max() <= side


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"crop": "pad", "crop_padding": 3}])
def test_draws_have_the_shapes_that_are_declared(changes: dict[str, object]) -> None:
    augmentation = replace(ALL, **changes)
    parameters, own = sample_parameters(augmentation, 5, rng())
    assert {name: array.shape[1:] for name, array in parameters.items()} == augmentation.shapes()
    integers = {"permutation", "operation"}
    assert {array.dtype for name, array in parameters.items() if name not in integers} == {np.dtype(np.float32)}
    assert {parameters[name].dtype for name in integers} == {np.dtype(np.int32)}
    assert own.shape == (5,)


def test_without_augmentation_nothing_is_drawn() -> None:
    parameters, own = sample_parameters(PLAIN, 5, rng())
    assert parameters == {}
    assert PLAIN.shapes() == {}
    np.testing.assert_array_equal(own, 1)


def test_the_same_generator_draws_the_same() -> None:
    (first, own_first), (second, own_second) = sample_parameters(ALL, 8, rng(1)), sample_parameters(ALL, 8, rng(1))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(own_first, own_second)
    assert (sample_parameters(ALL, 8, rng(2))[0]["window"] != first["window"]).any()


def test_resized_windows_lie_inside_with_the_area_and_ratio_asked_for() -> None:
    window = sample_parameters(ALL, COUNT, rng())[0]["window"]
    box = upright(window)
    assert_inside(box, 37)
    area, ratio = box[:, 2] * box[:, 3] / 37**2, box[:, 3] / box[:, 2]
    assert 0.22 < area.min() < 0.3  # whole pixels
    assert 0.95 < area.max() <= 1.0
    assert ratio.min() > CROP_RATIO[0] * 0.93
    assert ratio.max() < CROP_RATIO[1] * 1.07
    assert np.log(ratio).mean() == pytest.approx(0.0, abs=0.02)


def test_half_of_the_windows_are_mirrored() -> None:
    window = sample_parameters(ALL, COUNT, rng())[0]["window"]
    assert (window[:, 3] < 0).mean() == pytest.approx(0.5, abs=0.04)
    assert (sample_parameters(replace(ALL, flip=False), COUNT, rng())[0]["window"][:, 3] > 0).all()


def test_pad_crops_are_whole_shifts_in_every_direction() -> None:
    pad = replace(PLAIN, crop="pad", crop_padding=2)
    window = sample_parameters(pad, COUNT, rng())[0]["window"]
    np.testing.assert_array_equal(window[:, 2:], 32)
    shifts, counts = np.unique(window[:, :2], axis=0, return_counts=True)
    np.testing.assert_array_equal(shifts, [(y, x) for y in range(-2, 3) for x in range(-2, 3)])
    assert counts.min() > COUNT / 25 * 0.6


def test_a_flip_alone_keeps_the_centre() -> None:
    window = upright(sample_parameters(replace(PLAIN, source_size=36, flip=True), 50, rng())[0]["window"])
    np.testing.assert_array_equal(window, np.tile([2, 2, 32, 32], (50, 1)))


def test_colour_factors_are_uniform_around_one() -> None:
    color = sample_parameters(ALL, COUNT, rng())[0]["color"]
    assert color.min() >= np.float32(0.7)
    assert color.max() <= np.float32(1.3)
    np.testing.assert_allclose(color.mean(0), 1.0, atol=0.012)
    np.testing.assert_allclose(color.std(0), 0.6 / np.sqrt(12), atol=0.005)


def test_erase_boxes_lie_inside_as_often_as_asked_for() -> None:
    box = sample_parameters(ALL, COUNT, rng())[0]["erase"]
    erased = box[:, 2] > 0
    assert erased.mean() == pytest.approx(0.5, abs=0.04)
    np.testing.assert_array_equal(box[~erased], 0)
    assert_inside(box[erased], 32)
    area = (box[erased, 2] * box[erased, 3]) / 32**2
    assert ERASE_AREA[0] * 0.5 < area.min()
    assert area.max() < ERASE_AREA[1] * 1.2


def test_mixup_alone_shares_by_the_beta_distribution() -> None:
    parameters, own = sample_parameters(replace(ALL, cutmix=0.0), COUNT, rng())
    np.testing.assert_array_equal(np.sort(parameters["permutation"]), np.arange(COUNT))
    np.testing.assert_array_equal(parameters["paste"], 0)
    np.testing.assert_array_equal(own, parameters["fraction"])
    assert own.mean() == pytest.approx(0.5, abs=0.03)
    assert own.var() == pytest.approx(0.25 / (2 * 0.2 + 1), rel=0.05)  # of beta(a, a)


def test_cutmix_alone_shares_by_the_pasted_area() -> None:
    parameters, own = sample_parameters(replace(ALL, mixup=0.0), COUNT, rng())
    np.testing.assert_array_equal(np.sort(parameters["permutation"]), np.arange(COUNT))
    np.testing.assert_array_equal(parameters["fraction"], 1)
    assert_inside(parameters["paste"], 32)
    np.testing.assert_allclose(own, 1 - parameters["paste"][:, 2] * parameters["paste"][:, 3] / 32**2, rtol=1e-6)


def test_mixup_and_cutmix_take_turns_by_batch() -> None:
    kinds = []
    for seed in range(100):
        parameters, _ = sample_parameters(ALL, 4, rng(seed))
        cut, mixed = (parameters["paste"][:, 2] > 0).any(), (parameters["fraction"] < 1).any()
        assert cut != mixed
        kinds.append(cut)
    assert 30 < sum(kinds) < 70


MANY = 100_000


def torchvision_crop(
    full_height: int, full_width: int, scale: tuple[float, float], source: random.Random
) -> tuple[int, int, int, int]:
    """`torchvision.transforms.RandomResizedCrop.get_params`: (top, left, height, width)."""
    for _ in range(10):
        area = full_height * full_width * source.uniform(*scale)
        ratio = math.exp(source.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            return source.randint(0, full_height - height), source.randint(0, full_width - width), height, width
    height, width = full_height, full_width  # the largest centre crop whose aspect ratio is in range
    if full_width / full_height < 3 / 4:
        height = round(full_width / (3 / 4))
    elif full_width / full_height > 4 / 3:
        width = round(full_height * (4 / 3))
    return (full_height - height) // 2, (full_width - width) // 2, height, width


def timm_erasing(side: int, source: random.Random) -> tuple[int, int, int, int]:
    """`timm.data.RandomErasing` of a square image, with its default area and aspect ratio."""
    for _ in range(10):
        area = source.uniform(0.02, 1 / 3) * side * side
        ratio = math.exp(source.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width < side and height < side:
            return source.randint(0, side - height), source.randint(0, side - width), height, width
    return 0, 0, 0, 0


def cutmix_box(side: int, source: random.Random) -> tuple[int, int, int, int]:
    """`rand_bbox` of the CutMix paper's code, with its lambda of beta(1, 1)."""
    cut = int(side * math.sqrt(1.0 - source.betavariate(1.0, 1.0)))
    y, x = source.randrange(side), source.randrange(side)
    top, bottom = (min(max(edge, 0), side) for edge in (y - cut // 2, y + cut // 2))
    left, right = (min(max(edge, 0), side) for edge in (x - cut // 2, x + cut // 2))
    return top, left, bottom - top, right - left


def statistics(box: np.ndarray, side: int) -> dict[str, float]:
    """Means over boxes: the area, and how often the centre, the middle of an edge and a corner are covered."""
    top, left, height, width = box.T.astype(float)

    def covers(y: int, x: int) -> float:
        return float(((top <= y) & (y < top + height) & (left <= x) & (x < left + width)).mean())

    kept = (height > 0) & (width > 0)
    return {
        "area": float((height * width).mean() / side**2),
        "width": float(width.mean() / side),
        "height": float(height.mean() / side),
        "aspect": float((width[kept] / height[kept]).mean()),
        "centre": covers(side // 2, side // 2),
        "edge": sum(covers(y, x) for y, x in ((0, side // 2), (side - 1, side // 2), (side // 2, 0))) / 3,
        "corner": sum(covers(y, x) for y in (0, side - 1) for x in (0, side - 1)) / 4,
    }


def assert_alike(received: np.ndarray, expected: np.ndarray, side: int) -> None:
    """Within 1 % of the reference; how often an edge or a corner is covered, within its noise where that is more."""
    found, wanted = statistics(received, side), statistics(expected, side)
    for name, value in wanted.items():
        rare = name in ("edge", "corner")
        noise = 3.5 * math.sqrt(2 * value * (1 - value) / MANY) if rare else 0.0  # of the difference of two frequencies
        assert found[name] == pytest.approx(value, abs=max(0.01 * value, noise)), name


@pytest.mark.parametrize("scale", [0.08, 0.35, 0.9])
def test_resized_crops_are_distributed_as_torchvisions(scale: float) -> None:
    augmentation = replace(PLAIN, source_size=256, size=224, crop="resized", crop_scale=scale)
    source = random.Random(0)
    expected = np.array([torchvision_crop(256, 256, (scale, 1.0), source) for _ in range(MANY)])
    received = sample_parameters(augmentation, MANY, rng())[0]["window"]
    assert_inside(received, 256)
    assert_alike(received, expected, 256)
    whole = (expected == (0, 0, 256, 256)).all(axis=1).mean()
    assert (received == (0, 0, 256, 256)).all(axis=1).mean() == pytest.approx(whole, abs=0.003)


@pytest.mark.parametrize(("height", "width"), [(256, 384), (512, 256)])
@pytest.mark.parametrize("scale", [0.08, 0.9])
def test_crops_of_whole_images_are_distributed_as_torchvisions(height: int, width: int, scale: float) -> None:
    augmentation = replace(PLAIN, source_size=256, size=224, crop="resized", crop_scale=scale)
    source = random.Random(0)
    expected = np.array([torchvision_crop(height, width, (scale, 1.0), source) for _ in range(MANY)])
    received = sample_parameters(augmentation, MANY, rng(), np.full(MANY, width / height))[0]["window"]
    unsqueezed = received * np.array([height, width, height, width]) / 256
    np.testing.assert_allclose(unsqueezed, np.rint(unsqueezed), atol=1e-3)
    unsqueezed = np.rint(unsqueezed)
    for name in ("area", "aspect"):
        found, wanted = (
            (box[:, 2] * box[:, 3] if name == "area" else box[:, 3] / box[:, 2]).mean()
            for box in (unsqueezed, expected)
        )
        assert found == pytest.approx(wanted, rel=0.01)
    for y, x in ((height // 2, width // 2), (0, 0), (height - 1, width // 2), (height // 2, 0)):
        found, wanted = (
            ((t <= y) & (y < t + h) & (left <= x) & (x < left + w)).mean()
            for t, left, h, w in (unsqueezed.T, expected.T)
        )
        assert found == pytest.approx(wanted, abs=0.005)


def test_a_crop_of_the_whole_area_that_never_fits_is_the_whole_image() -> None:
    augmentation = replace(PLAIN, source_size=256, size=224, crop="resized", crop_scale=1.0)
    window = sample_parameters(augmentation, COUNT, rng())[0]["window"]
    assert (window == (0, 0, 256, 256)).all(axis=1).mean() > 0.9


def test_cutmix_boxes_are_distributed_as_the_papers() -> None:
    source = random.Random(0)
    expected = np.array([cutmix_box(224, source) for _ in range(MANY)])
    parameters, own = sample_parameters(replace(PLAIN, source_size=224, size=224, cutmix=1.0), MANY, rng())
    assert_inside(parameters["paste"], 224)
    assert_alike(parameters["paste"], expected, 224)
    assert 1 - own.mean() == pytest.approx((expected[:, 2] * expected[:, 3]).mean() / 224**2, rel=0.01)


def test_erased_boxes_are_distributed_as_timms() -> None:
    source = random.Random(0)
    expected = np.array([timm_erasing(224, source) for _ in range(MANY)])
    parameters, _ = sample_parameters(replace(PLAIN, source_size=224, size=224, erase=1.0), MANY, rng())
    assert_alike(parameters["erase"], expected, 224)


@pytest.mark.parametrize("size", [4, 5, 8])  # where most attempts do not fit, or are empty
def test_boxes_lie_inside_images_of_any_size(size: int) -> None:
    augmentation = Augmentation(
        source_size=size,
        size=size,
        crop="resized",
        crop_scale=0.01,
        erase=1.0,
        cutmix=1.0,
        rand_augment=6.0,
        flip=False,
    )
    parameters, own = sample_parameters(augmentation, COUNT, rng())
    for name in ("window", "erase", "paste"):
        assert_inside(parameters[name], size)
    assert parameters["window"][:, 2:].min() >= 1
    assert own.min() >= 0
