"""Batches as a pure function of (seed, step)."""

import threading
import time
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest

from resnetlab.data.augmentation import Augmentation
from resnetlab.data.stream import Stream, balanced_weights

PLAIN = Augmentation(source_size=8, size=8, flip=False)
EVERYTHING = Augmentation(
    source_size=10,
    size=8,
    crop="resized",
    crop_scale=0.3,
    flip=True,
    color_jitter=0.2,
    erase=0.5,
    mixup=0.2,
    cutmix=1.0,
)


def stream(count: int = 23, batch_size: int = 5, **settings: Any) -> Stream:
    """Images of which each has the number of its sample for its colour."""
    defaults: dict[str, Any] = {
        "images": np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 10, 10, 3)),
        "labels": np.arange(count) % 4,
        "indices": np.arange(count),
        "batch_size": batch_size,
        "num_classes": 4,
        "augmentation": EVERYTHING,
        "seed": 1,
    }
    return Stream(**(defaults | settings))


def arrays(batch: Any) -> list[np.ndarray]:
    inputs, *rest = batch
    return [*(inputs[name] for name in sorted(inputs)), *(array for array in rest if array is not None)]


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(second), strict=True))


def samples(of: Stream, steps: int) -> np.ndarray:
    return np.concatenate([of.batch(step)[0]["image"][:, 0, 0, 0] for step in range(steps)])


