from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import tarfile
import zipfile
from types import ModuleType

import numpy as np
import pytest

from resnetlab.data import sources
from resnetlab.data.sources import ANIMALS10, CIFAR10, resolve
from resnetlab.errors import ResnetlabError, UsageError


def test_a_folder_of_class_folders(make, tmp_path):
    root = make.write_classes(tmp_path / "pets", {"dog": 2, "cat": 1})
    (root / "dog" / "deeper").mkdir()
    (root / "dog" / "deeper" / "LOUD.JPG").write_bytes(make.jpeg(9))
    for ignored in ("dog/notes.txt", "dog/Thumbs.db", "cat/.hidden.jpg", "README.md"):
        (root / ignored).write_text("no image")
    (root / "__MACOSX").mkdir()

    source = resolve(str(root))

    assert (source.name, source.class_names, source.in_memory) == ("pets", ("cat", "dog"), False)
    assert [(s.name, s.label, s.subset) for s in source.samples] == [
        ("cat/0.jpg", 0, None),
        ("dog/0.jpg", 1, None),
        ("dog/1.jpg", 1, None),
        ("dog/deeper/LOUD.JPG", 1, None),
    ]
    assert source.ignored_endings == {".txt": 1, ".md": 1}  # neither hidden files nor what systems leave behind
    with source.reader() as read, read(source.samples[3]) as content:
        assert content == make.jpeg(9)


def test_a_given_split_is_taken_over(make, tmp_path):
    for part in ("train", "Val", "test"):
        make.write_classes(tmp_path / "set" / part, {"cat": 1, "dog": 2})
    (tmp_path / "set" / "annotations").mkdir()
    source = resolve(str(tmp_path / "set"))
    assert source.class_names == ("cat", "dog")
    subsets = [(s.name, s.subset) for s in source.samples if s.label == 0]
    assert subsets == [
        ("test/cat/0.jpg", "test"),
        ("train/cat/0.jpg", "train"),
        ("Val/cat/0.jpg", "validation"),
    ]


def test_train_may_be_a_class(make, tmp_path):
    source = resolve(str(make.write_classes(tmp_path / "vehicles", {"car": 1, "train": 1})))
    assert source.class_names == ("car", "train")


def test_the_parts_of_a_split_must_have_the_same_classes(make, tmp_path):
    make.write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    make.write_classes(tmp_path / "test", {"cat": 1})
    with pytest.raises(ResnetlabError, match=r"test has no folder for 'dog', .* Expected the same class"):
        resolve(str(tmp_path))


def test_a_split_without_a_training_part(make, tmp_path):
    for part in ("val", "test"):
        make.write_classes(tmp_path / part, {"cat": 1, "dog": 1})
    with pytest.raises(ResnetlabError, match=r"'test', 'val'\. Expected one train folder"):
        resolve(str(tmp_path))


def test_loops_of_links_end(make, tmp_path):
    root = make.write_classes(tmp_path / "set", {"cat": 2, "dog": 1})
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    (root / "dog" / "up").symlink_to(root, target_is_directory=True)
    source = resolve(str(root))
    assert sum(s.label == 0 for s in source.samples) == 2


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": 2}, "Only one class .*'cat'.*two classes or more"),
        ({"cat": 2, "dog": 0}, "No image .* class 'dog'.*add images, or remove the folder"),
        ({}, "No images in .* Expected a folder for each class"),
    ],
)
def test_folders_that_cannot_be_learned_from(make, tmp_path, classes, message):
    make.write_classes(tmp_path / "set", classes)
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(ResnetlabError, match=message) as caught:
        resolve(str(tmp_path / "set"))
    assert caught.value.exit_code == 1


def test_images_in_no_class_folder(make, tmp_path):
    (tmp_path / "a.jpg").write_bytes(make.jpeg())
    with pytest.raises(ResnetlabError, match=r"1 images lie in .* itself, in no class folder"):
        resolve(str(tmp_path))


