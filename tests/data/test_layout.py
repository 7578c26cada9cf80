"""Folder layouts that people have: each is read right, or refused with the reason. The ids are the list."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetlab.data.audit import audit
from resnetlab.data.layout import decide
from resnetlab.data.pack import pack
from resnetlab.data.sources import resolve
from resnetlab.data.split_words import roles_among
from resnetlab.data.walk import Folder, scan
from resnetlab.errors import ResnetlabError
from tests.data import make_images

SPLIT = {"train": ["cat", "dog"], "test": ["cat", "dog"]}


def grow(root: Path, *files: str) -> Path:
    """Empty files in their folders: a layout is decided without opening one."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def parts(*names: str, classes: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    return [f"{part}/{name}/{i}.jpg" for part in names for name in classes for i in range(2)]


PLAIN = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"]
WHOLE = {None: ["cat", "dog"]}
READ = {
    "class folders": (PLAIN, WHOLE),
    "class folders with folders in them": (["cat/a/1.jpg", "cat/b/2.jpg", "dog/x/1.jpg"], WHOLE),
    "train and test": (parts("train", "test"), SPLIT),
    "train, val and test": (parts("train", "val", "test"), SPLIT | {"validation": ["cat", "dog"]}),
    "train and val": (parts("train", "val"), {"train": ["cat", "dog"], "validation": ["cat", "dog"]}),
    "Training and Testing": (parts("Training", "Testing"), SPLIT),
    "training_set and test_set": (parts("training_set", "test_set"), SPLIT),
    "TRAIN and EVAL": (parts("TRAIN", "EVAL"), SPLIT),
    "trn, dev and tst": (parts("trn", "dev", "tst"), SPLIT | {"validation": ["cat", "dog"]}),
    "01_train and 02_valid": (parts("01_train", "02_valid"), {"train": ["cat", "dog"], "validation": ["cat", "dog"]}),
    "animals_train and animals_test": (parts("animals_train", "animals_test"), SPLIT),
    "train_images and test_images": (parts("train_images", "test_images"), SPLIT),
    "Train-Data and Hold-Out": (parts("Train-Data", "Hold-Out"), SPLIT),
    "seg_train/seg_train, seg_test/seg_test and an unlabelled seg_pred/seg_pred": (
        [*parts("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred/1.jpg"],
        SPLIT,
    ),
    "train, test and an unlabelled pred": ([*parts("train", "test"), "pred/1.jpg"], SPLIT),
    "train and an unlabelled flat test": ([*parts("train"), "test/1.jpg", "test/2.jpg"], {"train": ["cat", "dog"]}),
    "an archive's one folder above": (["archive/data/" + file for file in PLAIN], WHOLE),
    "raw-img above": (["raw-img/" + file for file in PLAIN], WHOLE),
    "an archive's one folder above a split": (["archive/" + file for file in parts("train", "test")], SPLIT),
    "what systems leave behind": (
        [
            *PLAIN,
            "@eaDir/cat/1.jpg",
            "__MACOSX/cat/._1.jpg",
            "cat/Thumbs.db",
            "dog/._1.jpg",
            ".ipynb_checkpoints/1.jpg",
        ],
        WHOLE,
    ),
    "a class called train among vehicles": (
        ["car/1.jpg", "bus/1.jpg", "train/1.jpg"],
        {None: ["bus", "car", "train"]},
    ),
    "a class called test_tube": (["flask/1.jpg", "test_tube/1.jpg"], {None: ["flask", "test_tube"]}),
    "classes valid and invalid": (["valid/1.jpg", "invalid/1.jpg"], {None: ["invalid", "valid"]}),
    "a class without validation images": (
        [*parts("train"), "val/cat/1.jpg"],
        {"train": ["cat", "dog"], "validation": ["cat"]},
    ),
}
REFUSED = {
    "train and Training beside a class": (["train/1.jpg", "Training/1.jpg", "cat/1.jpg"], ["train", "Training"]),
    "folds of a cross-validation": (parts("fold1", "fold2", "fold3"), ["fold1", "train, val and test"]),
    "parts of unknown names": (parts("partA", "partB"), ["partA", "partB"]),
    "a split and class folders side by side": ([*parts("train", "test"), *PLAIN], ["train", "cat"]),
    "two folders for training": (parts("train", "training", "test"), ["several folders for train"]),
    "validation and test without training": (parts("val", "test"), ["one train folder"]),
    "ImageNet with a flat val": (
        [*parts("train", classes=("n01440764", "n01443537")), "val/1.JPEG", "val/2.JPEG"],
        ["val", "class"],
    ),
    "images without class folders": (["1.jpg", "2.jpg", "3.jpg"], ["no class folder"]),
    "images and a table of labels": (["images/1.jpg", "images/2.jpg", "labels.csv"], ["labels.csv", "not read"]),
    "a split below each class": (["cat/train/1.jpg", "cat/test/1.jpg", "dog/train/1.jpg"], ["above the classes"]),
    "images and masks": (["images/1.png", "masks/1.png"], ["masks"]),
    "a second copy of the data": ([*PLAIN, "copy/cat/1.jpg", "copy/dog/1.jpg"], ["copy"]),
    "an empty folder": ([], []),
}


@pytest.mark.parametrize("layout", READ)
def test_a_layout_is_read(layout: str, tmp_path: Path) -> None:
    files, expected = READ[layout]
    found = decide(scan(grow(tmp_path, *files)))
    assert {
        subset: [folder.name for folder in found.class_folders(subset) if folder.num_images] for subset in found.parts
    } == expected


@pytest.mark.parametrize("layout", REFUSED)
def test_a_layout_is_refused_with_the_reason(layout: str, tmp_path: Path) -> None:
    files, named = REFUSED[layout]
    with pytest.raises(ResnetlabError) as error:
        resolve(str(grow(tmp_path, *files)))
    assert all(word in str(error.value) for word in named), str(error.value)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    found = decide(scan(grow(tmp_path, *parts("train", "test"), "pred/1.jpg", "pred/2.jpg")))
    assert any("left out" in note and "pred (2 images" in note for note in found.notes)
    assert any("the folders give the split" in note for note in found.notes)


def test_names_that_are_equal_but_for_unicode_are_one_class(tmp_path: Path) -> None:
    make_images.write_classes(tmp_path, {"cafe\u0301": 2, "caf\u00e9": 2, "tea": 2})
    source = resolve(str(tmp_path))
    assert source.class_names == ("caf\u00e9", "tea")
    assert [sample.label for sample in source.samples].count(0) == 4
    assert any("caf" in note for note in source.notes)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    make_images.write_classes(tmp_path / "real", {"cat": 2})
    make_images.write_classes(tmp_path / "data", {"dog": 2}, start=10)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "data" / "dog" / "loop").symlink_to(tmp_path / "data")
    source = resolve(str(tmp_path / "data"))
    assert source.class_names == ("cat", "dog")
    assert len(source.samples) == 4


