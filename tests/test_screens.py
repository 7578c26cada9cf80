"""What the commands print in a terminal of 80 columns: no longer line, and no word cut."""

from __future__ import annotations

import csv
import io
import json
import re
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
        code, shown = screen("train", "photos", *TINY, "--epochs", "2", "--run", "runs/first", "--log", "csv")
        assert code == 0, shown
        (folder / "train.txt").write_text(shown, "utf-8")
    return "runs/first"


def widest(text: str) -> tuple[int, str]:
    return max((cell_len(line), line) for line in text.splitlines())


COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "export",
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
        "split: 10% for validation and 10% for test, taken out of the images",
        "next: resnetlab predict runs/first IMAGES",
    ):
        assert text in shown
    screens = {"train": shown}
    for command in (
        ("evaluate", trained),
        ("evaluate", trained, "photos"),
        ("predict", trained, "photos/dog", "gone.jpg"),
        ("predict", trained, "--held-out", "3"),
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
    assert "split       10% for validation and 10% for test, taken out of the images" in shown
    assert "(to train on these too: --set validation=0 --set test=0)" in shown


def test_a_split_given_by_the_data_is_stated(screen: Screen, tmp_path: Path) -> None:
    for part in ("train", "val"):
        make_images.write_classes(tmp_path / part, {"cat": 8, "dog": 8})
    shown = " ".join(screen("audit", str(tmp_path))[1].split())
    assert "the data's own validation part; 10% for test, taken out of the training part" in shown
    assert "(to train on these too: --set test=0)" in shown


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


def test_a_dry_run_keeps_nothing(screen: Screen, folder: Path) -> None:
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
