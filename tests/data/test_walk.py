"""What the walk over folders sees: in one order, without what is never data, and each folder once."""

import os
from pathlib import Path

import pytest

from resnetlab.data.sources import resolve
from resnetlab.data.walk import ending, is_image, listed_endings, scan
from resnetlab.errors import UsageError
from resnetlab.inference.images import collect_images

CLUTTER = (
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/pets/cat/x.jpg",
    "cat/__MACOSX/x.jpg",
    "cat/._a.jpg",
    "cat/.hidden.jpg",
    "cat/.ipynb_checkpoints/a-checkpoint.jpg",
    "cat/Thumbs.db",
    "cat/DESKTOP.INI",
    "dog/@__thumb/b.jpg",
    "dog/.cache/b.jpg",
    "dog/#recycle/b.jpg",
    "$RECYCLE.BIN/c.jpg",
    "lost+found/c.jpg",
    "__pycache__/c.png",
    "runs/pets-resnet18/curves.png",
    "runs/pets-resnet18/run.json",
    "runs/pets-resnet18/recipe.json",
)


def grow(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def expand(arguments: list[str]) -> tuple[list[Path], list[str]]:
    images, notes = collect_images(arguments)
    return [Path(str(image.path)) for image in images], notes


def relative(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_training_and_prediction_see_the_same_files(tmp_path: Path) -> None:
    images = ["cat/a.JPG", "cat/deep/b.png", "dog/c.webp", "linked/d.jpg"]
    root = grow(tmp_path / "pets", *images[:3], *CLUTTER, "cat/notes.txt")
    grow(tmp_path / "elsewhere", "d.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    source = resolve(str(root))
    assert [sample.name for sample in source.samples] == images
    assert source.ignored_endings == {".txt": 1}
    paths, notes = expand([str(root)])
    assert relative(paths, root) == images
    assert notes == ["ignored: files that are no images by their ending: 1 .txt"]


def test_a_class_with_a_run_in_it_or_a_file_of_that_name_is_data(tmp_path: Path) -> None:
    images = ["cat/a.jpg", "dog/b.jpg"]
    root = grow(tmp_path / "pets", *images, "cat/run.json", "dog/first/run.json", "dog/first/recipe.json")
    grow(root, "dog/first/curves.png")
    assert [sample.name for sample in resolve(str(root)).samples] == images


def test_globs_pass_over_what_is_never_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "cat/a.jpg", *CLUTTER)
    monkeypatch.chdir(tmp_path)
    assert expand(["**/*.jpg"]) == ([Path("cat/a.jpg")], [])
    # A shell's pattern names everything, and so do people: a hidden folder that is named is meant.
    assert expand(["cat/a.jpg", "cat/Thumbs.db", "cat/._a.jpg"]) == (
        [Path("cat/a.jpg")],
        ["left out: cat/Thumbs.db, a name that is never data", "left out: cat/._a.jpg, a name that is never data"],
    )
    assert expand(["dog/.cache"])[0] == expand(["dog/.cache/*.jpg"])[0] == [Path("dog/.cache/b.jpg")]
    with pytest.raises(UsageError, match="Received no image: left out: @eaDir"):
        expand(["@eaDir"])


def test_a_folder_without_images_names_what_is_in_it(tmp_path: Path) -> None:
    grow(tmp_path, "a.nef", "b.NEF", "c")
    with pytest.raises(UsageError, match=r"a folder without images, only 2 \.nef, 1 no ending"):
        expand([str(tmp_path)])


def test_a_link_never_takes_a_folders_place(tmp_path: Path) -> None:
    """Whatever the order of names: "a" leads to "z", and "up" to what holds the data."""
    root = grow(tmp_path / "data", "z/1.jpg", "b/2.jpg", "b/deep/3.jpg")
    (root / "a").symlink_to(root / "z")
    (root / "b" / "up").symlink_to(tmp_path)
    (root / "b" / "again").symlink_to(root / "b" / "deep")
    tree = scan(root)
    assert relative(tree.image_paths(), root) == ["b/2.jpg", "b/deep/3.jpg", "z/1.jpg"]
    assert [(folder.name, folder.repeated) for folder in tree.walk() if folder.repeated] == [
        ("data", ("a",)),
        ("b", ("again", "up")),
    ]
    note = next(note for note in resolve(str(root)).notes if note.startswith("not followed"))
    assert str(root / "a") in note
    assert str(root / "b" / "up") in note


def test_links_to_one_folder_elsewhere_are_followed_once(tmp_path: Path) -> None:
    grow(tmp_path / "elsewhere", "in/1.jpg")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    root = grow(tmp_path / "data", "cat/2.jpg")
    for name in ("dog", "fox"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    assert relative(scan(root).image_paths(), root) == ["cat/2.jpg", "dog/in/1.jpg"]


def test_pipes_are_not_read_and_dangling_links_are_left_to_the_audit(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert scan(tmp_path).images == ("gone.jpg",)


def test_a_class_may_begin_with_underscores(tmp_path: Path) -> None:
    assert resolve(str(grow(tmp_path, "__other/1.jpg", "cat/1.jpg"))).class_names == ("__other", "cat")


def test_deep_folders_are_no_recursion_error(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 1500)
    for path in [tmp_path, *[folder for folder in reversed(deep.parents) if folder.is_relative_to(tmp_path)][1:]]:
        (path / "d").mkdir()
    (deep / "a.jpg").touch()
    try:
        assert scan(tmp_path).image_paths() == [deep / "a.jpg"]
    finally:  # pytest's own cleaning recurses
        (deep / "a.jpg").unlink()
        for path in [deep, *deep.parents[:1499]]:
            path.rmdir()


@pytest.mark.parametrize(
    ("name", "expected", "image"),
    [
        ("a.JPeG", ".jpeg", True),
        ("a.heic", ".heic", True),
        ("a.jpg.txt", ".txt", False),
        ("image_0001", "no ending", False),
        ("a. b c", "no ending", False),
        ("._a.jpg", ".jpg", False),
    ],
)
def test_endings(name: str, expected: str, image: bool) -> None:
    assert (ending(name), is_image(name)) == (expected, image)


def test_endings_are_listed_with_the_most_frequent_first() -> None:
    assert listed_endings({".b": 2, ".a": 2, ".c": 1200}) == "1,200 .c, 2 .a, 2 .b"


def test_a_class_with_a_run_beside_its_folders_of_images_stays(tmp_path: Path) -> None:
    root = grow(tmp_path / "pets", "dog/2023/1.jpg", "cat/1.jpg", "dog/run1/run.json", "dog/run1/recipe.json")
    assert [folder.name for folder in scan(root).folders] == ["cat", "dog"]
