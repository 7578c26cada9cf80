"""What the commands print in a terminal of 80 columns: no longer line, and no word cut."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from resnetlab.cli import main
from resnetlab.progress import TerminalProgress, format_duration, format_epoch, wrap
from resnetlab.recipes import RECIPES, Recipe
from resnetlab.run_folder import RunFolder
from tests.data import make_images

Screen = Callable[..., tuple[int, str]]
TINY = ("--model", "resnet-tiny", "--image-size", "16", "--batch-size", "8", "--set", "class_weights=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with files that are ignored, a copy, and an image that cannot be used; and a run on it."""
    folder = tmp_path_factory.mktemp("screens")
    data = make_images.write_classes(folder / "photos", {"great white shark": 20, "dog": 20})
    (data / "dog" / "notes.txt").write_text("a note")
    (data / "dog" / "broken.jpg").write_bytes(b"no image")
    first = sorted((data / "dog").glob("*.*g"))[0]
    (data / "dog" / "a copy with a rather long name.jpg").write_bytes(first.read_bytes())
    return folder


@pytest.fixture
def screen(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Screen:
    """Run a command in a terminal of 80 columns; its exit code, and all that it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RESNETLAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def show(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["resnetlab", *arguments])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return int(str(code or 0)), out + err

    return show


@pytest.fixture
def trained(folder: Path, screen: Screen) -> str:
    """A run of two epochs, made once."""
    if not (folder / "runs" / "first").exists():
        own = "--epochs", "2", "--precision", "float32"  # the recipe's is that which the machine computes faster
        code, shown = screen("train", "photos", *TINY, *own, "--run", "runs/first", "--log", "csv")
        assert code == 0, shown
        (folder / "train.txt").write_text(shown, "utf-8")
    return "runs/first"


def widest(text: str) -> tuple[int, str]:
    return max((cell_len(line), line) for line in text.splitlines())


COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "explain",
    "export",
    "serve",
    "import",
    "audit",
    "compare",
    "doctor",
    "models",
    "recipes",
    "runs",
]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_has_an_example(screen: Screen, command: str) -> None:
    code, shown = screen(*filter(None, [command]), "--help")
    assert code == 0
    assert widest(shown)[0] <= 80
    assert f"Example: resnetlab {command}" in shown if command else "Start with: resnetlab train" in shown
    assert not re.search(r"--[a-z-]+ +<bool>|\(the data's\)|^  [a-z]+ .*\.\.\.$", shown, re.MULTILINE)


def test_the_screens_of_a_run_fit(screen: Screen, trained: str, folder: Path) -> None:
    shown = (folder / "train.txt").read_text("utf-8")
    for text in (
        "resnet-tiny from scratch, recipe photos: 16x16, batch 8, 2 epochs, float32",
        "photos: 2 classes,",
        "split: 4 for validation and 4 for test, taken out of the images",
        "next: `resnetlab predict runs/first IMAGES`",
    ):
        assert text in shown
    assert shown.count("are set aside") == 1  # and not again before the evaluation
    screens = {"train": shown}
    for command in (
        ("evaluate", trained, "--flips"),
        ("evaluate", trained, "photos"),
        ("predict", trained, "photos/dog", "gone.jpg"),
        ("predict", trained, "--held-out", "3"),
        ("explain", trained, "photos/dog", "--method", "layer-cam", "--stage", "stage2"),
        ("explain", trained, "photos/dog", "--class", "fox"),
        ("explain", trained, "photos/dog", "--features", "--filters"),
        ("explain", trained),
        ("audit", "photos"),
        ("models",),
        ("models", "resnet50"),
        ("recipes",),
        ("recipes", "photos"),
        ("runs",),
        ("doctor",),
        ("train", "photos", "--set", "lr=0.1"),
        ("train", "nowhere"),
    ):
        screens[" ".join(command)] = screen(*command)[1]
    for name, text in screens.items():
        width, line = widest(text)
        assert width <= 80, (name, line)
        assert text.strip(), name


def test_audit_names_files_and_states_the_split(screen: Screen) -> None:
    code, shown = screen("audit", "photos")
    assert code == 0
    assert "      dog/notes.txt" in shown
    assert "      dog/broken.jpg" in shown
    assert "= dog/a copy with a rather long name.jpg" in " ".join(shown.split())
    assert "split       about 10% for validation and about 10% for test, taken out of the" in shown
    assert "(to train on these too: `--set validation=0 --set test=0" in " ".join(shown.split())


def test_a_split_given_by_the_data_is_stated(screen: Screen, tmp_path: Path) -> None:
    for part in ("train", "val"):
        make_images.write_classes(tmp_path / part, {"cat": 8, "dog": 8})
    shown = " ".join(screen("audit", str(tmp_path))[1].split())
    assert "the data's own validation part; about 10% for test, taken out of the training part" in shown
    assert "(to train on these too: `--set test=0`)" in shown


def test_a_missing_file_among_others_is_reported_and_the_others_are_predicted(screen: Screen, trained: str) -> None:
    code, shown = screen("predict", trained, "gone.jpg", "photos/dog", "empty*.png", "--csv", "out.csv")
    assert code == 1
    assert "gone.jpg  cannot be used: no such file" in shown
    assert "empty*.png  cannot be used: no such file" in shown
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows["gone.jpg"]["problem"].startswith("no such file")
    usable = [row for row in rows.values() if not row["problem"]]
    assert len(usable) == 21
    assert {row["class_1"] for row in usable} <= {"dog", "great white shark"}
    assert all(0.5 <= float(row["probability_1"]) <= 1 for row in usable)
    code, shown = screen("predict", trained, "gone.jpg")
    assert (code, "gone.jpg: no such file" in shown) == (2, True)


def test_validation_images_are_said_to_have_chosen_the_epoch(screen: Screen) -> None:
    code, shown = screen("train", "photos", *TINY, "--epochs", "1", "--set", "test=0", "--run", "runs/no-test")
    assert code == 0
    assert "validation images, by which the best epoch was chosen" in shown


def test_a_dry_run_keeps_nothing(screen: Screen, trained: str, folder: Path) -> None:
    before = sorted(folder.glob("runs/*"))
    code, shown = screen("train", "photos", *TINY, "--epochs", "3", "--dry-run")
    assert code == 0, shown
    assert re.search(r"3 epochs of 4 steps: about [\d.]+ (s|min) at [\d,]+ images/s", shown)
    code, shown = screen("train", "photos", *TINY, "--learning-rate", "0.02", "--dry-run", "--json")
    plan = json.JSONDecoder().raw_decode(shown[shown.index("{") :])[0]
    assert plan["steps_per_epoch"] == 4
    assert sum(plan["images"].values()) == 41
    assert plan["recipe"]["learning_rate"] == 0.02
    assert plan["seconds"] > 0
    assert sorted(folder.glob("runs/*")) == before
    code, shown = screen("train", "photos", *TINY, "--dry-run", "--run", trained)
    assert (code, trained in shown) == (2, True), "an existing run folder is in the way of a real run too"


def test_explanations_are_written_for_all_images_whatever_their_names(
    screen: Screen, trained: str, folder: Path, tmp_path: Path
) -> None:
    photo = next((folder / "photos" / "dog").iterdir())
    long = f"{'ä' * 120}.jpg"
    for place in ("a/x.jpg", "b/x.jpg", "b/X.jpg", f"b/{long}"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / place)
    (tmp_path / "b" / "broken.jpg").write_bytes(b"none")
    code, shown = screen(
        "explain", trained, str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")
    )
    assert code == 1
    assert "1 of 5 images could not be used" in shown
    names = {path.name.casefold() for path in (tmp_path / "out").iterdir()}
    assert names == {f"{stem}.grad-cam.png" for stem in ("x", "x-2", "x-3", "ä" * 60)}
    code, shown = screen("predict", trained, str(tmp_path / "b"), "--explain", str(tmp_path / "more"))
    assert (code, shown.count("cannot be used")) == (1, 1)
    assert len(list((tmp_path / "more").iterdir())) == 3
    before = sorted(tmp_path.rglob("*"))
    wrong = ("explain", trained, "photos/dog", "--method", "gradcam", "--output", str(tmp_path / "new"))
    assert screen(*wrong)[0] == 2
    code, shown = screen("predict", trained, "photos/dog", "--explain", str(tmp_path / "a" / "x.jpg"))
    assert code == 2
    assert "cannot be a folder" in " ".join(shown.split())
    assert "%" not in shown  # nothing was predicted
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_are_listed_from_the_newest(screen: Screen, trained: str, folder: Path, tmp_path: Path) -> None:
    for name, seconds in (("b", 1), ("a", 3), ("c", 2)):  # all in one minute
        shutil.copytree(folder / trained, tmp_path / name)
        os.utime(tmp_path / name / "environment.json", (60 * 10**7 + seconds,) * 2)
    listed = json.loads(screen("runs", str(tmp_path), "--json")[1])
    assert [Path(each["path"]).name for each in listed] == ["a", "c", "b"]


def test_runs_are_listed_with_their_results(screen: Screen, trained: str) -> None:
    code, shown = screen("runs", "--json")
    found = {row["path"]: row for row in json.loads(shown)}
    assert code == 0
    run, row = RunFolder.open(Path(trained)), found["runs/first"]
    assert (row["model"], row["data"], row["recipe"], row["status"]) == ("resnet-tiny", "photos", "photos", "finished")
    assert row["epochs"] == 2
    assert row["top1"] == run.read_json("evaluation.json")["top1"]
    assert row["validation_top1"] == run.metrics()[run.info().best_epoch - 1]["val_top1"]
    assert "No runs below nowhere" in screen("runs", "nowhere")[1]


def test_predictions_are_kept_with_the_names_of_their_files(trained: str, folder: Path) -> None:
    split = RunFolder.open(folder / trained).split()
    with np.load(folder / trained / "predictions.npz") as kept:
        names = kept["names"].tolist()
        assert len(names) == len(kept["labels"]) == list(split.values()).count("test")
    assert all((folder / "photos" / name).is_file() for name in names)


@pytest.mark.parametrize("name", ["base", *RECIPES])
def test_recipes_show_every_key_with_its_value(screen: Screen, name: str) -> None:
    code, shown = screen("recipes", name)
    assert code == 0
    assert widest(shown)[0] <= 80
    for key in set(Recipe.model_fields) - {"name", "description"}:
        assert re.search(rf"^[* ] {key} ", shown, re.MULTILINE), key


def test_the_version(screen: Screen) -> None:
    import resnetlab

    assert screen("--version") == (0, f"resnetlab {resnetlab.__version__}\n")


def test_a_csv_log_has_a_row_for_each_epoch(trained: str, folder: Path) -> None:
    with (folder / trained / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_top1"]) for row in rows] == [
        record["val_top1"] for record in RunFolder.open(folder / trained).metrics()
    ]


@pytest.mark.parametrize("epochs", [9, 40, 300])
def test_the_line_of_an_epoch_fits(epochs: int) -> None:
    record = {"epoch": epochs, "loss": 2.30259, "accuracy": 1.0, "val_loss": 12.30259, "val_top1": 0.5, "step": 9}
    line = format_epoch(record | {"images_per_second": 1234.5, "seconds": 1234.5}, epochs, best=True)
    assert cell_len(line) <= 80


def test_lines_are_wrapped_between_words_only() -> None:
    text = "  " + " ".join(["an-unbreakable-word-of-some-length"] * 5) + "\nshort"
    lines = wrap(text, 40).split("\n")
    assert set(" ".join(lines).split()) == {"an-unbreakable-word-of-some-length", "short"}
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("    ") for line in lines[1:-1])
    command = "`resnetlab train DATA --weights runs/first`"
    assert command in wrap(f"Not that. {command} or something else that is long enough to be wrapped", 50)


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.06, "8.1 s"), (75.2, "75 s"), (150, "2.5 min"), (1500, "25 min"), (11520, "3.2 h")]
)
def test_durations_are_in_the_unit_that_people_choose(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_duration_is_estimated_once_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from resnetlab import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    console = Console(file=io.StringIO(), record=True, width=80)
    shown = TerminalProgress(console)
    shown.start(epochs=10, steps_per_epoch=100, batch_size=32, step=0)
    for step in range(1, 61):
        now[0] += 0.25
        shown.step(step, {"loss": 1.0})
    shown.stop()
    text = console.export_text()
    assert text.count("about") == 1
    # After ten seconds 41 of 1,000 steps are done, at 4 steps a second.
    assert "about 4.0 min at 128 images/s" in text


def test_the_hint_on_the_split_can_be_followed(screen: Screen) -> None:
    shown = screen("audit", "photos")[1]
    hint = re.search(r"to train on these too: `([^`]+)`", " ".join(shown.split()))
    assert hint
    code, shown = screen("train", "photos", *TINY, "--epochs", "1", "--run", "runs/all", *hint[1].split())
    assert code == 0, shown
    assert "photos: 2 classes, 41 train, 0 validation, 0 test images" in shown


def test_a_batch_that_is_larger_than_the_data_is_warned_of(screen: Screen) -> None:
    shown = screen("train", "photos", *TINY, "--batch-size", "500", "--dry-run", "--epochs", "1")[1]
    assert "batch_size=500 is more than the training images" in shown


@pytest.mark.parametrize("name", ["photos/dog/broken.jpg", "out.txt"])
def test_predictions_are_written_to_csv_files_only(screen: Screen, trained: str, name: str) -> None:
    before = Path(name).read_bytes() if Path(name).exists() else None
    code, shown = screen("predict", trained, "photos/dog", "--csv", name)
    assert (code, "expected the name of a .csv file" in " ".join(shown.split())) == (2, True)
    assert (Path(name).read_bytes() if Path(name).exists() else None) == before


def test_a_csv_file_stays_as_it_was_where_nothing_can_be_predicted(screen: Screen, trained: str, folder: Path) -> None:
    Path("kept.csv").write_text("of before")
    (folder / "photos").rename(folder / "moved")
    try:
        assert screen("predict", trained, "--held-out", "3", "--csv", "kept.csv")[0] == 1
    finally:
        (folder / "moved").rename(folder / "photos")
    assert Path("kept.csv").read_text() == "of before"
    assert screen("predict", trained, "photos/dog", "--csv", "no/such/folder/x.csv")[0] == 1


def test_rows_of_a_csv_file_are_as_long_as_its_header(screen: Screen, trained: str) -> None:
    assert screen("predict", trained, "gone.png", "photos/dog", "--csv", "rows.csv", "--top", "99")[0] == 1
    with open("rows.csv", encoding="utf-8", newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {3 + 2 * 2}


def test_json_is_valid_where_the_terminal_is_not_utf8(trained: str, folder: Path) -> None:
    (folder / "é\u00a0x.png").write_bytes((folder / "photos" / "dog" / "broken.jpg").read_bytes())
    command = [sys.executable, "-m", "resnetlab.cli", "predict", trained, "é\u00a0x.png", "--json"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout)["path"] == "é\u00a0x.png"


def test_one_damaged_run_does_not_hide_the_others(screen: Screen, trained: str, folder: Path) -> None:
    for number, content in enumerate(("x", '{"subset": "test", "top1": "high"}')):
        copy = folder / "runs" / f"damaged{number}"
        shutil.copytree(folder / trained, copy)
        (copy / "evaluation.json").write_text(content)
    shutil.copytree(folder / trained, folder / "runs" / "broken")
    (folder / "runs" / "broken" / "run.json").write_text("{")
    code, shown = screen("runs")
    for name in ("damaged0", "damaged1", "broken"):
        shutil.rmtree(folder / "runs" / name)
    assert code == 0
    assert "runs/damaged0  finished" in shown
    assert "runs/damaged1  finished" in shown
    assert "runs/first  finished" in shown
    assert "runs/broken" not in shown


def test_wide_characters_count_twice_and_a_width_of_nothing_is_left_alone() -> None:
    text = "broken " + "狗 " * 60
    assert max(map(cell_len, wrap(text, 40).split("\n"))) <= 40
    assert wrap(text, 0) == text


@pytest.mark.parametrize(
    ("arguments", "reason"), [(("",), "empty path"), (("nowhere.png", "no.png"), "no.png: no such")]
)
def test_paths_that_lead_nowhere_are_all_named(
    screen: Screen, trained: str, arguments: tuple[str, ...], reason: str
) -> None:
    code, shown = screen("predict", trained, *arguments)
    assert (code, reason in " ".join(shown.split())) == (2, True)


def test_a_flag_is_named_as_it_is_written(screen: Screen) -> None:
    shown = screen("train", "photos", "--batch-size", "4", "--set", "batch_size=8")[1]
    assert "Received both --batch-size and --set batch_size=" in shown
