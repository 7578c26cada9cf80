"""What is drawn on the host: within bounds, distributed as the papers say, a function of the generator alone."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from resnetlab.data.draws import CROP_RATIO, ERASE_AREA, Augmentation, draw

COUNT = 4000
ALL = Augmentation(
    source_size=37,
    size=32,
    crop="resized",
    crop_scale=0.25,
    flip=True,
    color_jitter=0.3,
    erase=0.5,
    mixup=0.2,
    cutmix=1.0,
)
PLAIN = Augmentation(source_size=32, size=32)


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
    draws, own = draw(augmentation, 5, rng())
    assert {name: array.shape[1:] for name, array in draws.items()} == augmentation.shapes()
    assert {array.dtype for name, array in draws.items() if name != "partner"} == {np.dtype(np.float32)}
    assert draws["partner"].dtype == np.int32
    assert own.shape == (5,)


def test_without_augmentation_nothing_is_drawn() -> None:
    draws, own = draw(PLAIN, 5, rng())
    assert draws == {}
    assert PLAIN.shapes() == {}
    np.testing.assert_array_equal(own, 1)


def test_the_same_generator_draws_the_same() -> None:
    (first, own_first), (second, own_second) = draw(ALL, 8, rng(1)), draw(ALL, 8, rng(1))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(own_first, own_second)
    assert (draw(ALL, 8, rng(2))[0]["window"] != first["window"]).any()


def test_resized_windows_lie_inside_with_the_area_and_ratio_asked_for() -> None:
    window = draw(ALL, COUNT, rng())[0]["window"]
    box = upright(window)
    assert_inside(box, 37)
    area, ratio = box[:, 2] * box[:, 3] / 37**2, box[:, 3] / box[:, 2]
    assert 0.22 < area.min() < 0.3  # whole pixels
    assert 0.95 < area.max() <= 1.0
    assert ratio.min() > CROP_RATIO[0] * 0.93
    assert ratio.max() < CROP_RATIO[1] * 1.07
    assert np.log(ratio).mean() == pytest.approx(0.0, abs=0.02)


def test_half_of_the_windows_are_mirrored() -> None:
    window = draw(ALL, COUNT, rng())[0]["window"]
    assert (window[:, 3] < 0).mean() == pytest.approx(0.5, abs=0.04)
    assert (draw(replace(ALL, flip=False), COUNT, rng())[0]["window"][:, 3] > 0).all()


def test_pad_crops_are_whole_shifts_in_every_direction() -> None:
    pad = replace(PLAIN, crop="pad", crop_padding=2)
    window = draw(pad, COUNT, rng())[0]["window"]
    np.testing.assert_array_equal(window[:, 2:], 32)
    shifts, counts = np.unique(window[:, :2], axis=0, return_counts=True)
    np.testing.assert_array_equal(shifts, [(y, x) for y in range(-2, 3) for x in range(-2, 3)])
    assert counts.min() > COUNT / 25 * 0.6


def test_a_flip_alone_keeps_the_centre() -> None:
    window = upright(draw(replace(PLAIN, source_size=36, flip=True), 50, rng())[0]["window"])
    np.testing.assert_array_equal(window, np.tile([2, 2, 32, 32], (50, 1)))


def test_colour_factors_are_uniform_around_one() -> None:
    color = draw(ALL, COUNT, rng())[0]["color"]
    assert color.min() >= np.float32(0.7)
    assert color.max() <= np.float32(1.3)
    np.testing.assert_allclose(color.mean(0), 1.0, atol=0.012)
    np.testing.assert_allclose(color.std(0), 0.6 / np.sqrt(12), atol=0.005)


def test_erase_boxes_lie_inside_as_often_as_asked_for() -> None:
    box = draw(ALL, COUNT, rng())[0]["erase"]
    erased = box[:, 2] > 0
    assert erased.mean() == pytest.approx(0.5, abs=0.04)  # of ten attempts one fits
    np.testing.assert_array_equal(box[~erased], 0)
    assert_inside(box[erased], 32)
    area = (box[erased, 2] * box[erased, 3]) / 32**2
    assert ERASE_AREA[0] * 0.5 < area.min()
    assert area.max() < ERASE_AREA[1] * 1.2


def test_mixup_alone_shares_by_the_beta_distribution() -> None:
    draws, own = draw(replace(ALL, cutmix=0.0), COUNT, rng())
    np.testing.assert_array_equal(np.sort(draws["partner"]), np.arange(COUNT))
    np.testing.assert_array_equal(draws["paste"], 0)
    np.testing.assert_array_equal(own, draws["share"])
    assert own.mean() == pytest.approx(0.5, abs=0.03)
    assert own.var() == pytest.approx(0.25 / (2 * 0.2 + 1), rel=0.05)  # of beta(a, a)


def test_cutmix_alone_shares_by_the_pasted_area() -> None:
    draws, own = draw(replace(ALL, mixup=0.0), COUNT, rng())
    np.testing.assert_array_equal(np.sort(draws["partner"]), np.arange(COUNT))
    np.testing.assert_array_equal(draws["share"], 1)
    assert_inside(draws["paste"], 32)
    np.testing.assert_allclose(own, 1 - draws["paste"][:, 2] * draws["paste"][:, 3] / 32**2, rtol=1e-6)
    assert own.mean() > 0.6  # of a uniform fraction of .5, what lies outside is clipped


def test_mixup_and_cutmix_take_turns_by_batch() -> None:
    kinds = []
    for seed in range(100):
        draws, _ = draw(ALL, 4, rng(seed))
        cut, mixed = (draws["paste"][:, 2] > 0).any(), (draws["share"] < 1).any()
        assert cut != mixed
        kinds.append(cut)
    assert 30 < sum(kinds) < 70


# What follows compares 100,000 boxes with those of the references' own loops, written out here.

MANY, SIDE = 100_000, 64


def torchvision_crop(random: Random, scale: float, side: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of a square image: (top, left, height, width)."""
    low, high = (math.log(ratio) for ratio in (3 / 4, 4 / 3))
    for _ in range(10):
        area = side * side * random.uniform(scale, 1.0)
        ratio = math.exp(random.uniform(low, high))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= side and 0 < height <= side:
            return random.randint(0, side - height), random.randint(0, side - width), height, width
    return 0, 0, side, side


