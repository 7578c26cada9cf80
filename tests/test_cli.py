"""The command line as a user meets it: exit codes, messages, and nothing but JSON where JSON was asked for."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from resnetlab.cli import main
from resnetlab.models import VARIANTS
from resnetlab.recipes import recipe as find_recipe
from resnetlab.run_folder import RunFolder
from tests.data import make_images
from tests.models.randomised import randomised
from tests.models.reference import as_torch, empty_weights

Cli = Callable[..., tuple[int, str, str]]
COMMANDS = ("train", "evaluate", "predict", "export", "serve", "import", "models", "audit", "doctor", "compare")
TINY = ("--model", "resnet-tiny", "--set", "image_size=16", "--set", "batch_size=8", "--set", "epochs=1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, cache: Path) -> Cli:
    """Run a command in an empty folder: its exit code, what it printed, and what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNETLAB_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnetlab", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return int(code or 0), out, err

    return call


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run of three epochs on digits, made by the command itself in a process of its own."""
    run = tmp_path_factory.mktemp("digits") / "run"
    command = ["train", "digits", "--set", "epochs=3", "--run", run, "--device", "cpu"]
    child = process(*command, RESNETLAB_CACHE=str(cache))
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    first, data, split, _, device = child.stdout.splitlines()[:5]
    assert first == "resnet-tiny from scratch, recipe quick: 16x16, batch 64, 3 epochs, float32"
    assert data == "digits: 10 classes, 1,290 train, 171 validation, 336 test images"
    assert split == "split: 171 for validation and 336 for test, taken out of the images"
    assert device.startswith("on the CPU (")
    assert child.stdout.count("  val ") == 3
    assert f"run folder {run}\nnext: `resnetlab predict {run} IMAGES`\n" in child.stdout
    return run


def process(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    environment |= {"COLUMNS": "200"} | settings
    command = [sys.executable, "-m", "resnetlab.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_the_installed_command_is_main() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="resnetlab")
    assert command.load() is main


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['resnetlab', '--help']\n"
        "from resnetlab.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('keras', 'tensorflow', 'jax', 'torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "[]"
    for command in COMMANDS:
        assert f" {command} " in child.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_verbose(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "--json" in out
    assert "--verbose" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "Missing DATA"),
        (["train", "no/such/folder"], "Unknown data set or folder 'no/such/folder'"),
        (["train", "digit"], "Did you mean 'digits'"),
        (["train", "digits", "--model", "resnet5"], "or 'resnet50'"),
        (["train", "digits", "--recipe", "quik"], "Unknown recipe 'quik'. Did you mean 'quick'"),
        (["train", "digits", "--recipe", "mine.toml"], "mine.toml: No such file"),
        (["train", "digits", "--set", "epohcs=3"], "Unknown recipe key 'epohcs'. Did you mean 'epochs'"),
        (["train", "digits", "--set", "epochs"], "expected key=value"),
        (["train", "digits", "--set", "epochs=0"], "epochs: received 0, expected: Input should be greater than"),
        (["train", "digits", "--set", "model=resnet5"], "or 'resnet50'"),
        (["train", "digits", "--seed", "-1"], "seed: received -1"),
        (["train", "digits", "--seed", "x"], "Invalid value for '--seed'"),
        (["train", "digits", "--device", "gpuu", "--run", "run"], "Unknown device 'gpuu'. Did you mean 'gpu'"),
        (["train", "digits", "--backend", "tensorflw", "--run", "run"], "Did you mean 'tensorflow'"),
        (["train", "--resume", "run"], "run: no such folder"),
        (["train", "digits", "--epochs", "3", "--set", "epochs=4"], "both --epochs and --set epochs=: give one"),
        (["train", "digits", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["train", "--resume", "run", "--recipe", "quick"], "leave them out"),
        (["train", "digits", "--resume", "run", "--weights", "a"], "leave them out"),
        (["train", "digits", "--weights", "nothing"], "Received 'nothing', expected a weights file"),
        (["train", "digits", "--recipe", "finetune"], "frozen_epochs=2 needs pretrained weights"),
        (["import"], "Missing argument 'SOURCE'"),
        (["import", "nothing"], "Received 'nothing', expected a weights file (PyTorch"),
        (["import", "nothing", "--set", "epochs=3"], "Received epochs; expected image_size, crop_pct"),
        (["import", "nothing", "--class-names", "gone.txt"], "--class-names gone.txt cannot be read"),
        (["export", "none", "--format", "onnx"], "none: no such folder"),
        (["export", "none", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["train", "--resume", "."], "is not a run folder: it has no run.json"),
        (["evaluate", "."], "is not a run folder: it has no run.json"),
        (["evaluate", "none"], "none: no such folder"),
        (["predict", "none", "a.jpg"], "none: no such folder"),
        (["predict"], "Missing argument 'RUN'"),
        (["models", "resnet5"], "or 'resnet50'"),
        (["audit", "none"], "Unknown data set or folder 'none'"),
        (["compare", "digits", "--devices", "gpuu"], "Unknown device 'gpuu'"),
        (["compare", "digits", "--backends", "numpy"], "Unknown backend 'numpy'"),
        (["compare", "digits", "--batch-sizes", "8,x"], "expected whole numbers separated by commas"),
        (["compare", "digits", "--batch-sizes", "0,8"], "expected each to be at least 1"),
        (["compare", "digits", "--repeats", "0"], "Invalid value for '--repeats'"),
        (["dance"], "No such command 'dance'"),
        (["train", "digits", "--sett", "epochs=3"], "No such option: --sett"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_and_the_exit_code_is_2(cli: Cli, tmp_path: Path, arguments: list[str], told: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []  # nothing was begun


# Data that cannot be learned from


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "No images in data"),
        ({"1.jpg": make_images.jpeg(1)}, "1 images lie in data itself, in no class folder"),
        ({"cat/1.jpg": make_images.jpeg(1)}, "Only one class in data: 'cat'"),
        ({"cat/1.jpg": make_images.jpeg(1), "dog/notes.txt": b"none"}, "No image in data for the class 'dog'"),
        (
            {f"{k}/{i}.jpg": b"only text" for k in ("cat", "dog") for i in range(3)},
            "No usable image in the class 'cat'",
        ),
        (
            {"cat/1.jpg": make_images.jpeg(1), "cat/2.jpg": make_images.jpeg(2), "dog/1.jpg": b""},
            "No usable image in the class 'dog'",
        ),
    ],
    ids=["nothing", "no class folders", "one class", "an empty class", "text named .jpg", "an unusable class"],
)
@pytest.mark.parametrize("command", ["train", "audit"])
def test_data_that_cannot_be_learned_from(
    cli: Cli, tmp_path: Path, command: str, files: dict[str, bytes], told: str
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", files)
    code, out, err = cli(command, "data")
    assert code == 1, (out, err)
    assert told in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_defective_images_among_good_ones_are_set_aside_and_training_goes_through(cli: Cli, tmp_path: Path) -> None:
    data = make_images.write_classes(tmp_path / "my data ü", {"cat": 12, "dog [x]": 12})
    good = make_images.jpeg(99)
    bad = {
        "cat/truncated.jpg": good[: len(good) // 2],
        "cat/empty.jpg": b"",
        "cat/text.jpg": b"only text",
        "dog [x]/enormous.png": make_images.enormous_png(),
    }
    odd = {
        "cat/cmyk.jpg": make_images.cmyk_jpeg(),
        "cat/grey.png": make_images.grey16_png(),
        "cat/deep/in/there.jpg": make_images.jpeg(101),
        "dog [x]/animated.gif": make_images.animation(),
        "dog [x]/rotated.jpg": make_images.rotated_jpeg(6),
        "dog [x]/float.tiff": make_images.float_tiff(),
    }
    write(data, bad | odd)
    code, out, err = cli("train", data, *TINY, "--run", "a [run]")
    assert (code, err) == (0, "")
    assert "4 of 34 images are set aside: see `resnetlab audit" in out
    assert "3 images are nearly blank, but are used: see `resnetlab audit" in out  # of one or two colours
    assert "run folder a [run]\n" in out
    run = RunFolder.open(tmp_path / "a [run]")
    assert run.info().status == "finished"
    assert {row["name"] for row in run.read_json("audit.json")["set_aside"]} == bad.keys()
    for name in ("best.weights.h5", "evaluation.json", "curves.png", "confusion.png", "reliability.png", "split.csv"):
        assert (run.path / name).stat().st_size > 0

    code, out, err = cli("train", data, *TINY, "--run", "a [run]")
    assert code == 2
    assert "is not empty. Choose another with --run, or resume it with `resnetlab train --resume 'a [run]'`." in err

    code, out, err = cli("predict", run.path, data / "cat", "--json", "--top", "1")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert "3 of 18 images could not be used; the others are above." in err
    assert {Path(a["path"]).name for a in answers if "problem" in a} == {"truncated.jpg", "empty.jpg", "text.jpg"}

    code, out, err = cli("explain", run.path, data / "cat", "--features", "--filters", "--json", "--output", "shown")
    filters, *explained = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert "3 of 18 images could not be used" in err
    assert filters == {"filters": "shown/filters.png"}
    assert {a["path"] for a in explained if "problem" in a} == {a["path"] for a in answers if "problem" in a}
    classes = {a["path"]: a["classes"][0]["class"] for a in answers if "problem" not in a}
    assert {a["path"]: a["class"] for a in explained if "problem" not in a} == classes
    pictures = {a[key] for a in explained if "problem" not in a for key in ("picture", "features")}
    assert len(pictures) == 2 * 15
    assert {str(path) for path in Path("shown").glob("*.png")} == pictures | {"shown/filters.png"}

    code, out, err = cli("train", "--resume", run.path)  # it has finished: nothing is left to do but to evaluate
    assert (code, err) == (0, "")
    write(data, {"cat/new.jpg": good})
    code, out, err = cli("train", "--resume", run.path)
    assert code == 1
    assert "files were added, removed or changed" in err
    assert "`resnetlab train DATA --weights" in err


# Digits, end to end


def test_evaluate_says_the_same_again(cli: Cli, digits: Path) -> None:
    kept = json.loads((digits / "evaluation.json").read_text())
    code, out, err = cli("evaluate", digits, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["subset"] == "test"
    assert found["n"] == 336
    assert found["top1"] == kept["top1"] > 0.3
    assert found["loss"] == pytest.approx(kept["loss"], rel=1e-4)
    code, out, _ = cli("evaluate", digits)
    assert code == 0
    assert "on 336 images" in out


def test_predict_held_out_shows_true_classes(cli: Cli, digits: Path) -> None:
    code, out, err = cli("predict", digits, "--held-out", "10")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 10
    assert all("(true: " in line and ("right" in line or "WRONG" in line) for line in out.splitlines())
    code, out, err = cli("predict", digits, "--held-out", "10", "--json", "--top", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err, len(rows)) == (0, "", 10)
    assert all(len(row["classes"]) == 2 and row["true"] in "0123456789" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Give either images, folders or globs to predict, or --held-out N"),
        (["a.jpg", "--held-out", "3"], "Give either images, folders or globs"),
        (["--held-out", "-3"], "Invalid value for '--held-out'"),
        (["gone*.jpg"], "gone*.jpg: no such file"),
        (["a.jpg", "--top", "0"], "Invalid value for '--top'"),
    ],
)
def test_predict_used_wrongly(cli: Cli, digits: Path, arguments: list[str], told: str) -> None:
    code, out, err = cli("predict", digits, *arguments)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


def test_evaluating_other_data_leaves_out_what_was_trained_on(cli: Cli, digits: Path, tmp_path: Path) -> None:
    code, out, err = cli("evaluate", digits, "digits", "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == 336 + 171
    assert "1290 of 1797 images left out" in err

    other = make_images.write_classes(tmp_path / "other", {"3": 2, "7": 3})
    code, out, err = cli("evaluate", digits, other)
    assert (code, err) == (0, "")
    assert "on 5 images" in out
    make_images.write_classes(other, {"cat": 1}, start=50)
    code, out, err = cli("evaluate", digits, other)
    assert code == 2
    assert "classes that the run does not know: cat. Expected some of: 0, 1, 2" in err


def test_json_is_all_that_train_prints(cli: Cli, tmp_path: Path) -> None:
    data = make_images.write_classes(tmp_path / "data", {"cat": 12, "dog": 12})
    write(data, {"cat/text.jpg": b"only text"})
    code, out, err = cli("train", data, *TINY, "--json", "--run", "run")
    assert code == 0, err
    found = json.loads(out)
    assert found["run"] == "run"
    assert found["n"] == sum(score["support"] for score in found["classes"])
    assert "epoch 1/1" in err
    assert find_recipe("run/recipe.json") == RunFolder.open(Path("run")).recipe()


def test_without_images_to_evaluate_on_training_still_ends_well(cli: Cli, tmp_path: Path) -> None:
    data = make_images.write_classes(tmp_path / "data", {"cat": 1, "dog": 1})
    settings = [argument for key in ("validation", "test", "early_stopping") for argument in ("--set", f"{key}=0")]
    code, out, err = cli("train", data, *TINY, *settings, "--run", "run")
    assert code == 0
    assert err.count("warning") == 1
    assert "batch_size=8 is more than the training images" in err
    assert "No test or validation images, so nothing is evaluated" in out
    code, _, err = cli("evaluate", "run")
    assert code == 1
    assert "neither test nor validation images" in err


def test_a_name_that_is_too_long_is_told(cli: Cli) -> None:
    for command in ("train", "audit", "evaluate"):
        code, _, err = cli(command, "x" * 300)
        assert code == 1
        assert "File name too long" in err


def test_a_damaged_run_folder_is_told(cli: Cli, digits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    (run / "best.weights.h5").write_bytes(b"noise")
    code, _, err = cli("predict", run, "--held-out", "1")
    assert code == 1
    assert "best.weights.h5 is damaged" in err
    (run / "run.json").write_text("{")
    code, _, err = cli("predict", run, "--held-out", "1")
    assert code == 1
    assert "run.json cannot be read" in err


# Weights of others


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small network of three classes, as torchvision would have named them."""
    arch = VARIANTS["resnet-tiny"]
    path = tmp_path_factory.mktemp("published") / "net.safetensors"
    save_file(as_torch(randomised(empty_weights(arch, 3)), arch), path)
    return path


