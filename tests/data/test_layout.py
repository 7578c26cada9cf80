"""Folder layouts that people have: each is read right, or refused with the reason. The ids are the list."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetlab.data.audit import audit
from resnetlab.data.layout import detect_layout
from resnetlab.data.pack import pack
from resnetlab.data.sources import ANIMALS10, resolve
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
    "classes in languages, tr among them": (["de/1.jpg", "tr/1.jpg"], {None: ["de", "tr"]}),
    "tr and te": (parts("tr", "te"), SPLIT),
    "TrainSet, ValSet and TestSet": (parts("TrainSet", "ValSet", "TestSet"), SPLIT | {"validation": ["cat", "dog"]}),
    "train2017 and val2017": (parts("train2017", "val2017"), {"train": ["cat", "dog"], "validation": ["cat", "dog"]}),
    "a folder called train_test_split above": (["train_test_split/" + f for f in parts("train", "test")], SPLIT),
    "class folders and an unlabelled one": ([*PLAIN, "unlabeled/1.jpg"], WHOLE),
    "class folders and annotations": ([*PLAIN, "annotations/1.xml"], WHOLE),
    "images in a folder of each class": (["cat/images/1.jpg", "dog/images/1.jpg"], WHOLE),
    "groups of classes": (
        ["animals/cat/1.jpg", "animals/dog/1.jpg", "vehicles/car/1.jpg", "vehicles/bus/1.jpg"],
        {None: ["animals", "vehicles"]},
    ),
    "a few loose images": ([*PLAIN, "cover.jpg"], WHOLE),
    "a data set that is known among other images": (
        [f"animals10/raw-img/{name}/1.jpg" for name in ANIMALS10] + ["pets/cat/1.jpg", "pets/dog/1.jpg"],
        {None: ["animals10", "pets"]},
    ),
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
    "more loose images than others": ([f"{i}.jpg" for i in range(5)] + PLAIN, ["5 images", "no class folder"]),
    "ILSVRC as it is unpacked": (
        [
            "ILSVRC/Annotations/CLS-LOC/val/1.xml",
            *["ILSVRC/Data/CLS-LOC/" + file for file in parts("train")],
            "ILSVRC/Data/CLS-LOC/val/1.JPEG",
            "LOC_val_solution.csv",
        ],
        ["CLS-LOC/val itself", "LOC_val_solution.csv"],
    ),
    "flat train and test with a table": (["train/1.jpg", "test/2.jpg", "train.csv"], ["train.csv", "not read"]),
    "boxes: images and labels of each part": (
        ["train/images/1.jpg", "train/labels/1.txt", "valid/images/2.jpg", "valid/labels/2.txt"],
        ["train/images", "no class folder"],
    ),
    "images and masks of each class": (parts("COVID", "Normal", classes=("images", "masks")), ["'images', 'masks'"]),
    "versions of one data set": (parts("color", "grayscale", "segmented"), ["give one as DATA"]),
    "domains with a folder of images in each": (parts("amazon/images", "dslr/images"), ["'amazon', 'dslr'"]),
    "a misspelled part": (parts("trainig", "test"), ["'test'", "'trainig'"]),
    "parts in another language": (parts("entrenamiento", "prueba"), ["'entrenamiento', 'prueba'"]),
    "a further part": (parts("train", "test", "extra"), ["'extra'"]),
    "training and validation in one folder": (parts("train_val", "test"), ["'train_val'"]),
    "a part in a part": ([*parts("test"), *parts("train/train", "train/val")], ["one already"]),
    "an empty part": ([*parts("train", "test"), "val/.keep"], ["No images in", "val"]),
    "a class and part of a split in each name": (
        ["cat_train/1.jpg", "cat_test/1.jpg", "dog_train/1.jpg", "dog_test/1.jpg"],
        ["'cat_train', 'dog_train'"],
    ),
    "class folders and a flat test": ([*PLAIN, "test/1.jpg"], ["'test'", "rename"]),
    "only a flat train and a folder of others": (["train/1.jpg", "extra/1.jpg"], ["'train'", "'extra'"]),
    "a class in the test part alone": ([*parts("train", "test"), "test/fox/1.jpg"], ["'fox'"]),
    "a class spelled otherwise in the test part": (
        ["train/Cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg", "test/dog/1.jpg"],
        ["'Cat', 'cat'", "differ only in case"],
    ),
    "a class of another format": ([*PLAIN, "fox/1.nef"], ["'fox'", "1 .nef"]),
    "a class of another format beside folders in folders": (
        ["cats/1.nef", "dogs/pug/1.jpg", "dogs/boxer/1.jpg"],
        ["'cats'", "1 .nef"],
    ),
}


@pytest.mark.parametrize("layout", READ)
def test_a_layout_is_read(layout: str, tmp_path: Path) -> None:
    files, expected = READ[layout]
    found = detect_layout(scan(grow(tmp_path, *files)))
    assert {
        subset: [folder.name for folder in found.class_folders(subset) if folder.num_images] for subset in found.parts
    } == expected


@pytest.mark.parametrize("layout", REFUSED)
def test_a_layout_is_refused_with_the_reason(layout: str, tmp_path: Path) -> None:
    files, named = REFUSED[layout]
    with pytest.raises(ResnetlabError) as error:
        resolve(str(grow(tmp_path, *files)))
    assert all(word in str(error.value) for word in named), str(error.value)


def test_the_guide_counts_these_layouts() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "photographs.md").read_text("utf-8")
    assert f"({len(READ) + len(REFUSED)} layouts are tested)" in guide


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    found = detect_layout(scan(grow(tmp_path, *parts("train", "test"), "pred/1.jpg", "pred/2.jpg")))
    assert any("left out" in note and "pred (2 images" in note for note in found.notes)
    assert any("the folders give the split" in note for note in found.notes)


def test_a_known_data_set_is_not_taken_out_of_others(tmp_path: Path) -> None:
    files, expected = READ["a data set that is known among other images"]
    source = resolve(str(grow(tmp_path, *files)))
    assert list(source.class_names) == expected[None]
    assert len(source.samples) == len(files)


def test_classes_whose_names_differ_in_case_only_are_warned_of(tmp_path: Path) -> None:
    source = resolve(str(grow(tmp_path, "Cat/1.jpg", "cat /1.jpg", "dog/1.jpg")))
    assert source.class_names == ("Cat", "cat ", "dog")
    assert [note for note in source.notes if note.startswith("warning")] == [
        "warning: the classes 'Cat', 'cat ' differ only in case, spaces or signs: are they one?"
    ]


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
        found = detect_layout(root)
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
