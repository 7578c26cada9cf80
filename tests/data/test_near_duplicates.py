"""Near-duplicates: versions of a photograph are found, other photographs are not."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from resnetlab.data import near_duplicates as module
from resnetlab.data.near_duplicates import near_duplicates
from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from tests.data import make_images


def versions(image: Image.Image) -> list[Image.Image]:
    """The same photograph, saved again as a small JPEG, brighter, with less contrast, and of half the size."""
    content = io.BytesIO()
    image.save(content, format="jpeg", quality=40)
    return [
        Image.open(content).convert("RGB"),
        ImageEnhance.Brightness(image).enhance(1.2),
        ImageEnhance.Contrast(image).enhance(0.7),
        image.resize((image.width // 2, image.height // 2)).resize(image.size),
    ]


@pytest.fixture
def packed(tmp_path: Path) -> Pack:
    folder = make_images.write_classes(tmp_path / "photos", {"cat": 12, "dog": 12})
    return pack(resolve(str(folder)), size=64, cache_dir=tmp_path, validation=0.0, test=0.0)


def with_versions(packed: Pack, photographs: np.ndarray) -> tuple[Pack, int]:
    """Photographs that are trained on, and versions of the first that are held out."""
    small = [Image.fromarray(photo).resize((64, 64)) for photo in photographs]
    images = np.array(packed.images)
    known = versions(small[0])
    for row, image in enumerate([*small, *known]):
        images[row] = np.asarray(image)
    subset = np.full(len(images), "train", dtype="U10")
    subset[len(small) : len(small) + len(known)] = ["test", "test", "validation", "test"]
    subset[-3:] = "test"
    return replace(packed, images=images, subset=subset), len(small)


def test_versions_of_a_photograph_are_found_and_nothing_else(packed: Pack, photographs: np.ndarray) -> None:
    data, first = with_versions(packed, photographs)
    found = near_duplicates(data)
    assert found is not None
    of_photographs = [pair for pair in found if pair.held_out < first + 4]
    assert {pair.held_out for pair in of_photographs} == set(range(first, first + 4))
    assert {pair.training for pair in of_photographs} == {0}
    assert [pair.correlation for pair in found] == sorted((pair.correlation for pair in found), reverse=True)
    assert data.subset[[pair.training for pair in found]].tolist() == ["train"] * len(found)


def test_images_of_one_value_are_like_no_other(packed: Pack) -> None:
    images = np.full_like(packed.images, 90)
    subset = np.array(["train", "test"] * 12, dtype="U10")
    assert near_duplicates(replace(packed, images=images, subset=subset)) == []


def test_too_many_images_are_not_searched(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    subset = np.array(["train", "test"] * 12, dtype="U10")
    monkeypatch.setattr(module, "MAX_PAIRS", 12 * 12 - 1)
    assert near_duplicates(replace(packed, subset=subset)) is None
    monkeypatch.setattr(module, "MAX_PAIRS", 12 * 12)
    assert near_duplicates(replace(packed, subset=subset)) is not None