@pytest.mark.long
def test_ported_weights_predict_are_evaluated_and_trained_on_from(cli: Cli, published: Path, tmp_path: Path) -> None:
    Path("names.txt").write_text("cat\ndog\nowl\n", "utf-8")
    arguments = ("--class-names", "names.txt", "--set", "image_size=32")
    code, out, err = cli("import", published, *arguments)
    assert (code, err) == (0, "")
    assert "resnet-tiny, 3 classes, from 47 arrays as torchvision names them" in out
    assert "assumed, not stated by the source: crop_pct, interpolation, preprocessing" in out
    assert out.endswith("run folder  runs/net\n")
    code, out, err = cli("import", published, *arguments)
    assert code == 2
    assert "runs/net is not empty" in err
    code, out, err = cli("import", published, *arguments, "--run", "again", "--json")
    told = json.loads(out)
    assert (code, told["model"], told["family"], told["licence"]) == (0, "resnet-tiny", "torchvision", None)

    data = make_images.write_classes(tmp_path / "data", {"cat": 12, "dog": 12})
    code, out, err = cli("predict", "runs/net", data, "--json", "--top", "3")
    assert (code, err) == (0, "")
    assert {c["class"] for c in json.loads(out.splitlines()[0])["classes"]} == {"cat", "dog", "owl"}
    code, out, err = cli("evaluate", "runs/net", data)
    assert (code, err) == (0, "")
    assert "on 24 images" in out
    for arguments in (("evaluate", "runs/net"), ("predict", "runs/net", "--held-out", "3")):
        code, out, err = cli(*arguments)
        assert code == 2
        assert "were imported, so it has no data of its own" in err

    settings = ("--set", "epochs=2", "--set", "frozen_epochs=1", "--set", "batch_size=8")
    code, out, err = cli("train", data, "--weights", "runs/net", *settings, "--run", "tuned")
    assert (code, err) == (0, "")
    assert "from the weights of runs/net (under a new head)" in out
    recipe, info = RunFolder.open(Path("tuned")).recipe(), RunFolder.open(Path("tuned")).info()
    assert (recipe.name, recipe.model, recipe.image_size) == ("finetune", "resnet-tiny", 32)
    assert (info.class_names, info.weights) == (("cat", "dog"), str(tmp_path / "runs" / "net"))
    recipe_file = tmp_path / "mine.toml"
    recipe_file.write_text(
        'base = "finetune"\nimage_size = 40\nepochs = 1\nfrozen_epochs = 0\nbatch_size = 8\n', "utf-8"
    )
    other = ("--recipe", "quick", "--epochs", "1", "--batch-size", "8", "--set", "warmup=0", "--set", "test=0.1")
    code, out, err = cli("train", data, "--weights", "runs/net", *other, "--run", "of 32")
    assert (code, err) == (
        0,
        "warning: Recipe quick has image_size=16, but image_size=32 of the weights is used. "
        "To train with the recipe's: --set image_size=16.\n",
    )
    mine = ("train", data, "--weights", "runs/net", "--recipe", recipe_file)
    code, out, err = cli(*mine, "--run", "of 40")  # what a file states is wanted
    assert (code, err) == (0, "")
    assert [RunFolder.open(Path(name)).recipe().image_size for name in ("of 32", "of 40")] == [32, 40]
    code, out, err = cli("train", data, "--weights", "runs/net", "--recipe", recipe_file, "--run", "of 40")
    assert code == 2
    assert "Choose another with --run, or resume it with `resnetlab train --resume 'of 40'`." in err
    code, out, err = cli("train", data, "--weights", "runs/net", "--model", "resnet34", "--run", "other")
    assert code == 2
    assert "Received model 'resnet34', expected 'resnet-tiny'" in err
    assert not Path("other").exists()