def test_alternating_flips_mirror_every_sample_in_every_other_pass() -> None:
    """Over batches that span two passes, and with the first pass at random."""
    flips = replace(PLAIN, source_size=10, flip="alternating")
    source = stream(augmentation=flips)
    seen: dict[int, list[bool]] = {}
    for step in range(23 * 4 // 5 + 1):
        inputs = source.batch(step)[0]
        for image, window in zip(inputs["image"], inputs["window"], strict=True):
            seen.setdefault(int(image[0, 0, 0]), []).append(bool(window[3] < 0))
    assert all(len(each) >= 4 for each in seen.values())
    assert all(now != before for each in seen.values() for before, now in pairwise(each))
    assert 5 < sum(each[0] for each in seen.values()) < 18
    assert same(source.batch(9), stream(augmentation=flips).batch(9))


def test_windows_are_those_of_each_images_aspect_ratio() -> None:
    wide = Augmentation(source_size=100, size=8, crop="resized", crop_scale=0.9, flip=False)
    images = np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones((100, 100, 3), np.uint8)
    stream = Stream(
        images=images,
        labels=np.arange(2),
        indices=np.arange(2),
        batch_size=200,
        num_classes=2,
        augmentation=wide,
        aspect=np.array([2.0, 1.0], np.float32),
    )
    inputs, _, _ = stream.batch(0)
    window, numbers = inputs["window"], inputs["image"][:, 0, 0, 0]
    # Of 2:1, nine tenths fit no box of at most 4:3: the centre 4:3, which is two thirds of the width.
    np.testing.assert_allclose(window[numbers == 0], np.tile([0, 33.5 / 2, 100, 133 / 2], (100, 1)), atol=0.3)
    assert window[numbers == 1, 3].min() > 80


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one = stream()
    in_order = [one.batch(step) for step in range(12)]
    another = stream()
    for step in (11, 0, 7, 7, 3):
        assert same(another.batch(step), in_order[step])
    assert not same(in_order[0], in_order[1])


def test_batches_from_a_step_on_are_those_of_an_uninterrupted_run() -> None:
    one = stream(class_weights=np.array([1.0, 2.0, 0.5, 0.5]))
    batches = one.batches(7)
    for step, batch in enumerate(islice(batches, 6), start=7):
        assert len(batch) == 3
        assert same(batch, one.batch(step))
    batches.close()


def test_seeds_differ_in_order_and_in_draws() -> None:
    first, second = stream(seed=1).batch(0), stream(seed=2).batch(0)
    assert not np.array_equal(first[0]["image"], second[0]["image"])
    assert not np.array_equal(first[0]["window"], second[0]["window"])


@pytest.mark.parametrize(("count", "batch_size"), [(23, 5), (20, 5), (3, 8), (1, 4)])
def test_each_pass_sees_each_sample_once_across_the_borders_of_batches(count: int, batch_size: int) -> None:
    passes = 5
    order = samples(stream(count, batch_size, augmentation=PLAIN), -(-passes * count // batch_size))[: passes * count]
    for number in range(passes):
        np.testing.assert_array_equal(np.sort(order[number * count : (number + 1) * count]), np.arange(count))
    if count > 10:
        assert (order[:count] != order[count : 2 * count]).any()  # shuffled anew


def test_only_the_chosen_samples_are_drawn() -> None:
    chosen = np.array([3, 19, 4, 8])
    assert set(samples(stream(indices=chosen, augmentation=PLAIN), 10)) == set(chosen)


def test_labels_go_with_their_images() -> None:
    inputs, targets, weights = stream(augmentation=PLAIN).batch(3)
    np.testing.assert_array_equal(targets, np.eye(4)[inputs["image"][:, 0, 0, 0] % 4])
    assert weights is None
    assert set(inputs) == {"image"}
    assert inputs["image"].dtype == np.uint8


@pytest.mark.parametrize("changes", [{"cutmix": 0.0}, {"mixup": 0.0}, {}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_shares_of_an_image_and_its_partner(changes: dict[str, float], smoothing: float) -> None:
    one = stream(batch_size=16, augmentation=replace(EVERYTHING, **changes), label_smoothing=smoothing)
    for step in range(5):
        inputs, targets, _ = one.batch(step)
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
        labels = inputs["image"][:, 0, 0, 0] % 4
        own = inputs["fraction"] * (1 - inputs["paste"][:, 2] * inputs["paste"][:, 3] / 8**2)
        hard = own[:, None] * np.eye(4)[labels] + (1 - own)[:, None] * np.eye(4)[labels[inputs["permutation"]]]
        np.testing.assert_allclose(targets, (1 - smoothing) * hard + smoothing / 4, atol=1e-6)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(23, 5, 5), (22, 5, 4), (3, 8, 1), (50_000, 128, 391)])
def test_an_epoch_is_the_nearest_whole_number_of_batches(count: int, batch_size: int, steps: int) -> None:
    assert stream(batch_size=batch_size, indices=np.arange(count)).steps_per_epoch == steps


@pytest.mark.parametrize("counts", [[10, 20, 30, 40], [25, 25, 25, 25], [1, 1, 1, 97]])
def test_balanced_weights_even_the_classes_out_and_have_mean_one(counts: list[int]) -> None:
    labels = np.repeat(np.arange(4), counts)
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(np.bincount(labels, weights[labels]), [25] * 4, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1.0, rel=1e-6)


def test_samples_weigh_what_their_class_weighs() -> None:
    class_weights = np.array([1.0, 2.0, 0.5, 4.0])
    inputs, _, weights = stream(class_weights=class_weights, augmentation=PLAIN).batch(2)
    np.testing.assert_array_equal(weights, class_weights[inputs["image"][:, 0, 0, 0] % 4])


def test_each_target_of_a_mixed_image_counts_by_the_weight_of_its_class() -> None:
    """As in the weighted cross-entropy of soft targets, the sum over classes of weight times target times -log p."""
    class_weights = np.array([1.0, 2.0, 0.5, 4.0])
    _, plain, _ = stream(label_smoothing=0.0).batch(2)
    _, targets, weights = stream(class_weights=class_weights, label_smoothing=0.0).batch(2)
    assert ((plain > 0).sum(axis=1) == 2).any()
    np.testing.assert_allclose(targets * weights[:, None], plain * class_weights, rtol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-5)


def test_an_error_in_the_producer_is_raised_where_the_batch_is_waited_for() -> None:
    broken = stream(labels=np.full(23, 9), augmentation=PLAIN)  # no such class
    with pytest.raises(IndexError, match="9"):
        next(broken.batches(0))


def stream_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "resnetlab-stream"}


@pytest.mark.parametrize("ending", ["closed", "failed"])
def test_no_thread_is_left_behind(ending: str) -> None:
    before = stream_threads()
    if ending == "closed":
        batches = stream().batches(0, ahead=2)
        next(batches)
        assert len(stream_threads() - before) == 1
        batches.close()
    else:
        with pytest.raises(IndexError):
            next(stream(labels=np.full(23, 9)).batches(0))
    deadline = time.monotonic() + 5
    while stream_threads() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not stream_threads() - before


def test_batches_are_made_ahead_of_need() -> None:
    made: list[int] = []

    class Counting(Stream):
        def _sampled(self, step: int) -> Any:
            made.append(step)
            return super()._sampled(step)

    settings = {name: getattr(stream(), name) for name in Stream.__dataclass_fields__}
    batches = Counting(**settings).batches(0, ahead=3)
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    batches.close()
    assert made == [0, 1, 2, 3, 4]  # one taken, three ready, one waiting for room