def torchvision_erasing(random: Random, side: int) -> tuple[int, int, int, int]:
    """RandomErasing.get_params: a box of no size where none of ten fits."""
    low, high = (math.log(ratio) for ratio in (0.3, 3.3))
    for _ in range(10):
        area = side * side * random.uniform(0.02, 1 / 3)
        ratio = math.exp(random.uniform(low, high))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < side and 0 < width < side:
            return random.randint(0, side - height), random.randint(0, side - width), height, width
    return 0, 0, 0, 0


def cutmix_box(random: Random, alpha: float, side: int) -> tuple[int, int, int, int]:
    """rand_bbox of the authors' code (Yun 2019)."""
    cut = int(side * math.sqrt(1.0 - random.betavariate(alpha, alpha)))
    y, x = random.randrange(side), random.randrange(side)
    top, bottom = (min(max(value, 0), side) for value in (y - cut // 2, y + cut // 2))
    left, right = (min(max(value, 0), side) for value in (x - cut // 2, x + cut // 2))
    return top, left, bottom - top, right - left


def coverage(boxes: np.ndarray, side: int) -> np.ndarray:
    """The fraction of boxes that each pixel lies in: (side, side)."""
    top, left, height, width = boxes.astype(int).T
    changes = np.zeros((side + 1, side + 1))
    for y, x, sign in ((top, left, 1), (top + height, left, -1), (top, left + width, -1)):
        np.add.at(changes, (y, x), sign)
    np.add.at(changes, (top + height, left + width), 1)
    return changes.cumsum(0).cumsum(1)[:-1, :-1] / len(boxes)


@pytest.mark.parametrize("kind", ["crop .08", "crop .35", "erase", "cutmix 1", "cutmix .2"])
def test_boxes_are_distributed_as_the_references(kind: str) -> None:
    random, (what, _, number) = Random(7), kind.partition(" ")
    value = float(number or 0)
    plain = Augmentation(source_size=SIDE, size=SIDE)
    if what == "crop":
        boxes = draw(replace(plain, crop="resized", crop_scale=value), MANY, rng(3))[0]["window"]
        expected = np.array([torchvision_crop(random, value, SIDE) for _ in range(MANY)], float)
    elif what == "erase":
        boxes = draw(replace(plain, erase=1.0), MANY, rng(3))[0]["erase"]
        expected = np.array([torchvision_erasing(random, SIDE) for _ in range(MANY)], float)
    else:
        boxes = draw(replace(plain, cutmix=value), MANY, rng(3))[0]["paste"]
        expected = np.array([cutmix_box(random, value, SIDE) for _ in range(MANY)], float)
    area, expected_area = (b[:, 2] * b[:, 3] / SIDE**2 for b in (boxes, expected))
    assert area.mean() == pytest.approx(expected_area.mean(), rel=0.01)
    assert area.std() == pytest.approx(expected_area.std(), rel=0.01)
    np.testing.assert_allclose(coverage(boxes, SIDE), coverage(expected, SIDE), atol=0.01)
    empty, expected_empty = ((b[:, 2] * b[:, 3] == 0).mean() for b in (boxes, expected))
    assert empty == pytest.approx(expected_empty, abs=0.01)
    filled, expected_filled = boxes[area > 0], expected[expected_area > 0]
    if what != "cutmix":
        ratio, expected_ratio = (np.log(b[:, 3] / b[:, 2]) for b in (filled, expected_filled))
        assert ratio.mean() == pytest.approx(expected_ratio.mean(), abs=0.01)
        assert ratio.std() == pytest.approx(expected_ratio.std(), rel=0.01)
