"""Prediction: the same on every backend and in a new process, and one bad file spoils nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.inference.predictor import Predictor, expand
from resnetlab.recipes import BASE
from resnetlab.run import Run
from resnetlab.training.fit import train
from resnetlab.training.progress import TerminalProgress
from tests.data import make_images
from tests.workers import Workers

RECIPE = BASE.changed(
    model="resnet-tiny",
    image_size=24,
    batch_size=8,
    epochs=2,
    crop="resized",
    crop_scale=0.5,
    precision="bfloat16",
    seed=1,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Pack]:
    """A run of 30 images of three classes, their folder, and their pack."""
    root = tmp_path_factory.mktemp("predictor")
    folder = make_images.write_classes(root / "images", {"crane": 10, "heron": 10, "stork": 10})
    packed = pack(resolve(str(folder)), size=RECIPE.pack_size, cache_dir=root / "cache", validation=0.1, test=0.1)
    facts = {"class_names": list(packed.class_names), "model": RECIPE.model}
    run = Run.create(root / "run", recipe=RECIPE, environment={}, facts=facts)
    with TerminalProgress(Console(quiet=True)) as progress:
        train(packed, RECIPE, run, progress=progress)
    return run, folder, packed


@pytest.fixture(scope="module")
def predictor(trained: tuple[Run, Path, Pack]) -> Predictor:
    return Predictor(trained[0])


def predict(run: str, paths: list[str]) -> list[dict[str, Any]]:
    return [p.to_json() for p in Predictor(Run.open(Path(run))).predict(map(Path, paths), top=3)]


def by_class(found: dict[str, Any]) -> dict[str, float]:
    return {row["class"]: row["probability"] for row in found["classes"]}


def test_the_same_predictions_on_every_backend_and_in_a_new_process(
    on: Workers, trained: tuple[Run, Path, Pack]
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
    predictor: Predictor, trained: tuple[Run, Path, Pack]
) -> None:
    _, folder, packed = trained
    from_files = list(predictor.predict(folder / name for name in packed.names))
    from_pack = predictor.rank(packed.images)
    assert len({classes[0][1] for classes in from_pack}) > 20  # the network does tell them apart
    for file, classes in zip(from_files, from_pack, strict=True):
        assert dict(file.classes) == pytest.approx(dict(classes), abs=1e-6)


def test_probabilities_are_ranked_and_sum_to_one(predictor: Predictor, trained: tuple[Run, Path, Pack]) -> None:
    images = trained[2].images[:3]
    whole = predictor.rank(images, top=99)
    for classes in whole:
        assert {name for name, _ in classes} == {"crane", "heron", "stork"}
        assert sum(p for _, p in classes) == pytest.approx(1)
        assert sorted(classes, key=lambda pair: -pair[1]) == list(classes)
    assert predictor.rank(images, top=1) == [classes[:1] for classes in whole]


def test_a_bad_file_is_reported_and_the_rest_go_on(
    predictor: Predictor, trained: tuple[Run, Path, Pack], tmp_path: Path
) -> None:
    good = make_images.jpeg(7)
    files: dict[str, bytes] = {
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
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "j.jpg").mkdir()
    paths = [*(tmp_path / name for name in files), tmp_path / "j.jpg", tmp_path / "gone.jpg"]
    found = list(predictor.predict(paths, top=1))
    assert [p.path for p in found] == [str(path) for path in paths]
    bad = [Path(p.path).name for p in found if p.problem]
    assert bad == ["b.jpg", "c.jpg", "d.jpg", "e.png", "j.jpg", "gone.jpg"]
    assert all(len(p.classes) == 1 for p in found if not p.problem)
    assert found[0].classes == found[8].classes
    assert found[1].to_json().keys() == {"path", "problem"}
    assert found[0].to_json()["classes"][0].keys() == {"class", "probability"}


def test_only_bad_files_and_no_files_at_all(predictor: Predictor, tmp_path: Path) -> None:
    assert [p.problem is None for p in predictor.predict([tmp_path / "gone.jpg"])] == [False]
    assert list(predictor.predict([])) == []


def test_more_files_than_a_batch_keep_their_order(
    predictor: Predictor, trained: tuple[Run, Path, Pack], tmp_path: Path
) -> None:
    good = sorted(trained[1].rglob("*.jpg"))
    paths = (good * 3)[:70]
    paths[65] = tmp_path / "gone.jpg"
    found = list(predictor.predict(paths, top=1))
    assert [p.path for p in found] == list(map(str, paths))
    assert [i for i, p in enumerate(found) if p.problem] == [65]
    assert found[0].classes[0][0] == found[30].classes[0][0] == found[60].classes[0][0]


def test_files_folders_and_globs_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "a/2.PNG", "a/b/3.webp", "a/notes.txt", "c/[4] x.jpg", "c/ü 5.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def names(*arguments: str) -> list[str]:
        return [path.as_posix() for path in expand(arguments)]

    assert names("a") == ["a/1.jpg", "a/2.PNG", "a/b/3.webp"]
    assert names("c", "a/1.jpg") == ["c/[4] x.jpg", "c/ü 5.jpeg", "a/1.jpg"]
    assert names("a/notes.txt") == ["a/notes.txt"]  # named, so its problem is told
    assert names("c/[4] x.jpg") == ["c/[4] x.jpg"]  # a file's name before it is a pattern
    assert names("a/*.jpg") == ["a/1.jpg"]
    assert names("**/*.webp") == ["a/b/3.webp"]
    assert names("a/*") == ["a/1.jpg", "a/2.PNG", "a/notes.txt"]  # not the folder a/b
    (tmp_path / "empty").mkdir()
    for argument, told in (("*.bmp", "No file matches"), ("gone.jpg", "No file matches"), ("empty", "no image")):
        with pytest.raises(UsageError, match=told):
            expand([argument])


def test_damaged_weights_are_told(trained: tuple[Run, Path, Pack], tmp_path: Path) -> None:
    original = trained[0]
    run = Run.create(tmp_path / "run", recipe=RECIPE, environment={}, facts={"class_names": ["a", "b", "c"]})
    whole = original.best_weights.read_bytes()
    for content in (b"", b"noise", whole[: len(whole) // 2]):
        run.best_weights.write_bytes(content)
        with pytest.raises(ResnetlabError, match=r"best\.weights\.h5 cannot be loaded into resnet-tiny"):
            Predictor(run)
    run.best_weights.write_bytes(whole)
    run.update(class_names=["a", "b", "c", "d"])
    with pytest.raises(ResnetlabError, match=r"best\.weights\.h5 cannot be loaded into resnet-tiny"):
        Predictor(run)
