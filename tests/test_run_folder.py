"""The run folder: nothing is overwritten, nothing is half written, and what is not one is told so."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from resnetlab.atomic import atomic_file
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.recipes import RECIPES
from resnetlab.run_folder import FORMAT, RunFolder, RunInfo


def make(path: Path) -> RunFolder:
    info = RunInfo(model="resnet-tiny", class_names=("cat", "犬"), source="photos")
    return RunFolder.create(path, recipe=RECIPES["quick"], info=info)


def test_a_run_is_created_and_opened(tmp_path: Path) -> None:
    made = make(tmp_path / "deep" / "er" / "run with ünicode")
    made.update(status="finished", epoch=3)
    run = RunFolder.open(made.path)
    assert run.recipe() == RECIPES["quick"]
    info = run.info()
    assert (info.format, info.status, info.class_names, info.epoch) == (FORMAT, "finished", ("cat", "犬"), 3)
    assert run.read_json("environment.json")["versions"]["keras"]
    assert run.metrics() == []


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert make(tmp_path).info().status == "started"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.update(status="finished")
    with pytest.raises(UsageError, match=r"is not empty.*--run") as error:
        make(run.path)
    assert "--resume" not in str(error.value)  # it has no checkpoint
    run.checkpoints.mkdir()
    (run.checkpoints / "step-000000000.npz").touch()
    with pytest.raises(UsageError, match=r"is not empty.*--run.*--resume"):
        make(run.path)
    assert run.info().status == "finished"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="is not empty"):
        make(tmp_path / "folder")
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"Cannot make the run folder .*Choose another with --run"):
            make(path)


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UsageError, match="no such folder"):
            RunFolder.open(path)
    with pytest.raises(UsageError, match=r"is not a run folder: it has no run.json"):
        RunFolder.open(tmp_path)
    run = make(tmp_path / "run")
    run.recipe_file.unlink()
    with pytest.raises(UsageError, match=r"is not a run folder: it has no recipe.json"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("text", ['{"format": 1, ', "", "\x00\x00", "[]", "7"])
def test_damaged_facts_are_told(tmp_path: Path, text: str) -> None:
    run = make(tmp_path / "run")
    (run.path / "run.json").write_text(text)
    with pytest.raises(ResnetlabError, match=r"run\.json"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("text", ["{", "[]", '{"epochs": 0}', '{"of_a_later_version": 1}'])
def test_a_damaged_recipe_is_told(tmp_path: Path, text: str) -> None:
    run = make(tmp_path / "run")
    run.recipe_file.write_text(text)
    with pytest.raises(ResnetlabError, match=r"recipe\.json"):
        RunFolder.open(run.path).recipe()


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run.path / "run.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ResnetlabError, match="cannot be read"):
        run.info()


def test_another_format_is_told(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.write_json("run.json", run.info().model_dump() | {"format": FORMAT + 1})
    with pytest.raises(
        ResnetlabError, match=f"received run format {FORMAT + 1}, this version of resnetlab reads 1 and {FORMAT}"
    ):
        RunFolder.open(run.path)


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        (
            {"status": "finished", "class_names": ["a", "b"], "model": "resnet20", "data": "digits", "epoch": 3},
            {"status": "finished", "class_names": ("a", "b"), "data": "digits", "epoch": 3, "allow_losses": True},
        ),
        (
            {"status": "ported", "class_names": ["a"], "model": "resnet18", "data": None, "source": "r.pth"},
            {"status": "imported", "source": "r.pth", "data": None},
        ),
        (  # as the notebook wrote it
            {"status": "finished", "class_names": ["a"], "model": "resnet20", "seconds": 7.5},
            {"data": None, "source": ""},
        ),
    ],
)
def test_a_run_of_format_1_is_read(tmp_path: Path, former: dict[str, Any], expected: dict[str, Any]) -> None:
    run = make(tmp_path / "run")
    run.write_json("run.json", {"format": 1} | former)
    info = RunFolder.open(run.path).info().model_dump()
    assert {key: info[key] for key in expected} == expected
    run.update(step=5)  # writes the present format
    assert json.loads((run.path / "run.json").read_text("utf-8"))["format"] == FORMAT


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"status": "ended"}, "status"),
        ({"epoch": "three"}, "epoch"),
        ({"speed": 3}, "speed"),
        ({"model": None}, "model"),
    ],
)
def test_fields_that_do_not_fit_the_schema_are_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(ResnetlabError, match=rf"run\.json is damaged: {named}: "):
        run.update(**changes)
    assert RunFolder.open(run.path).info().status == "started"


def test_metrics_go_and_come(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.write_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan")}])
    assert run.metrics() == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}]
    run.metrics_file.write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(ResnetlabError, match=r"metrics\.jsonl cannot be read"):
        run.metrics()


def test_json_has_neither_nan_nor_infinity(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.write_json("a.json", {"a": float("nan"), "b": [1.5, (float("inf"), {"c": -float("inf")})], "d": "NaN"})
    strict = json.loads((run.path / "a.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN"}


def test_a_split_goes_and_comes(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(ResnetlabError, match=r"split\.csv cannot be read"):
        run.split()
    run.write_split([('a "quoted", name\nin two lines.jpg', "cät", "train", "00ff"), ("b.jpg", "dog", "test", "01")])
    assert run.split() == {"00ff": "train", "01": "test"}
    (run.path / "split.csv").write_text("a;b\n1;2\n")
    with pytest.raises(ResnetlabError, match=r"split\.csv is damaged.*checksum"):
        run.split()
    run.update(split_sha256=None)  # a run of an earlier version
    with pytest.raises(ResnetlabError, match=r"split\.csv cannot be read"):
        run.split()


def test_weights_are_the_best_there_are(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(ResnetlabError, match=r"no weights yet.*--resume"):
        run.weights()
    run.save("last.weights.h5", lambda path: path.write_bytes(b"last") and None)
    with pytest.raises(ResnetlabError, match=r"best\.weights\.h5 is missing.*copy last\.weights\.h5"):
        run.weights()
    run.save("best.weights.h5", lambda path: path.write_bytes(b"best") and None)
    assert run.weights() == run.best_weights


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_ends_well_replaces_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    for text in ("old", "new"):
        with atomic_file(target) as temporary:
            temporary.write_text(text)
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_an_error_to_act_on(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "a"):
            raise OSError(28, "No space left on device")

    with pytest.raises(ResnetlabError, match=r"Cannot write .*/a: No space left on device\."):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_an_error_to_act_on(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    gone = RunFolder(tmp_path / "gone")
    with pytest.raises(ResnetlabError, match="Cannot write"):
        gone.write_json("a.json", {})
    assert RunFolder.open(run.path).info().status == "started"


def test_a_name_that_is_no_utf8_goes_and_comes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9/\xff.jpg")
    run = make(tmp_path / "run")
    run.update(data=name)
    assert run.info().data == name
    run.write_split([(name, "cat", "train", "00")])
    assert run.split() == {"00": "train"}


def test_of_many_processes_that_want_one_folder_one_gets_it(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            make(tmp_path / "run")
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert RunFolder.open(tmp_path / "run").recipe() == RECIPES["quick"]


def test_runs_begun_in_one_second_all_get_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.new_folder("digits", "resnet20"), range(8)))
    assert len(set(folders)) == 8
    assert all(make(folder).info().status == "started" for folder in folders)


def test_the_history_of_a_chain_outlives_its_runs(tmp_path: Path) -> None:
    runs = [make(tmp_path / name) for name in "abc"]
    splits = [{"01": "train", "02": "test"}, {"01": "test", "02": "validation", "03": "train"}, {"04": "unused"}]
    for number, (run, subsets) in enumerate(zip(runs, splits, strict=True)):
        origin = runs[number - 1] if number else None
        run.update(data="digits", weights=origin and str(origin.path))
        if origin:
            run.write_ancestors(origin)
            shutil.rmtree(origin.path)
        run.write_split(("image", "cat", subset, content) for content, subset in subsets.items())
    assert runs[2].used_images() == {"01": "train", "02": "validation", "03": "train"}
    assert not runs[2].has_unknown_origin()
