from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
from PIL import Image

from resnetlab.data import audit as audit_module
from resnetlab.data import build_pack
from resnetlab.data.pack import pack
from resnetlab.data.preprocess import decode, fit_square
from resnetlab.data.sources import resolve
from resnetlab.environment import cache_folder
from resnetlab.errors import ResnetlabError, UsageError


@pytest.fixture
def photos(make, tmp_path):
    return make.write_classes(tmp_path / "photos", {"cat": 12, "dog": 15})


@pytest.fixture
def build(tmp_path):
    """Pack a folder at 16x16 in a cache of its own."""

    def build(root, **changes):
        settings = {"size": 16, "cache_dir": tmp_path / "cache", "validation": 0.2, "test": 0.2} | changes
        return pack(resolve(str(root)), **settings)

    return build


def cached(tmp_path):
    """What is in the cache, besides locks."""
    return [path for path in (tmp_path / "cache").iterdir() if path.name != ".locks"]


def _forbid_decoding(monkeypatch):
    def decoded(*args, **kwargs):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(audit_module, "decode", decoded)


def test_a_pack_holds_what_prediction_would_see(photos, build):
    packed = build(photos)
    assert packed.images.shape == (27, 16, 16, 3)
    assert packed.images.dtype == np.uint8
    assert isinstance(packed.images, np.memmap)
    assert not packed.images.flags.writeable
    for name, label, image in zip(packed.names, packed.labels, packed.images, strict=True):
        assert packed.class_names[label] == name.partition("/")[0]
        np.testing.assert_array_equal(image, fit_square(decode(photos / name, size=16).image, 16))


def test_a_pack_of_another_interpolation_is_another_pack(photos, build):
    bilinear, bicubic = build(photos), build(photos, interpolation="bicubic")
    for name, image in zip(bicubic.names, bicubic.images, strict=True):
        np.testing.assert_array_equal(image, fit_square(decode(photos / name, size=16).image, 16, "bicubic"))
    assert bilinear.key != bicubic.key
    assert (bilinear.images != bicubic.images).any()


def test_whole_images_are_stored_beside_their_centres(make, photos, build):
    Image.open(photos / "cat" / "0.jpg").resize((40, 16)).save(photos / "cat" / "0.jpg")
    plain, packed = build(photos), build(photos, whole=True)
    np.testing.assert_array_equal(packed.images, plain.images)  # what evaluation and prediction see
    assert packed.key != plain.key
    assert (plain.whole, plain.aspect) == (None, None)
    again = build(photos, whole=True)
    for row, name in enumerate(packed.names):
        image = decode(photos / name, size=16).image
        np.testing.assert_array_equal(packed.whole[row], np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)))
        assert packed.aspect[row] == pytest.approx(image.width / image.height, rel=0.1)
    assert packed.aspect[packed.names.index("cat/0.jpg")] == 2.5
    np.testing.assert_array_equal(again.whole, packed.whole)
    np.testing.assert_array_equal(again.aspect, packed.aspect)


def test_of_two_that_pack_the_same_images_one_waits_for_the_other(photos, build):
    second: list[threading.Thread] = []
    told, packs, decoded = threading.Event(), {}, []

    def first_decodes(done, total):
        decoded.append(done)
        if not second:
            second.append(threading.Thread(target=lambda: packs.update(second=build(photos, **options))))
            second[0].start()
            assert told.wait(30)  # the other one is waiting before this one goes on

    options = {"progress": lambda done, total: decoded.append("again"), "waiting": told.set}
    packs["first"] = build(photos, progress=first_decodes)
    second[0].join()
    assert "again" not in decoded
    np.testing.assert_array_equal(packs["first"].images, packs["second"].images)


def test_subsets_partition_the_images(photos, build):
    packed = build(photos)
    rows = np.concatenate([packed.indices(subset) for subset in ("train", "validation", "test")])
    assert sorted(rows.tolist()) == list(range(27))
    counts = [packed.class_counts(subset) for subset in ("train", "validation", "test")]
    assert np.sum(counts, axis=0).tolist() == [12, 15]
    assert np.min(counts) >= 1


def test_reuse_decodes_nothing(photos, build, monkeypatch):
    first = build(photos)
    _forbid_decoding(monkeypatch)
    progress = []
    again = build(photos, progress=lambda *call: progress.append(call))
    np.testing.assert_array_equal(again.images, first.images)
    assert (again.key, again.names, again.audit, progress) == (first.key, first.names, first.audit, [])
    other = build(photos, seed=1, validation=0.4)  # the split is not part of the pack
    assert other.key == first.key
    assert not np.array_equal(other.subset, first.subset)


