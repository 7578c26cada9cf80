from __future__ import annotations

import hashlib
import random
from collections import Counter
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetlab.data.split import split
from resnetlab.errors import UsageError
from resnetlab.run_folder import strongest


def _hashes(count: int, salt: object = "") -> list[str]:
    return [hashlib.sha256(f"{salt}/{i}".encode()).hexdigest() for i in range(count)]


def _split(hashes, labels, *, validation=0.2, test=0.1, seed=0, subsets=None):
    subsets = subsets or [None] * len(hashes)
    return split(hashes, labels, subsets, validation=validation, test=test, seed=seed)


def test_shares_of_each_class_are_within_a_third():
    rng = random.Random(0)
    for round_ in range(150):
        count = rng.randint(3, 300)
        validation = rng.choice([0.05, 0.1, 0.2, 0.3, 0.45])
        test = rng.choice([0.05, 0.1, 0.2, 0.3, 0.45])
        sides = Counter(_split(_hashes(count, round_), [0] * count, validation=validation, test=test).tolist())
        for name, fraction in (("validation", validation), ("test", test)):
            slack = count * min(fraction, 1 - validation - test) / 3
            assert max(1, ceil(count * fraction - slack - 1e-9)) <= sides[name] or count < 6
            assert 1 <= sides[name] <= max(1, ceil(count * fraction), floor(count * fraction + slack + 1e-9))
        assert sides["train"] >= 1


def test_24_of_each_class_give_sensible_shares():
    hashes, labels = _hashes(240), [i % 10 for i in range(240)]
    for seed in range(20):
        sides = _split(hashes, labels, seed=seed)
        for label in range(10):
            counts = Counter(sides[label::10].tolist())
            assert 4 <= counts["validation"] <= 6
            assert 2 <= counts["test"] <= 3


def test_added_images_do_not_move_old_ones():
    """Exactly so where classes are not small: 1,000 are many times what a stray third needs."""
    hashes, labels = _hashes(4000), [i % 2 for i in range(4000)]
    for seed in range(5):
        before, after = _split(hashes[:2000], labels[:2000], seed=seed), _split(hashes, labels, seed=seed)
        np.testing.assert_array_equal(before, after[:2000])


def test_in_small_classes_adding_moves_few():
    moved = total = 0
    for salt in range(50):
        hashes = _hashes(40, salt)
        before, after = _split(hashes[:30], [0] * 30), _split(hashes, [0] * 40)
        moved += int((before != after[:30]).sum())
        total += 30
    assert 0 < moved / total < 0.04  # an exact fraction would need moves too; a shuffled split moves 46 %


def test_order_and_removal_do_not_matter():
    hashes, labels = _hashes(2000), [i % 2 for i in range(2000)]
    sides = dict(zip(hashes, _split(hashes, labels).tolist(), strict=True))
    order = random.Random(1).sample(range(2000), 1500)
    again = _split([hashes[i] for i in order], [labels[i] for i in order])
    assert all(sides[hashes[i]] == side for i, side in zip(order, again.tolist(), strict=True))


def test_copies_are_never_on_two_sides():
    rng = random.Random(2)
    for round_ in range(50):
        distinct = _hashes(rng.randint(3, 40), round_)
        hashes = distinct + rng.choices(distinct, k=60)
        label_of = {content: rng.randrange(3) for content in distinct}
        sides = _split(hashes, [label_of[content] for content in hashes], seed=round_)
        assert len(set(zip(hashes, sides.tolist(), strict=True))) == len(distinct)


def test_the_seed_matters_and_nothing_else_does():
    hashes = _hashes(500)
    first, same, other = (_split(hashes, [0] * 500, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert 0.3 < (first != other).mean() < 0.6


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "test": 1}),
        (3, {"train": 1, "test": 1, "validation": 1}),
    ],
)
def test_the_smallest_classes(count, expected):
    for salt in range(20):
        assert Counter(_split(_hashes(count, salt), [0] * count).tolist()) == expected


def test_what_is_not_asked_for_is_not_made():
    assert set(_split(_hashes(50), [0] * 50, validation=0, test=0).tolist()) == {"train"}
    assert set(_split(_hashes(50), [0] * 50, validation=0.2, test=0).tolist()) == {"train", "validation"}


