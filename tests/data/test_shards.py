"""Shards: read as one array, the same batches as from one file, and whatever is wrong with them is named first."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from resnetlab import tasks
from resnetlab.atomic import locked
from resnetlab.data import shards
from resnetlab.data.audit import audit
from resnetlab.data.pack import prepare_pack
from resnetlab.data.shards import MANIFEST, Shards
from resnetlab.data.sources import resolve
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.recipes import RECIPES
from resnetlab.training.build import make_stream

RECIPE = RECIPES["quick"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in two shards."""
    root = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNETLAB_CACHE", str(root / "cache"))
        assert tasks.pack("digits", root / "shards", recipe=RECIPE, shard_megabytes=1, progress=None) == 2
    return root / "shards"


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy of them, for a test to harm."""
    return shutil.copytree(packed, tmp_path / "shards")


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("lengths", [[4, 3, 5], [1, 1], [7]])
def test_shards_are_read_as_one_array(lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 255, (n, 2, 3, 3, 3), np.uint8) for n in lengths]
    whole, divided = np.concatenate(parts), Shards(parts)
    total = sum(lengths)
    assert (len(divided), divided.shape, divided.dtype) == (total, whole.shape, whole.dtype)
    indices = [0, total - 1, -1, slice(None), slice(1, -1, 2), rng.permutation(total), [0, 0, total - 1]]
    for index in [*indices, np.array([], int), whole[:, 0, 0, 0, 0] > 100, np.int64(0)]:
        np.testing.assert_array_equal(divided[index], whole[index])
        np.testing.assert_array_equal(divided.column(1)[index], whole[:, 1][index])
    np.testing.assert_array_equal(divided[np.array([-1, 0])], whole[[-1, 0]])
    for index in (total, -total - 1, [total], np.array([0, total]), np.array([-total - 1])):
        with pytest.raises(IndexError):
            divided[index]


@pytest.mark.parametrize("whole_images", [False, True])
def test_the_batches_are_those_of_one_file(tmp_path: Path, animals: Path, whole_images: bool) -> None:
    recipe = RECIPES["animals"].changed(whole_images=whole_images, batch_size=4, image_size=16)
    tasks.pack(animals, tmp_path / "shards", recipe=recipe, progress=None)
    streams = []
    for data in (animals, tmp_path / "shards"):
        pack = prepare_pack(resolve(str(data)), recipe)
        streams.append(make_stream(recipe, pack))
        assert pack.source_name == prepare_pack(resolve(str(animals)), recipe).source_name
        assert pack.audit["set_aside"] == prepare_pack(resolve(str(animals)), recipe).audit["set_aside"]
    for step in range(4):
        (one, targets, weights), (other, theirs, others) = (stream.batch(step) for stream in streams)
        for name, values in one.items():
            np.testing.assert_array_equal(other[name], values)
        np.testing.assert_array_equal(theirs, targets)
        np.testing.assert_array_equal(others, weights)


def test_a_data_set_of_any_name_is_read_again(animals: Path) -> None:
    named = animals.rename(animals.with_name("l'e\u0301t\u00e9 (1) + cats & dogs"))
    target = animals.with_name("shards")
    tasks.pack(named, target, image_size=16, progress=None)
    assert resolve(str(target)).name == "l_\u00e9t\u00e9 _1_ _ cats _ dogs"
    with pytest.raises(UsageError, match="has shards already"):
        tasks.pack(named, target, image_size=16, progress=None)


def test_lost_images_are_told_when_packed_and_when_trained_on(animals: Path) -> None:
    for number in range(100):
        (animals / "cat" / f"{number}.cr2").write_bytes(b"raw")
    target = animals.with_name("shards")
    with pytest.raises(ResnetlabError, match="Most images are lost of 'cat'"):
        tasks.pack(animals, target, image_size=16, progress=None)
    tasks.pack(animals, target, image_size=16, allow_losses=True, progress=None)
    pack = prepare_pack(resolve(str(target)), RECIPES["photos"].changed(model="resnet-tiny", image_size=16))
    assert "cat" in pack.audit["losses"]
    assert pack.audit["ignored"] == {".cr2": 100}


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 255, (20 + number, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "animals" / name / f"{number}.png")
    (tmp_path / "animals" / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return tmp_path / "animals"


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [(remove, "images-00001.npy is missing"), (shorten, "bytes, expected"), (flip, "its checksum differs")],
)
@pytest.mark.parametrize("before", [False, True], ids=["first", "read before"])
def test_a_missing_or_damaged_shard_is_named(
    folder: Path, harm: Callable[[Path], None], message: str, before: bool
) -> None:
    if before:
        resolve(str(folder))
    harm(folder / "images-00001.npy")
    with pytest.raises(ResnetlabError, match=f"1 of 2 shards of .*images-00001.npy.*{message.split('npy ')[-1]}"):
        resolve(str(folder))


def test_shards_that_have_not_changed_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(str(folder))
    monkeypatch.setattr(shards.hashlib, "file_digest", None)  # type: ignore[attr-defined]
    resolve(str(folder))


def test_a_process_waits_for_another_that_checks_the_same_shards(folder: Path, cache: Path) -> None:
    resolve(str(folder))
    (record,) = (cache / ".checked").glob("*.json")
    with ThreadPoolExecutor(1) as threads:
        with locked(record.with_suffix(".lock")):
            read = threads.submit(resolve, str(folder))
            with pytest.raises(TimeoutError):
                read.result(timeout=0.5)
        assert read.result(timeout=30).packed is not None


def described(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def shard(folder: Path, **changes: Any) -> list[Any]:
    content = json.loads((folder / MANIFEST).read_text())
    return [content["shards"][0] | changes, *content["shards"][1:]]


@pytest.mark.parametrize(
    "changes",
    [
        lambda folder: {"format": 2},
        lambda folder: {"shards": []},
        lambda folder: {"shards": "none"},
        lambda folder: {"shards": shard(folder, name="../images-00000.npy")},
        lambda folder: {"shards": shard(folder, name="/etc/passwd")},
        lambda folder: {"shards": shard(folder, rows=10**12)},
        lambda folder: {"shards": shard(folder, rows=-1)},
        lambda folder: {"shards": shard(folder, rows="1")},
        lambda folder: {"shards": shard(folder, sha256="..")},
        lambda folder: {"shape": [1797, 16, 16, 4]},
        lambda folder: {"shape": [1797, 16, 16]},
        lambda folder: {"shape": None},
        lambda folder: {"key": "../../x"},
        lambda folder: {"source": "../../x"},
        lambda folder: {"labels": [0]},
        lambda folder: {"labels": [99] * 1797},
        lambda folder: {"labels": [True] * 1797},
        lambda folder: {"names": None},
        lambda folder: {"class_names": []},
        lambda folder: {"audit": []},
        lambda folder: {"interpolation": "nearest"},
    ],
)
def test_a_description_that_cannot_be_is_refused(folder: Path, changes: Callable[[Path], dict[str, Any]]) -> None:
    described(folder, **changes(folder))
    with pytest.raises(ResnetlabError, match="is not a description of shards"):
        resolve(str(folder))


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"format": 1}', "[" * 100_000])
def test_another_file_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ResnetlabError, match=r"shards\.json"):
        resolve(str(folder))


def test_a_shard_of_other_pixels_is_refused(folder: Path) -> None:
    np.save(folder / "images-00000.npy", np.zeros((3, 2), np.float32))
    content = (folder / "images-00000.npy").read_bytes()
    changes = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    described(folder, shards=shard(folder, **changes))
    with pytest.raises(ResnetlabError, match=r"holds float32 \(3, 2\), expected uint8"):
        resolve(str(folder))


def test_the_recipe_must_fit(folder: Path) -> None:
    with pytest.raises(UsageError, match="packed for 16x16 pixels, bilinear, centre squares; the recipe needs 32x32"):
        prepare_pack(resolve(str(folder)), RECIPE.changed(image_size=32))


def test_shards_are_neither_audited_nor_packed_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was audited when it was packed"):
        audit(resolve(str(folder)))
    with pytest.raises(UsageError, match="packed already"):
        tasks.pack(folder, tmp_path / "again", recipe=RECIPE, progress=None)
    with pytest.raises(UsageError, match="has shards already"):
        tasks.pack("digits", folder, recipe=RECIPE, progress=None)


@pytest.mark.parametrize("left", ["whole", "half", "other content"])
def test_an_interrupted_write_is_continued(folder: Path, left: str) -> None:
    (folder / MANIFEST).unlink()
    first, second = folder / "images-00000.npy", folder / "images-00001.npy"
    contents = [file.read_bytes() for file in (first, second)]
    if left == "half":
        shorten(second)
    elif left == "other content":
        flip(second)
    for file in (first, second):
        os.utime(file, (0, 0))
    tasks.pack("digits", folder, recipe=RECIPE, shard_megabytes=1, progress=None)
    assert [file.read_bytes() for file in (first, second)] == contents
    assert first.stat().st_mtime == 0
    assert (second.stat().st_mtime == 0) is (left == "whole")


def test_shards_in_object_storage_are_copied_and_a_copy_is_continued(memory: Any, cache: Path) -> None:
    tasks.pack("digits", "memory://bucket/digits", recipe=RECIPE, shard_megabytes=1, progress=None)
    first = memory.cat_file("/bucket/digits/images-00000.npy")
    memory.pipe_file("/bucket/digits/images-00000.npy", first[:-1] + b"x")
    with pytest.raises(ResnetlabError, match=r"1 of 2 shards of memory://bucket/digits .*images-00000.npy is damaged"):
        resolve("memory://bucket/digits")
    (copies,) = cache.glob("*-shards")
    assert [path.name for path in copies.iterdir()] == ["images-00001.npy"]
    memory.rm_file("/bucket/digits/images-00001.npy")  # it has been copied
    memory.pipe_file("/bucket/digits/images-00000.npy", first)
    pack = prepare_pack(resolve("memory://bucket/digits"), RECIPE)
    np.testing.assert_array_equal(pack.images[:], prepare_pack(resolve("digits"), RECIPE).images)
    shutil.rmtree(copies)
    with pytest.raises(ResnetlabError, match=r"images-00001\.npy is missing"):
        resolve("memory://bucket/digits")


@pytest.mark.parametrize(
    ("url", "error"), [("memory://nothing/here", "has no shards.json"), ("nowhere://x", "Protocol not known")]
)
def test_no_shards_at_a_url(memory: Any, url: str, error: str) -> None:
    with pytest.raises(ResnetlabError, match=error):
        resolve(url)


def test_a_run_on_a_real_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        url = "s3://bucket/digits"
        assert tasks.pack("digits", url, recipe=RECIPE, shard_megabytes=1, progress=None) == 2
        options: dict[str, Any] = {"recipe": RECIPE, "epochs": 1, "progress": None}
        stored = tasks.train(url, run=tmp_path / "stored", **options)
        alone = tasks.train("digits", run=tmp_path / "alone", **options)
        assert stored.history[0]["loss"] == alone.history[0]["loss"]
        assert stored.evaluate(progress=None).top1 == alone.evaluate(progress=None).top1
        files = fsspec.filesystem("s3")
        content = files.cat_file("bucket/digits/images-00001.npy")
        files.pipe_file("bucket/digits/images-00001.npy", content[:-1] + bytes([content[-1] ^ 1]))
        shutil.rmtree(next((tmp_path / "cache").glob("*-shards")))
        with pytest.raises(ResnetlabError, match=r"1 of 2 shards of s3://bucket/digits .*images-00001.npy is damaged"):
            tasks.train(url, run=tmp_path / "third", **options)
        assert not (tmp_path / "third").exists()
    finally:
        server.stop()