def test_a_moved_data_set_is_reused(photos, build, monkeypatch, tmp_path):
    first = build(photos)
    _forbid_decoding(monkeypatch)
    moved = photos.rename(tmp_path / "elsewhere")
    (tmp_path / "new").mkdir()
    again = build(moved.rename(tmp_path / "new" / "photos"))
    assert again.key == first.key
    assert again.audit["location"] == str(tmp_path / "new" / "photos")


def test_any_change_gives_another_key(make, photos, build):
    keys = [build(photos).key, build(photos, size=8).key]
    (photos / "cat" / "0.jpg").write_bytes(make.jpeg(99))
    keys.append(build(photos).key)
    stat = (photos / "cat" / "0.jpg").stat()
    os.utime(photos / "cat" / "0.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    keys.append(build(photos).key)
    (photos / "cat" / "0.jpg").rename(photos / "cat" / "zero.jpg")
    keys.append(build(photos).key)
    (photos / "cat" / "zero.jpg").rename(photos / "dog" / "zero.jpg")
    keys.append(build(photos).key)
    (photos / "dog" / "new.jpg").write_bytes(make.jpeg(100))
    keys.append(build(photos).key)
    assert len(set(keys)) == len(keys)


def test_what_changes_the_use_of_files_makes_another_pack(photos, build, monkeypatch):
    keys = [build(photos).key]
    monkeypatch.setenv("RESNETLAB_MAX_PIXELS", "1900")  # they have 1,920
    with pytest.raises(ResnetlabError, match=r"No usable image .*\(12 too many pixels\)"):
        build(photos)
    monkeypatch.setenv("RESNETLAB_MAX_PIXELS", "1920")
    keys.append(build(photos).key)
    monkeypatch.setattr("resnetlab.data.pack.find_spec", lambda name: None)  # without pillow-heif
    keys.append(build(photos).key)
    assert len(set(keys)) == len(keys)


def test_what_is_set_aside_leaves_no_gap(make, photos, build):
    (photos / "cat" / "1.jpg").write_bytes(b"")
    (photos / "cat" / "0.jpg").write_bytes(make.jpeg(70))
    (photos / "dog" / "3.jpg").write_bytes(make.jpeg(70))
    packed = build(photos)
    assert len(packed.audit["set_aside"]) == 3
    assert packed.images.shape[0] == len(packed.names) == len(packed.hashes) == 24
    for name, image in zip(packed.names, packed.images, strict=True):
        np.testing.assert_array_equal(image, fit_square(decode(photos / name, size=16).image, 16))


def test_images_of_the_working_size_are_packed_to_the_byte(make, tmp_path, build):
    root = make.write_classes(tmp_path / "small", {"cat": 2, "dog": 2})
    for index in range(3):
        make.picture(index, (16, 16)).save(root / "cat" / f"{index}.png")
    packed = build(root)
    for name, image in zip(packed.names, packed.images, strict=True):
        if name.endswith("png"):
            np.testing.assert_array_equal(image, np.asarray(Image.open(root / name)))


def test_digits_are_enlarged(tmp_path):
    source = resolve("digits")
    packed = pack(source, size=16, cache_dir=tmp_path, validation=0.1, test=0.1)
    assert packed.images.shape == (1797, 16, 16, 3)
    native = pack(source, size=8, cache_dir=tmp_path, validation=0.1, test=0.1)
    np.testing.assert_array_equal(native.images, source.images)


# ------------------------------------------------------------------------------------------- what goes wrong


def interrupt_after(monkeypatch, count, error=KeyboardInterrupt):
    """Let decoding end with an error after so many images."""
    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) > count:
            raise error
        return fit_square(*args)

    monkeypatch.setattr(audit_module, "fit_square", stop)


def test_an_error_in_the_middle_leaves_nothing(photos, build, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10, RuntimeError("a fault"))
        with pytest.raises(RuntimeError, match="a fault"):
            build(photos)
    assert cached(tmp_path) == []
    assert build(photos).images.shape[0] == 27