def test_a_given_split_is_kept_and_completed_from_training():
    hashes, labels = _hashes(300), [0] * 300
    given = ["train"] * 200 + ["test"] * 100
    sides = _split(hashes, labels, subsets=given, validation=0.25, test=0.4)
    assert set(sides[200:].tolist()) == {"test"}
    counts = Counter(sides[:200].tolist())
    assert set(counts) == {"train", "validation"}  # a test part is there: none is carved
    assert 34 <= counts["validation"] <= 66

    given = ["train"] * 200 + ["validation"] * 100
    sides = _split(hashes, labels, subsets=given, validation=0.4, test=0.25)
    assert set(sides[200:].tolist()) == {"validation"}
    assert set(sides[:200].tolist()) == {"train", "test"}


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (-0.1, 0.1, r"validation fraction -0\.1: expected"),
        (0.1, 1.0, r"test fraction 1\.0: expected"),
        (float("nan"), 0, "validation fraction nan: expected"),
        (0.6, 0.4, "Nothing left to train on: validation 0.6 and test 0.4 make 1"),
    ],
)
def test_shares_out_of_range(validation, test, message):
    with pytest.raises(UsageError, match=message):
        _split([], [], validation=validation, test=test)


# A chain of runs

FRACTIONS = st.sampled_from([0.0, 0.1, 0.2, 0.4])


@st.composite
def _chains(draw):
    """Three runs on parts of one data set: of each its images, fractions, seed, and the data's own subsets if any."""
    pool = range(draw(st.integers(3, 40)))
    runs = []
    for _ in range(3):
        images = sorted(draw(st.sets(st.sampled_from(pool), min_size=1)))
        given = draw(st.sampled_from([None, ("train",), ("train", "test"), ("train", "validation", "test")]))
        subsets = [draw(st.sampled_from(given)) if given else None for _ in images]
        runs.append((images, subsets, draw(FRACTIONS), draw(FRACTIONS), draw(st.integers(0, 99))))
    return runs


@settings(max_examples=400, deadline=None, derandomize=True)
@given(_chains())
def test_no_image_is_tested_on_after_any_run_of_the_chain_has_used_it(chain):
    history: dict[str, str] = {}
    trained, selected = set(), set()
    for images, subsets, validation, test, seed in chain:
        hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in images]
        labels = [i % 2 for i in images]
        sides = split(hashes, labels, subsets, validation=validation, test=test, seed=seed, inherited=history).tolist()
        of = {name: {h for h, side in zip(hashes, sides, strict=True) if side == name} for name in set(sides)}
        tested, judged = of.get("test", set()), of.get("validation", set())
        assert not tested & (trained | selected)
        assert not judged & trained
        assert of.get("unused", set()) <= trained | selected
        trained |= of.get("train", set())
        selected |= judged
        history = strongest([history, {h[:16]: side for h, side in zip(hashes, sides, strict=True)}])


def test_known_images_keep_their_subset_and_new_ones_are_split_as_ever():
    hashes, labels = _hashes(600), [0] * 600
    before = dict(zip(hashes[:300], _split(hashes[:300], labels[:300]).tolist(), strict=True))
    inherited = {content[:16]: subset for content, subset in before.items()}
    after = split(hashes, labels, [None] * 600, validation=0.2, test=0.1, seed=1, inherited=inherited)
    assert after[:300].tolist() == list(before.values())
    assert after[300:].tolist() == _split(hashes[300:], labels[300:], seed=1).tolist()


def test_an_image_that_the_data_holds_out_and_an_ancestor_used_is_left_out():
    hashes = _hashes(6)
    given = ["train", "test", "test", "test", "validation", "validation"]
    uses = ["test", "train", "validation", "test", "train", "test"]
    inherited = {content[:16]: use for content, use in zip(hashes, uses, strict=True)}
    sides = split(hashes, [0] * 6, given, validation=0.1, test=0.1, inherited=inherited)
    assert sides.tolist() == ["train", "unused", "unused", "test", "unused", "validation"]