def test_training_begins_with_a_file_of_weights_and_keeps_the_head_of_the_same_classes(
    cli: Cli, published: Path, tmp_path: Path
) -> None:
    settings = ("--set", "image_size=32", "--set", "epochs=1", "--set", "frozen_epochs=1", "--set", "batch_size=8")
    data = make_images.write_classes(tmp_path / "data", {f"class {i}": 6 for i in range(3)})
    for run in ("first", "second"):  # the second time the port is found in the cache
        code, out, err = cli("train", data, "--weights", published, *settings, "--run", run)
        assert (code, err) == (0, "")
        assert "and its head" in out


def test_an_architectures_weights_that_nobody_has_are_told(cli: Cli, tmp_path: Path) -> None:
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, tmp_path / "odd.safetensors")
    code, out, err = cli("import", "odd.safetensors")
    assert (code, out) == (1, "")
    assert "These are not the weights of any network here. Received 1 arrays: conv1.weight (64, 3, 7, 7)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["odd.safetensors"]


def test_the_former_name_of_import_still_works_and_says_so(cli: Cli) -> None:
    code, _, err = cli("port", "nothing")
    assert code == 2
    assert "`resnetlab port` is now called `resnetlab import`." in err
    assert " port " not in cli("--help")[1]


# Second runs