@pytest.mark.parametrize("harm", [None, "half a line", "short images", "no images", "more images", "other files"])
def test_an_interrupted_build_is_continued(make, build, tmp_path, monkeypatch, harm):
    photos = make.write_classes(tmp_path / "many", {"cat": 40, "dog": 60})
    (photos / "cat" / "broken.jpg").write_bytes(b"no image")
    (photos / "dog" / "copy.jpg").write_bytes((photos / "cat" / "0.jpg").read_bytes())  # both are set aside at the end
    expected = build(photos, cache_dir=tmp_path / "other")
    monkeypatch.setattr(build_pack, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 80)
        with pytest.raises(KeyboardInterrupt):
            build(photos, workers=1)
    (unfinished,) = cached(tmp_path)
    saved = (unfinished / "records.jsonl").read_bytes()
    assert saved.count(b"\n") == 64  # two chunks
    if harm == "half a line":
        (unfinished / "records.jsonl").write_bytes(saved[:-7])
    elif harm == "short images":
        os.truncate(unfinished / "images.npy", 20_000)
    elif harm == "no images":
        (unfinished / "images.npy").unlink()
    elif harm == "more images":
        with open(unfinished / "images.npy", "ab") as file:
            file.write(b"written, but not recorded")
    elif harm == "other files":
        (unfinished / "records.jsonl").write_bytes(saved.replace(b"cat/", b"dog/"))

    steps = []
    found = build(photos, workers=1, progress=lambda done, total: steps.append((done, total)))
    first = {None: 96, "more images": 96, "half a line": 63 + 32}.get(harm, 32)
    assert steps[0] == (first, 102)
    np.testing.assert_array_equal(found.images, expected.images)
    assert (found.names, found.hashes, found.audit) == (expected.names, expected.hashes, expected.audit)
    (folder,) = cached(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "pack.json"]


def test_what_nobody_goes_on_with_is_removed_after_a_week(photos, build, tmp_path):
    old, recent = (tmp_path / "cache" / f".unfinished-{name}" for name in ("old", "recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"half")
    for path in (old / "images.npy", old):
        os.utime(path, (0, 0))
    build(photos)
    assert not old.exists()
    assert recent.exists()


@pytest.mark.parametrize("damage", ["no description", "no images", "short"])
def test_a_damaged_pack_is_built_again(photos, build, tmp_path, damage):
    first = build(photos)
    expected = np.array(first.images)
    (folder,) = cached(tmp_path)
    if damage == "no description":
        (folder / "pack.json").unlink()
    elif damage == "no images":
        (folder / "images.npy").unlink()
    else:
        content = (folder / "images.npy").read_bytes()
        (folder / "images.npy").unlink()
        (folder / "images.npy").write_bytes(content[:-5])
    np.testing.assert_array_equal(build(photos).images, expected)


def test_a_full_disk_is_said_and_cleaned_up(photos, build, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_pack, "_sync", full)
    with pytest.raises(ResnetlabError, match=r"Cannot write .*No space left.*make room, or set \$RESNETLAB_CACHE"):
        build(photos)
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_made(photos, build, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResnetlabError, match=r"Cannot write the packed images to .*file"):
        build(photos, cache_dir=tmp_path / "file")


def test_values_out_of_range_are_refused_before_any_work(photos, build, tmp_path):
    with pytest.raises(UsageError, match="image size 0"):
        build(photos, size=0)
    with pytest.raises(UsageError, match="Nothing left to train on"):
        build(photos, validation=0.5, test=0.5)
    assert not (tmp_path / "cache").exists()


def test_a_class_with_no_training_image(make, tmp_path, build):
    for part, start in (("train", 0), ("test", 10)):
        make.write_classes(tmp_path / "set" / part, {"cat": 2, "dog": 2}, start=start)
    for file in (tmp_path / "set" / "train" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ResnetlabError, match="No training image of dog"):
        build(tmp_path / "set")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RESNETLAB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "resnetlab"


def test_the_real_animals(real_data, tmp_path):
    source = resolve("animals10", data_root=real_data)
    packed = pack(source, size=64, cache_dir=tmp_path, validation=0.2, test=0.1)
    assert packed.images.shape == (240, 64, 64, 3)
    assert packed.class_counts("validation").min() >= 4


def test_a_failure_to_read_that_may_pass_is_not_kept(photos, build, tmp_path, monkeypatch):
    """A network drive that was away, or no memory: the image is not set aside for good."""

    def away(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("resnetlab.data.preprocess._convert", away)
        with pytest.raises(ResnetlabError, match=r"cat/0\.jpg could not be read: not enough memory"):
            build(photos)
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        with pytest.raises(ResnetlabError, match=r"could not be read: unreadable \(I/O error\)"):
            build(photos)
    packed = build(photos)
    assert len(packed.images) == 27
    assert packed.audit["set_aside"] == []


def test_a_file_that_was_edited_without_another_time_is_read_again(photos, build, make):
    """Some programs restore the time of the last modification."""
    path = photos / "cat" / "0.jpg"
    first, before = build(photos), path.stat()
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert build(photos).hashes != first.hashes