def folder(name: str, images: int = 0, folders: tuple[Folder, ...] = ()) -> Folder:
    return Folder(Path(name), name, tuple(f"{i}.jpg" for i in range(images)), (), folders)


names = st.sampled_from(
    ["train", "test", "val", "cat", "dog", "fold1", "Training", "images", "car", "seg_test", "pred"]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(names, st.integers(0, 2), st.lists(names, max_size=3, unique=True)),
        max_size=5,
        unique_by=lambda x: x[0],
    )
)
def test_a_split_word_is_never_a_class_beside_another_one(tree: list[tuple[str, int, list[str]]]) -> None:
    root = folder("root", 0, tuple(folder(n, i, tuple(folder(x, 1) for x in inner)) for n, i, inner in tree))
    try:
        found = decide(root)
    except ResnetlabError:
        return
    for subset in found.parts:
        classes = [each.name for each in found.class_folders(subset) if each.num_images]
        roles = roles_among({name: name for name in classes})
        assert set(roles.values()) <= {"train"}
        assert len(roles) <= 1


def lossy(root: Path) -> Path:
    """Of cat most files are of a format that is not read, and one is damaged; of dog all are images."""
    make_images.write_classes(root, {"cat": 2, "dog": 5})
    grow(root, *[f"cat/{i}.cr2" for i in range(4)])
    (root / "cat" / "broken.jpg").write_bytes(b"no image")
    return root


def test_a_class_that_loses_most_of_its_images_stops_a_run_unless_confirmed(tmp_path: Path) -> None:
    source = resolve(str(lossy(tmp_path / "data")))
    assert source.ignored_endings == {".cr2": 4}
    packing: dict[str, Any] = {"size": 16, "cache_dir": tmp_path / "cache", "validation": 0.0, "test": 0.0}
    with pytest.raises(ResnetlabError) as error:
        pack(source, **packing)
    assert "cat" in str(error.value)
    assert "4 of 7 files cannot be used (4 .cr2 ignored)" in str(error.value)
    assert "--allow-losses" in str(error.value)
    allowed = pack(source, **packing, allow_losses=True)
    assert len(allowed.labels) == 7
    assert "cat" in allowed.audit["losses"]
    assert "dog" not in allowed.audit["losses"]
    with pytest.raises(ResnetlabError):  # and it is not remembered as confirmed
        pack(source, **packing)


def test_what_is_ignored_is_shown_by_ending(tmp_path: Path) -> None:
    source = resolve(str(lossy(tmp_path)))
    assert "4 .cr2" in audit(source).summary()