def test_wrong_names(make, tmp_path, nothing_at_hand):
    make.write_classes(tmp_path / "photos", {"cat": 1})
    (tmp_path / "photo.jpg").write_bytes(make.jpeg())
    with pytest.raises(UsageError, match=r"Unknown data set or folder 'phtos'\. Did you mean 'photos'"):
        resolve("phtos")
    with pytest.raises(UsageError, match="Did you mean 'cifar10'"):
        resolve("cifar")
    with pytest.raises(UsageError, match="Did you mean 'photos/cat'"):
        resolve("photos/cta")
    with pytest.raises(UsageError, match=r"photo\.jpg is a file; expected a folder"):
        resolve("photo.jpg")


def test_animals10_is_recognised_below_and_shown_in_english(make, nothing_at_hand, tmp_path):
    raw = make.write_classes(tmp_path / "downloads" / "versions" / "2" / "raw-img", dict.fromkeys(ANIMALS10, 1))
    for source in (resolve(str(tmp_path / "downloads")), resolve("animals10", data_root=tmp_path)):
        assert source.name == "animals10"
        assert source.class_names == tuple(sorted(ANIMALS10.values()))
        assert source.location == str(raw)
        dog = source.class_names.index("dog")
        assert [s.name for s in source.samples if s.label == dog] == ["cane/0.jpg"]


@pytest.mark.parametrize(
    ("name", "module", "function", "advice"),
    [
        ("animals10", "kagglehub", "dataset_download", r"unpack it into \./data.*cane, cavallo"),
        ("cifar10", "urllib.request", "urlopen", r"Get https://.*cifar-10-python\.tar\.gz and put it"),
    ],
)
def test_a_failed_download_says_where_to_put_the_data(nothing_at_hand, monkeypatch, name, module, function, advice):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host\na long page follows")

    if module not in sys.modules:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setattr(sys.modules[module], function, offline, raising=False)
    with pytest.raises(ResnetlabError, match=f"could not be downloaded: no route to host.*{advice}"):
        resolve(name)


def test_cifar10_is_downloaded_once_and_checked(nothing_at_hand, monkeypatch, tmp_path):
    """What does not have the published checksum is not kept; and Keras is not needed, which would fix the backend."""
    archive = tmp_path / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for batch, content in _batches().items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    fetched, counted = [], []

    def urlopen(url, timeout):
        fetched.append(url)
        response = io.BytesIO(archive.read_bytes())
        response.headers = {"Content-Length": str(9 << 20)}
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(ResnetlabError, match="could not be downloaded: received a file with SHA-256"):
        resolve("cifar10")
    assert not list((tmp_path / "keras").rglob("*.gz"))
    monkeypatch.setattr(sources, "CIFAR10_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    found = [resolve("cifar10", progress=lambda *count: counted.append(count)) for _ in range(2)]
    assert [source.images.shape for source in found] == [(12, 32, 32, 3)] * 2
    assert fetched == [sources.CIFAR10_URL] * 2
    assert counted == [("downloading (MiB)", 0, 9)]


def _batch(offset: int, protocol: int = 2) -> bytes:
    """Two images in CIFAR-10's layout: pixel values tell channel and place."""
    data = np.arange(2 * 3072, dtype=np.uint32).reshape(2, 3072) % 251
    return pickle.dumps({b"data": data.astype(np.uint8), b"labels": [offset % 10, 9]}, protocol=protocol)


def _batches() -> dict[str, bytes]:
    return {name: _batch(i) for i, name in enumerate(sources.CIFAR10_BATCHES)}


def test_cifar10_batches_from_a_folder_and_from_the_archive(tmp_path, nothing_at_hand):
    folder = tmp_path / "unpacked" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in _batches().items():
        (folder / name).write_bytes(content)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")

    for source in (resolve("unpacked"), resolve("cifar10")):
        assert (source.name, source.class_names, source.in_memory) == ("cifar10", CIFAR10, True)
        assert source.images.shape == (12, 32, 32, 3)
        assert source.images[0, 1, 2].tolist() == [(34 + 1024 * channel) % 251 for channel in range(3)]
        assert [s.subset for s in source.samples] == ["train"] * 10 + ["test"] * 2
        assert [s.label for s in source.samples[:4]] == [0, 9, 1, 9]


class _Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_an_evil_pickle_is_refused(tmp_path, nothing_at_hand):
    (tmp_path / "data").mkdir()
    for name, content in (_batches() | {"data_batch_3": pickle.dumps(_Evil())}).items():
        (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ResnetlabError, match=r"data_batch_3 was not loaded: it names \w+\.system\. Expected"):
        resolve("cifar10")
    assert not (tmp_path / "owned").exists()


def test_batches_of_another_shape_are_refused(tmp_path, nothing_at_hand):
    strange = pickle.dumps({b"data": np.zeros((2, 100), np.uint8), b"labels": [0, 1]})
    for name, content in (_batches() | {"test_batch": strange}).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ResnetlabError, match="test_batch is not a CIFAR-10 batch"):
        resolve(str(tmp_path))