FRACTIONS = ("--set", "validation=0.2", "--set", "test=0.3", "--set", "early_stopping=0")
TUNED = ("--set", "epochs=1", "--set", "frozen_epochs=0", "--set", "batch_size=8", "--set", "early_stopping=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder of 40 images in `data`, and `first`: a run on them of one epoch, of a constant rate."""
    folder = tmp_path_factory.mktemp("trained")
    make_images.write_classes(folder / "data", {"cat": 20, "dog": 20})
    arguments = ("train", "data", *TINY, "--set", "schedule=constant", *FRACTIONS, "--run", "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RESNETLAB_CACHE", str(cache))
        patch.setattr(sys, "argv", ["resnetlab", *arguments])
        with contextlib.suppress(SystemExit):
            main()
    assert RunFolder.open(folder / "first").info().status == "finished"
    return folder


@pytest.fixture
def first(cli: Cli, trained: Path, tmp_path: Path) -> Path:
    """Copies of both in the test's own folder, where `cli` works."""
    for name in ("data", "first"):
        shutil.copytree(trained / name, tmp_path / name)
    RunFolder.open(tmp_path / "first").update(data=str(tmp_path / "data"))
    return tmp_path / "first"


def test_what_a_chain_of_runs_was_trained_on_is_never_tested_on(cli: Cli, first: Path, tmp_path: Path) -> None:
    make_images.write_classes(tmp_path / "data", {"cat": 10, "dog": 10}, start=500)
    tune = ("train", "data", *TUNED, "--set", "test=0.4", "--weights")
    code, out, err = cli(*tune, "first", "--seed", "5", "--run", "second")
    assert (code, err) == (0, "")
    assert "images were in the runs that the weights come from, " in out
    assert "as in the run that the weights come from" in out
    shutil.move("first", "elsewhere")
    code, out, err = cli(*tune, "second", "--seed", "9", "--run", "third")
    assert (code, err) == (0, "")
    one, two, three = (RunFolder.open(Path(name)).split() for name in ("elsewhere", "second", "third"))
    for earlier, later in ((one, two), (one, three), (two, three)):
        assert {h: later[h] for h in earlier} == earlier
    assert {*one.values()} == {"train", "validation", "test"}
    assert len(two) > len(one)

    code, out, err = cli("evaluate", "third", "data", "--json")
    assert json.loads(out)["n"] == sum(subset != "train" for subset in three.values())
    assert "are validation images: the best epoch was chosen by them" in err
    code, out, err = cli("evaluate", "third")
    assert (code, err) == (0, "")

    settings = ("--set", "validation=0", "--set", "test=0")
    code, out, err = cli("train", "data", *TUNED, *settings, "--weights", "third", "--run", "whole")
    assert (code, err) == (0, "")
    code, out, err = cli(*tune, "whole", "--run", "fourth")
    assert code == 1
    assert "No image is left to test on" in err
    assert not Path("fourth").exists()


def test_a_finished_run_is_resumed_with_more_epochs_only(cli: Cli, first: Path) -> None:
    code, out, err = cli("train", "--resume", "first")
    assert (code, err) == (0, "")
    assert "this run is finished (all 1 epochs): there is nothing to resume" in out
    assert "--resume first --epochs 2, or resnetlab train DATA --weights first" in out
    code, out, err = cli("train", "--resume", "first", "--set", "epochs=2", "--set", "learning_rate=0.1")
    assert code == 2
    assert "received learning_rate, and only epochs may change" in err
    code, out, err = cli("train", "--resume", "first", "--epochs", "2")
    assert (code, err) == (0, "")
    assert "epochs 1 -> 2: the learning rate at the next step is as it was, 0.06" in out
    assert len(RunFolder.open(first).metrics()) == RunFolder.open(first).recipe().epochs == 2
    code, out, err = cli("train", "--resume", "first", "--epochs", "1")
    assert code == 2
    assert "Received epochs=1, expected more than the 2 that first has finished" in err


def test_a_schedule_that_depends_on_the_epochs_is_said_to_jump(cli: Cli, first: Path) -> None:
    run = RunFolder.open(first)
    run.write_json("recipe.json", run.recipe().changed(schedule="linear", warmup=0).model_dump(mode="json"))
    code, _, err = cli("train", "--resume", "first", "--epochs", "2")
    assert code == 2
    assert "these have changed: schedule 'constant' -> 'linear'" in " ".join(err.split())
    run.write_json("recipe.json", run.recipe().changed(epochs=1).model_dump(mode="json"))
    code, out, err = cli("train", "--resume", "first", "--epochs", "2", "--force-resume")
    assert (code, err) == (0, "")
    assert "jumps from 0 to 0.03; this differs from a single run of 2 epochs" in out
    run.update(status="finished")
    run.write_json("recipe.json", run.recipe().changed(epochs=9).model_dump(mode="json"))
    code, out, err = cli("train", "--resume", "first", "--epochs", "12")
    assert code == 2
    assert "was ended by early stopping after epoch 2 of 9" in err


def test_what_cannot_be_resumed_is_told(cli: Cli, first: Path) -> None:
    RunFolder.open(first).update(status="diverged")
    code, _, err = cli("train", "--resume", "first")
    assert code == 2
    assert "--set learning_rate=0.006, from scratch or, if it has good weights, with --weights first" in err
    RunFolder.open(first).update(status="interrupted")
    shutil.move("data", "moved")
    code, _, err = cli("train", "--resume", "first")
    assert code == 1
    assert "is no longer at" in err
    assert "`resnetlab train DATA --resume first`" in err
    code, _, err = cli("train", "moved", "--resume", "first")
    assert (code, err) == (0, "")


@pytest.mark.long
@pytest.mark.parametrize("encoding", [pytest.param("ascii", marks=pytest.mark.benchmark), "cp437"])
def test_a_terminal_without_the_signs_of_tables_shows_ascii(first: Path, cache: Path, encoding: str) -> None:
    settings = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "RESNETLAB_CACHE": str(cache)}
    for arguments in (
        ["models"],
        ["models", "resnet50"],
        ["--help"],
        ["train", "--help"],
        ["audit", "data"],
        *([["doctor"], ["evaluate", "first"], ["predict", "first", "data/cat"]] if encoding == "ascii" else []),
    ):
        command = [sys.executable, "-m", "resnetlab.cli", *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")} | settings
        child = subprocess.run(command, env=environment, capture_output=True, timeout=240, cwd=first.parent)
        assert child.returncode == 0, child.stderr
        assert b"\\u" not in child.stdout + child.stderr, arguments
        assert b"\\x" not in child.stdout + child.stderr, arguments


# Lists


def test_models_as_json_and_as_text(cli: Cli) -> None:
    code, out, err = cli("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert rows["resnet50"]["parameters"] == 25_557_032
    code, out, _ = cli("models", "resnet50", "--json")
    assert json.loads(out)["stages"][-1]["shape"] == [7, 7, 2048]
    code, out, _ = cli("models", "resnet50")
    assert "25,557,032 parameters" in out
    assert "7 x 7 x 2048" in out
    code, out, _ = cli("models")
    assert {line.split()[0] for line in out.splitlines()[1:]} == rows.keys()


def test_audit_as_json(cli: Cli, tmp_path: Path) -> None:
    data = make_images.write_classes(tmp_path / "data", {"cat": 3, "dog": 3})
    write(data, {"cat/text.jpg": b"only text", "dog/copy.jpg": make_images.jpeg(4)})
    code, out, err = cli("audit", data, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["found"] == 8
    assert [row["name"] for row in found["set_aside"]] == ["cat/text.jpg"]
    code, out, _ = cli("audit", data)
    assert code == 0
    assert "text.jpg" in out


def test_a_class_that_loses_most_of_its_images_is_confirmed_and_recorded(cli: Cli, tmp_path: Path) -> None:
    data = make_images.write_classes(tmp_path / "data", {"cat": 4, "dog": 12})
    write(data, {f"cat/{i}.cr2": b"raw" for i in range(5)} | {"dog/labels.xml": b"", "pred/1.jpg": b""})
    code, out, err = cli("train", data, *TINY, "--run", "run")
    assert code == 1
    assert "'cat': 5 of 9 files cannot be used (5 .cr2 ignored)" in err
    assert not (tmp_path / "run").exists()
    code, out, _ = cli("audit", data)
    assert code == 0
    assert "6 non-image files (by extension or location): 5 .cr2, 1 .xml" in out
    assert "cat: 5 of 9 files cannot be used" in out
    assert f"left out: {data / 'pred'} (1 images, unlabelled by its name)" in out
    code, out, err = cli("train", data, *TINY, "--run", "run", "--allow-losses")
    assert code == 0, err
    assert "ignored: 6 non-image files (by extension or location): 5 .cr2, 1 .xml" in out
    run = RunFolder.open(tmp_path / "run")
    assert run.info().allow_losses is True
    assert run.read_json("audit.json")["losses"].keys() == {"cat"}
    assert cli("evaluate", "run")[0] == 0  # what was confirmed stays so
    code, _, err = cli("evaluate", "run", data)
    assert (code, "--allow-losses" in err) == (1, True)


@pytest.mark.parametrize("command", [["train"], ["audit"], ["evaluate", "run"]])
def test_a_layout_that_is_not_understood_stops_every_command(
    cli: Cli, digits: Path, tmp_path: Path, command: list[str]
) -> None:
    for part in ("fold1", "fold2"):
        make_images.write_classes(tmp_path / "data" / part, {"0": 1, "1": 1})
    (tmp_path / "run").symlink_to(digits)
    code, _, err = cli(*command, "data")
    assert code == 2
    assert "looks like a split that is not understood: 'fold1', 'fold2' hold the same folders ('0', '1')" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "run"] == ["data"]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "resnetlab.cli", "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(60)
        assert b"Traceback" not in child.stderr.read()


@pytest.mark.parametrize("setting", ["deterministic=true", "device=cpu", "run=x", "weights=x", "lr=1"])
def test_only_keys_of_the_recipe_can_be_set(cli: Cli, setting: str) -> None:
    code, _, err = cli("train", "digits", "--set", setting)
    assert code == 2
    assert f"Unknown recipe key '{setting.partition('=')[0]}'" in " ".join(err.split())


def test_a_csv_file_that_was_interrupted_is_kept_under_another_name(tmp_path: Path) -> None:
    from resnetlab.cli.inference import _csv_writer
    from resnetlab.inference.predictor import Prediction

    (tmp_path / "out.csv").write_text("former")
    with contextlib.suppress(KeyboardInterrupt), _csv_writer(tmp_path / "out.csv", 1, 2) as write:
        write(Prediction.of("cat.jpg", (("cat", 0.75),)))
        raise KeyboardInterrupt
    assert (tmp_path / "out.csv").read_text() == "former"
    assert (tmp_path / "out.partial.csv").read_text("utf-8").splitlines()[1] == "cat.jpg,,,cat,0.75"


def test_a_csv_file_is_whole_where_nobody_reads_the_output(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from resnetlab.cli.inference import _csv_writer, _show\n"
        "from resnetlab.inference.predictor import Prediction\n"
        "found = [Prediction.of(f'{n}.jpg', (('cat', 0.75),)) for n in range(20_000)]\n"
        "with _csv_writer(Path('out.csv'), 1, 2) as write:\n"
        "    _show(found, write, as_json=False, to_file=True)\n"
    )
    command = f'{sys.executable} -c "$CODE" | head -1'
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=os.environ | {"CODE": code}, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("0.jpg")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 20_001, done.stderr


def test_a_csv_file_has_every_name(tmp_path: Path) -> None:
    from resnetlab.cli.inference import _csv_writer
    from resnetlab.inference.predictor import Prediction

    with _csv_writer(tmp_path / "out.csv", 1, 2) as write:
        write(Prediction.of("caf\udce9.jpg", (("cat", 0.75),)))  # a name that is not UTF-8
    assert (tmp_path / "out.csv").read_text("utf-8").splitlines()[1] == r"caf\udce9.jpg,,,cat,0.75"
