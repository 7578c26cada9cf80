"""Hostile files are refused by every loader; `hostile.py` and `fuzz_images.py` have the long versions."""

from __future__ import annotations

from collections.abc import Set

import pytest

from tests.reliability import fuzz_images, hostile
from tests.reliability.hostile import Group, examine

QUICK_WEIGHTS = frozenset(
    {
        "a torch archive whose pickle calls eval",
        "a call hidden in the state of a harmless class",
        "a storage that claims a terabyte",
        "a terabyte of one repeated value",
        "an older file that claims a terabyte",
        "lists 200,000 deep",
        "safetensors: a header of 2**60 bytes",
        "safetensors: offsets behind the end",
        "safetensors: a header of lists 100,000 deep",
        "HDF5: a terabyte in chunks, without data",
        "HDF5: a link to another file",
        "HDF5: a virtual dataset of another file",
        "HDF5: a group linked 2**60 times",
        "a .keras file with a Lambda layer",
        "an archive of objects",
    }
)
QUICK_TEXTS = frozenset(
    {
        "a recipe of lists 100,000 deep",
        "a TOML recipe of lists 100,000 deep",
        "a recipe with a base outside of its folder",
        "a recipe with a million pixels a side",
        "run.json 100,000 deep",
        "run.json of binary",
        "split.csv with nul bytes",
        "metrics.jsonl that is cut",
        "config.json 100,000 deep",
        "config.json that is no UTF-8",
        "export.json 100,000 deep",
        "an ONNX file with weights outside of its folder",
    }
)
# All but the bombs, which take seconds to make.
QUICK: dict[str, Set[str] | None] = {
    "weights": QUICK_WEIGHTS,
    "checkpoints": hostile.groups()["checkpoints"].cases.keys() - {"a checkpoint that is a zip bomb"},
    "images": hostile.groups()["images"].cases.keys()
    - {"a PNG whose text inflates to 3 GB", "a TIFF of compressed zeros, 4 GB instead of 16 bytes"},
    "odd images": None,
    "archives": frozenset({"a zip with paths that leave it", "a zip with a symbolic link", "a zip cut short"}),
    "texts: recipe": QUICK_TEXTS,
    "texts: run": QUICK_TEXTS,
    "texts: weights": QUICK_TEXTS,
    "texts: export": QUICK_TEXTS,
}


@pytest.mark.parametrize("name", QUICK)
def test_hostile_files_are_refused(name: str) -> None:
    if name == "texts: export":
        pytest.importorskip("onnxruntime", reason="pip install resnetlab[export]")
    group, chosen = hostile.groups()[name], QUICK[name]
    rows = examine(group, only=chosen)
    assert [f"{row['case']}: {row['problem']}" for row in rows if row["problem"]] == []
    expected = group.cases.keys() if chosen is None else group.cases.keys() & chosen
    assert {row["case"] for row in rows} == set(expected) != set()


def test_a_folder_of_traps_gives_its_good_images() -> None:
    (row,) = examine(hostile.groups()["folders"])
    assert row["message"].startswith("32 usable; ")
    assert "'two/link to zeros.jpg': not a regular file" in row["message"]
    assert "'two/sparse.jpg': too large" in row["message"]


def test_the_harness_notices_a_program_that_runs() -> None:
    """Given to `pickle.loads` itself, which executes what it reads."""
    cases = hostile.groups()["weights"].cases
    (row,) = examine(Group("unsafe", cases, ()), only=frozenset({"a pickle that calls eval"}))
    assert row["problem"] is not None
    assert hostile.CANARY in row["problem"]


@pytest.mark.long
def test_mutated_images_neither_crash_nor_change_the_good_ones() -> None:
    pytest.importorskip("pillow_heif")
    found = fuzz_images.run(200, seed=1)
    assert found["problems"] == []
    assert 200 < found["images"] <= 200 + fuzz_images.GOOD
    assert fuzz_images.GOOD <= found["predicted"] < found["images"]