def test_an_incomplete_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(ResnetlabError, match="lacks 'data_batch_2', 'data_batch_3'"):
        resolve(str(tmp_path))


def test_cifar10_is_read_out_of_zip_files(make, tmp_path, nothing_at_hand):
    root = tmp_path / "sets" / "cifar10"
    root.mkdir(parents=True)
    for part, names in (("train-0", CIFAR10[:5]), ("train-1", CIFAR10[5:]), ("test", CIFAR10)):
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for name in names:
                image = make.encode(make.picture(CIFAR10.index(name), (32, 32)), "WEBP", lossless=True)
                archive.writestr(f"{part.partition('-')[0]}/{name}/0.webp", image)
    source = resolve("cifar10", data_root=tmp_path / "sets")
    assert len(source.samples) == 20
    assert {s.subset for s in source.samples} == {"train", "test"}
    frog = next(s for s in source.samples if s.name == "train/frog/0.webp")
    assert source.class_names[frog.label] == "frog"
    with source.reader() as read, read(frog) as content:
        assert content == make.encode(make.picture(6, (32, 32)), "WEBP", lossless=True)


def test_zip_files_that_are_not_cifar10_are_no_matter(make, tmp_path):
    folder = make.write_classes(tmp_path / "photos", {"cat": 3, "dog": 3})
    (folder / "unfinished.zip").write_bytes(b"PK\x03\x04 half")
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    assert resolve(str(folder)).class_names == ("cat", "dog")
    with zipfile.ZipFile(folder / "cifar.zip", "w") as archive:
        archive.writestr("train/frog/0.png", make.encode(make.picture(6, (32, 32)), "PNG"))
    with pytest.raises(ResnetlabError, match=r"Cannot read .*unfinished\.zip"):
        resolve(str(folder))


def test_a_comparison_in_the_folder_is_no_class(make, tmp_path):
    folder = make.write_classes(tmp_path / "photos", {"cat": 3, "dog": 3})
    (folder / "cat" / "compare.json").write_text("{}")  # of the user's own
    made = folder / "runs" / "compare-1"
    made.mkdir(parents=True)
    (made / "compare.json").write_text("{}")
    (made / "compare.png").write_bytes(make.encode(make.picture(1, (32, 32)), "PNG"))
    assert resolve(str(folder)).class_names == ("cat", "dog")


def test_digits_need_no_network():
    source = resolve("digits")
    assert source.images.shape == (1797, 8, 8, 3)
    assert (source.images.min(), source.images.max()) == (0, 255)
    assert len(source.samples) == 1797
    assert source.class_names == tuple("0123456789")


def test_the_real_sets_are_found(real_data):
    animals, cifar = resolve("animals10", data_root=real_data), resolve("cifar10", data_root=real_data)
    assert (len(animals.samples), len(animals.class_names)) == (240, 10)
    assert (len(cifar.samples), cifar.class_names) == (60_000, CIFAR10)
    assert sum(s.subset == "test" for s in cifar.samples) == 10_000


def test_cifar100_is_not_taken_for_cifar10(nothing_at_hand, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("cifar-100-python.tar.gz", "cifar-10-binary.tar.gz"):
        (tmp_path / "data" / name).write_bytes(b"anything")
    with pytest.raises(ResnetlabError, match="not on this machine"):
        resolve("cifar10", download=False)


def test_the_test_part_is_not_taken_for_the_whole(make, nothing_at_hand, tmp_path):
    for part in ("Train", "Test"):
        make.write_classes(tmp_path / "data" / "cifar10" / part, dict.fromkeys(CIFAR10, 1))
    assert [s.subset for s in resolve("cifar10").samples].count("train") == 10
