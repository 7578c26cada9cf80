"""Prediction: the same on every backend and in a new process, and one bad file spoils nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab.data.pack import Pack
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.evaluation.logits import centre_crop
from resnetlab.inference.export import default_folder, is_current
from resnetlab.inference.images import ImageInput, collect_images
from resnetlab.inference.predictor import Predictor, ahead
from resnetlab.run_folder import RunFolder, RunInfo
from tests.data import make_images
from tests.workers import Workers


@pytest.fixture(scope="module")
def predictor(trained: tuple[RunFolder, Path, Pack]) -> Predictor:
    return Predictor(trained[0])


def files(*paths: Path | str) -> list[ImageInput]:
    return [ImageInput(str(path), Path(path)) for path in paths]


def predict(run: str, paths: list[str]) -> list[dict[str, Any]]:
    return [p.to_json() for p in Predictor(RunFolder.open(Path(run))).predict(files(*paths), top=3)]


def by_class(found: dict[str, Any]) -> dict[str, float]:
    return {row["class"]: row["probability"] for row in found["classes"]}


def test_the_same_predictions_on_every_backend_and_in_a_new_process(
    on: Workers, trained: tuple[RunFolder, Path, Pack]
) -> None:
    run, folder, _ = trained
    paths = [str(path) for path in sorted(folder.rglob("*.jpg"))[::4]]
    expected = predict(str(run.path), paths)
    command = [sys.executable, "-m", "resnetlab.cli", "predict", str(run.path), *paths, "--json", "--device", "cpu"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (child.returncode, child.stderr) == (0, "")
    answers = [[json.loads(line) for line in child.stdout.splitlines()]]
    answers += [on(backend)(predict, run=str(run.path), paths=paths) for backend in ("jax", "torch")]
    for answer in answers:
        assert [a["path"] for a in answer] == paths
        for one, other in zip(answer, expected, strict=True):
            assert by_class(one) == pytest.approx(by_class(other), abs=1e-4)


def test_predictions_of_a_packed_image_equal_those_of_its_file(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack]
) -> None:
    _, folder, packed = trained
    from_files = list(predictor.predict(files(*(folder / name for name in packed.names))))
    from_pack = predictor.rank(packed.images)
    assert len({classes[0][1] for classes in from_pack}) > 20  # the network does tell them apart
    for file, classes in zip(from_files, from_pack, strict=True):
        assert dict(file.top) == pytest.approx(dict(classes), abs=1e-6)


def test_mirrored_logits_are_those_of_mirror_images(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack]
) -> None:
    images = trained[2].images
    rows = np.array([4, 1, 7])
    plain, mirrored = (predictor.logits(images, rows, mirrored=flag) for flag in (False, True))
    seen = centre_crop(images[rows], predictor.recipe.test_size)
    expected = predictor.logits(np.ascontiguousarray(seen[:, :, ::-1]))
    np.testing.assert_allclose(mirrored, expected, atol=1e-5)
    assert np.abs(mirrored - plain).max() > 1e-3


def test_probabilities_are_ranked_and_sum_to_one(predictor: Predictor, trained: tuple[RunFolder, Path, Pack]) -> None:
    images = trained[2].images[:3]
    whole = predictor.rank(images, top=99)
    for classes in whole:
        assert {name for name, _ in classes} == {"crane", "heron", "stork"}
        assert sum(p for _, p in classes) == pytest.approx(1)
        assert sorted(classes, key=lambda pair: -pair[1]) == list(classes)
    assert predictor.rank(images, top=1) == [classes[:1] for classes in whole]


def test_a_bad_file_is_reported_and_the_rest_go_on(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack], tmp_path: Path
) -> None:
    good = make_images.jpeg(7)
    contents: dict[str, bytes] = {
        "a.jpg": good,
        "b.jpg": good[: len(good) // 2],
        "c.jpg": b"",
        "d.jpg": b"no image at all",
        "e.png": make_images.enormous_png(),
        "f.png": make_images.grey16_png(),
        "g.gif": make_images.animation(),
        "h.jpg": make_images.cmyk_jpeg(7),
        "i.jpg": good,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "j.jpg").mkdir()
    paths = [*(tmp_path / name for name in contents), tmp_path / "j.jpg", tmp_path / "gone.jpg"]
    found = list(predictor.predict(files(*paths), top=1))
    assert [p.path for p in found] == [str(path) for path in paths]
    bad = [Path(p.path).name for p in found if p.problem]
    assert bad == ["b.jpg", "c.jpg", "d.jpg", "e.png", "j.jpg", "gone.jpg"]
    assert all(len(p.top) == 1 for p in found if not p.problem)
    assert found[0].top == found[8].top
    assert found[1].to_json().keys() == {"path", "problem"}
    assert found[0].to_json()["classes"][0].keys() == {"class", "probability"}


def test_only_bad_files_and_no_files_at_all(predictor: Predictor, tmp_path: Path) -> None:
    assert [p.problem is None for p in predictor.predict(files(tmp_path / "gone.jpg"))] == [False]
    assert list(predictor.predict([])) == []


def test_more_files_than_a_batch_keep_their_order(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack], tmp_path: Path
) -> None:
    good = sorted(trained[1].rglob("*.jpg"))
    paths = (good * 3)[:70]
    paths[65] = tmp_path / "gone.jpg"
    found = list(predictor.predict(files(*paths), top=1))
    assert [p.path for p in found] == list(map(str, paths))
    assert [i for i, p in enumerate(found) if p.problem] == [65]
    assert found[0].label == found[30].label == found[60].label


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_another_engine_predicts_the_same(
    predictor: Predictor, trained: tuple[RunFolder, Path, Pack], engine: str, tmp_path: Path
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    run, folder, packed = trained
    paths = [*sorted(folder.rglob("*.jpg")), tmp_path / "gone.jpg"]
    other = Predictor(run, engine=engine)  # which exports
    for one, expected in zip(other.predict(files(*paths), top=3), predictor.predict(files(*paths), top=3), strict=True):
        assert (one.path, one.problem) == (expected.path, expected.problem)
        assert dict(one.top) == pytest.approx(dict(expected.top), abs=1e-4)
    np.testing.assert_allclose(other.logits(packed.images), predictor.logits(packed.images), atol=1e-5)


def test_an_export_is_made_once_and_again_when_the_weights_have_changed(
    trained: tuple[RunFolder, Path, Pack], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    shutil.copytree(trained[0].path, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    run, images = RunFolder.open(tmp_path / "run"), trained[2].images[:4]
    folder = default_folder(run, "onnx", "float32")
    before = Predictor(run, engine="onnx").rank(images)
    made = (folder / "model.onnx").stat().st_mtime_ns
    Predictor(run, engine="onnx")
    assert (folder / "model.onnx").stat().st_mtime_ns == made

    network = Predictor(run).network
    network.get_layer("head_logits").bias.assign([3.0, 0.0, 0.0])
    network.save_weights(run.best_weights)
    assert not is_current(folder, run)
    after = Predictor(run, engine="onnx").rank(images)
    assert is_current(folder, run)
    assert all(dict(new)["crane"] > dict(old)["crane"] for new, old in zip(after, before, strict=True))


def test_predicting_by_another_engine_loads_no_keras(trained: tuple[RunFolder, Path, Pack]) -> None:
    pytest.importorskip("onnxruntime")
    run, folder, _ = trained
    Predictor(run, engine="onnx")  # the first time makes the export, with Keras
    program = (
        "import sys; from pathlib import Path; from resnetlab.run_folder import RunFolder; "
        "from resnetlab.inference.predictor import Predictor; "
        "from resnetlab.inference.images import collect_images; "
        f"predictor = Predictor(RunFolder.open(Path({str(run.path)!r})), engine='onnx'); "
        "found = list(predictor.predict(collect_images(sys.argv[1])[0])); "
        "assert found[0].label, found; "
        "print([name for name in ('jax', 'keras', 'tensorflow', 'torch') if name in sys.modules])"
    )
    image = next(folder.rglob("*.jpg"))
    child = subprocess.run([sys.executable, "-c", program, str(image)], capture_output=True, text=True, timeout=120)
    assert (child.returncode, child.stdout) == (0, "[]\n"), child.stderr


def test_engines_and_precisions_that_are_not_there_are_told(trained: tuple[RunFolder, Path, Pack]) -> None:
    run = trained[0]
    with pytest.raises(UsageError, match=r"Unknown engine 'onx'. Did you mean 'onnx'"):
        Predictor(run, engine="onx")
    with pytest.raises(UsageError, match="Received precision 'int8' with the engine keras"):
        Predictor(run, precision="int8")
    with pytest.raises(UsageError, match="openvino exports: float32, float16, int8"):
        Predictor(run, engine="openvino", precision="bfloat16")


def test_files_are_read_ahead_in_order_and_only_so_far() -> None:
    taken, running = 0, threading.Event()

    def items() -> Any:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield number

    def work(number: int) -> int:
        running.set()
        time.sleep(0.002 * (number % 3))  # later ones end earlier
        return number

    results = ahead(work, items(), count=20)
    seen = 0
    for expected, number in enumerate(islice(results, 50)):
        assert number == expected
        seen += 1
        assert taken <= seen + 20
    assert running.is_set()
    results.close()  # a consumer that stops early
    assert taken <= seen + 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_files_folders_and_globs_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "a/2.PNG", "a/b/3.webp", "a/notes.txt", "c/[4] x.jpg", "c/ü 5.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def names(*arguments: str) -> list[str]:
        return [Path(str(image.path)).as_posix() for image in collect_images(arguments)[0]]

    assert names("a") == ["a/1.jpg", "a/2.PNG", "a/b/3.webp"]
    assert names("c", "a/1.jpg") == ["c/[4] x.jpg", "c/ü 5.jpeg", "a/1.jpg"]
    assert names("a/notes.txt") == ["a/notes.txt"]  # named, so its problem is told
    assert names("c/[4] x.jpg") == ["c/[4] x.jpg"]  # a file's name before it is a pattern
    assert names("a/*.jpg") == ["a/1.jpg"]
    assert names("**/*.webp") == ["a/b/3.webp"]
    assert names("a/*") == ["a/1.jpg", "a/2.PNG", "a/notes.txt"]  # not the folder a/b
    with os.scandir("c") as entries:
        found = sorted(str(image.path) for image in collect_images(list(entries))[0])
    assert found == ["c/[4] x.jpg", "c/ü 5.jpeg"]
    (tmp_path / "empty").mkdir()
    for argument, told in (
        ("*.bmp", "no such file"),
        ("gone.jpg", "no such file"),
        ("empty", "a folder without images"),
    ):
        with pytest.raises(UsageError, match=told):
            collect_images([argument])


def test_damaged_weights_are_told(trained: tuple[RunFolder, Path, Pack], tmp_path: Path) -> None:
    original = trained[0]
    info = RunInfo(model=original.recipe().model, class_names=("a", "b", "c"), source="photos")
    run = RunFolder.create(tmp_path / "run", recipe=original.recipe(), info=info)
    whole = original.best_weights.read_bytes()
    for content in (b"", b"noise", whole[: len(whole) // 2]):
        run.best_weights.write_bytes(content)
        with pytest.raises(ResnetlabError, match=r"best\.weights\.h5 is damaged"):
            Predictor(run)
    run.best_weights.write_bytes(whole)
    run.update(class_names=["a", "b", "c", "d"])
    with pytest.raises(ResnetlabError, match=r"best\.weights\.h5 cannot be loaded into resnet-tiny"):
        Predictor(run)
