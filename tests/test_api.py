"""The public API as a user calls it: documented examples, kinds of images, scripts, threads and notebooks."""

import doctest
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image, ImageOps

import resnetlab as rl
from resnetlab import jobs, models, progress, run, tasks
from resnetlab.devices import Placement
from resnetlab.environment import installed
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.resnet import build
from resnetlab.recipes import Recipe, RecipeFields

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY: dict[str, Any] = {"model": "resnet-tiny", "image_size": 32, "batch_size": 8, "epochs": 1, "early_stopping": 0}


def photographs(folder: Path, count: int, *, seed: int = 0) -> Path:
    """A folder of orange cats and blue dogs, on noise."""
    rng = np.random.default_rng(seed)
    for name, colour in (("cat", (220, 120, 30)), ("dog", (40, 90, 200))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 48, 3))
            pixels[8:32, 8:40] = np.array(colour) + rng.integers(-30, 31, (24, 32, 3))
            path = folder / name / f"{seed}-{number}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user works: photos/ with the classes cat and dog, and cat.jpg."""
    root = tmp_path_factory.mktemp("work")
    photos = photographs(root / "photos", 30)
    (root / "cat.jpg").write_bytes(next((photos / "cat").iterdir()).read_bytes())
    return root


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RESNETLAB_CACHE", str(folder / "cache"))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> rl.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RESNETLAB_CACHE", str(folder / "cache"))
        return rl.train("photos", run=folder / "run", **TINY | {"epochs": 8})


def test_the_documented_examples_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The example of `compare` runs but for its measurements, which tests/comparison has.
    monkeypatch.setattr("resnetlab.comparison.compare.CHILD", ("-c", ""))
    names: dict[str, Any] = {"rl": rl}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    documented = [rl.audit, rl.train, rl.load, rl.from_pretrained, rl.compare, rl.variants, build]
    documented += [rl.Run.evaluate, rl.Run.predict, rl.Run.export]
    for item in documented:
        (found,) = finder.find(item, item.__name__, globs=names)
        assert found.examples, item
        found.globs = names  # shared: `run` of the first example is used by the later ones
        assert runner.run(found, clear_globs=False).failed == 0, item


def test_every_public_name_is_documented_and_typed() -> None:
    for name in rl.__all__:
        assert getattr(rl, name) is not None
        assert name == "__version__" or getattr(rl, name).__doc__
    for function in (rl.audit, rl.train, rl.load, rl.from_pretrained, rl.compare, rl.list_runs, rl.variants):
        assert "return" in function.__annotations__
    assert dir(rl) == sorted(rl.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        rl.trian  # noqa: B018


def test_the_keywords_of_train_are_the_fields_of_a_recipe() -> None:
    assert get_type_hints(RecipeFields) == {key: get_type_hints(Recipe)[key] for key in Recipe.model_fields}


def test_a_trained_run_and_the_same_run_loaded(here: Path, trained: rl.Run) -> None:
    loaded = rl.load("run")
    for one in (trained, loaded):
        assert one.status == "finished"
        assert (one.class_names, one.recipe.model, len(one.history)) == (("cat", "dog"), "resnet-tiny", 8)
        assert one.model.output_shape == (None, 2)
        assert one.info.data == str(here / "photos")
    assert repr(trained).startswith("Run(")
    found = loaded.evaluate(flips=True)
    assert (found.subset, found.class_names) == ("test", ("cat", "dog"))
    assert rl.Evaluation.from_json(json.loads((trained.path / "evaluation.json").read_text())).top1 == found.top1
    other = photographs(here / "others", 5, seed=1)
    assert loaded.evaluate(other).n == 10


def test_images_too_small_for_a_network_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    for settings in ({"image_size": 8}, {"image_size": 16, "progressive": [[8, 0.5]]}):
        with pytest.raises(
            rl.UsageError, match=r"Received images of 8x8 pixels\. The images are too small for fast-resnet8"
        ):
            rl.train("digits", model="fast-resnet8", run=tmp_path / "run", progress=None, **settings)
    assert not (tmp_path / "run").exists()


# Images


def test_an_image_is_predicted_alike_however_it_is_given(here: Path, trained: rl.Run) -> None:
    image = Image.open("cat.jpg").convert("RGB")
    pixels = np.asarray(image)
    kinds: list[Any] = [
        "cat.jpg",
        Path("cat.jpg"),
        "ca*.jpg",
        image,
        pixels,
        pixels[None],
        [image],
        (p for p in [pixels]),
    ]
    expected = trained.predict("cat.jpg")[0]
    assert expected.path == "cat.jpg"
    for kind in kinds:
        (found,) = trained.predict(kind)
        assert found.label == expected.label
        assert found.probability == pytest.approx(expected.probability, abs=0.02)  # a JPEG is decoded at a lower size
        assert found.top[0] == (found.label, found.probability)
    assert [p.path for p in trained.predict(["cat.jpg", image, here / "photos" / "dog"])][:2] == ["cat.jpg", None]
    assert len(trained.predict("photos")) == 60
    assert trained.predict(image, top=1)[0].top[1:] == ()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I", "F"]
)
def test_pil_images_of_every_mode(here: Path, trained: rl.Run, mode: str) -> None:
    image = Image.open("cat.jpg").convert("RGB")
    deep = mode in ("I;16", "I;16B", "I", "F")
    given = image.convert("L").convert("I").point(lambda v: v * 257).convert(mode) if deep else image.convert(mode)
    (found,) = trained.predict(given)
    assert found.problem is None
    if deep:
        grey = trained.predict(image.convert("L"))[0]
        assert found.probability == pytest.approx(grey.probability, abs=0.05)


def test_the_orientation_of_an_image_in_memory_counts(trained: rl.Run, here: Path) -> None:
    image = Image.open("cat.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save("turned.jpg", exif=exif, quality=100, subsampling=0)
    turned = Image.open("turned.jpg")
    upright = ImageOps.exif_transpose(turned)
    assert trained.predict(turned)[0].top == trained.predict(upright)[0].top


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (np.zeros((8, 8, 3), np.float32), "an array of float32"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (7, "Received an object of type int"),
        ([7], "type int among the images"),
        ([], "no image"),
        ("gone.jpg", "gone.jpg"),
        (["gone.jpg", "*.bmp"], "gone.jpg: no such file"),
    ],
)
def test_what_is_no_image_is_named(here: Path, trained: rl.Run, given: Any, named: str) -> None:
    with pytest.raises(rl.UsageError, match=named):
        trained.predict(given)


def test_a_file_that_cannot_be_used_has_a_problem_and_no_label(here: Path, trained: rl.Run) -> None:
    Path("text.jpg").write_text("no image")
    found = trained.predict(["text.jpg", "cat.jpg"])
    assert [(p.label is None, p.problem is None) for p in found] == [(True, False), (False, True)]


# Arguments


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: rl.train(), "Missing DATA"),
        (lambda: rl.train("photos", lr=3), "'learning_rate'"),  # type: ignore[call-arg]
        (lambda: rl.train("photos", epochs=0), "epochs: received 0"),
        (lambda: rl.train("photos", model="resnet5"), "resnet50"),
        (lambda: rl.train("photos", recipe="quik"), "quick"),
        (lambda: rl.train("photos", progress="loud"), "progress='loud'"),
        (lambda: rl.train("photos", device="gpuu"), "'gpu'"),
        (lambda: rl.train("photos", run="run"), "not empty"),
        (lambda: rl.train(resume="run", weights="run"), "leave them out"),
        (lambda: rl.train(resume="run", learning_rate=1.0), "learning_rate, and only epochs may change"),
        (lambda: rl.load("photos"), "run.json"),
        (lambda: rl.from_pretrained("gone.pth"), "gone.pth"),
        (lambda: rl.from_pretrained("gone.pth", epochs=3), "Received epochs"),
        (lambda: rl.from_pretrained("gone.pth", shortcut_padding="left"), "shortcut_padding='left'"),  # type: ignore[arg-type]
        (lambda: rl.variants("resnet5"), "resnet50"),
        (lambda: rl.compare("photos", devices=["tpu"]), "tpu"),
        (lambda: rl.compare("photos", repeats=0), "repeats=0"),
        (lambda: rl.load("run").export("onx"), "onnx"),
        (lambda: rl.load("run").predict("cat.jpg", engine="onx"), "onnx"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_begun(
    here: Path, trained: rl.Run, call: Callable[[], Any], named: str
) -> None:
    before = sorted(here.iterdir())
    with pytest.raises(rl.UsageError, match=named):
        call()
    assert sorted(here.iterdir()) == before


def test_a_recipe_may_be_a_name_a_file_or_an_object(here: Path, trained: rl.Run) -> None:
    Path("mine.toml").write_text('base = "quick"\nepochs = 2\n')
    silent = progress.LogProgress()
    found = [
        jobs.choose_recipe("photos", recipe, {"flip": True}, report=silent)
        for recipe in ("mine.toml", Path("mine.toml"), rl.Recipe(epochs=2), "quick", None)
    ]
    assert [recipe.epochs for recipe in found] == [2, 2, 2, 30, 60]
    assert all(recipe.flip for recipe in found)


def test_weights_with_a_crop_can_be_trained_from_without_one(tmp_path: Path) -> None:
    fixed = {"model": "resnet18", "crop_pct": 0.95, "eval_size": 256, "image_size": 224}
    found = jobs.choose_recipe("photos", "quick", {"image_size": 32}, report=progress.LogProgress(), fixed=fixed)
    assert (found.model, found.crop, found.eval_size) == ("resnet18", "pad", None)
    found = jobs.choose_recipe("photos", "finetune", {}, report=progress.LogProgress(), fixed=fixed)
    assert (found.crop_pct, found.eval_size) == (0.95, 256)
    (tmp_path / "longer.toml").write_text('base = "finetune"\nepochs = 30\n')  # nothing about the size
    found = jobs.choose_recipe("photos", tmp_path / "longer.toml", {}, report=progress.LogProgress(), fixed=fixed)
    assert (found.epochs, found.eval_size) == (30, 256)
    told = Told()
    jobs.choose_recipe("photos", "strikes-back-a3", {}, report=told, fixed=fixed | {"eval_size": None})
    assert [text for text in told.warnings if "eval_size=224, but eval_size=None of the weights" in text]


def test_a_run_resumed_through_another_handle_has_its_new_weights(here: Path) -> None:
    run = rl.train("photos", run="older", progress=None, **TINY)
    before = [np.array(weight) for weight in run.model.get_weights()]
    rl.train(resume="older", epochs=3, progress=None)
    best = rl.load("older").model.get_weights()
    assert run.info.best_epoch == 1 or any((a != b).any() for a, b in zip(before, best, strict=True))
    for one, other in zip(run.model.get_weights(), best, strict=True):
        np.testing.assert_array_equal(one, other)


def test_classes_that_were_renamed_and_images_that_were_moved_are_told(here: Path) -> None:
    photographs(here / "pets", 12)
    run = rl.load(rl.train("pets", run="pets-run", progress=None, **TINY).path)
    (here / "pets" / "cat").rename(here / "pets" / "feline")
    with pytest.raises(ResnetlabError, match="cat gone, feline new"):
        run.evaluate(progress=None)
    with pytest.raises(ResnetlabError, match="cat gone, feline new"):
        rl.train(resume=run, epochs=2, force_resume=True, progress=None)
    (here / "pets" / "feline").rename(here / "pets" / "cat")
    moved = next((here / "pets" / "cat").iterdir())
    moved.rename(here / "pets" / "dog" / f"moved-{moved.name}")
    with pytest.raises(ResnetlabError, match="1 image is in the folder of another class"):
        run.evaluate(progress=None)


def test_what_was_just_trained_is_evaluated_though_the_images_have_changed(here: Path) -> None:
    photographs(here / "pets", 12)
    run = rl.train("pets", run="changed-run", progress=None, **TINY)
    found = run.evaluate(progress=None)
    shutil.copy(next((here / "photos" / "cat").iterdir()), here / "pets" / "cat" / "new.jpg")
    with pytest.raises(ResnetlabError, match="1 new"):
        rl.load(run.path).evaluate(progress=None)
    told = Told()
    assert run.evaluate(progress=told).to_json() == found.to_json()
    assert ["as they were when they were trained on" in text for text in told.warnings] == [True]
    assert (run.path / "report.html").is_file()
    resumed = rl.train(resume=run.path, epochs=2, force_resume=True, progress=None)
    assert resumed.info.pack != run._pack.key  # type: ignore[union-attr]
    assert [record["epoch"] for record in resumed.history] == [1, 2]
    audited = json.loads((run.path / "audit.json").read_text("utf-8"))
    assert audited == resumed._pack.audit  # type: ignore[union-attr]


class Told(progress.LogProgress):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def messages_with(self, part: str) -> list[str]:
        return [text for text in self.messages if part in text]

    def info(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_early_stopping_after_few_steps_and_a_head_alone_are_told(here: Path, trained: rl.Run) -> None:
    told = Told()
    options: dict[str, Any] = {"allow_losses": False, "placement": Placement(None, "cpu"), "report": told}
    jobs.prepare("photos", None, None, TINY | {"early_stopping": 2, "batch_size": 16}, **options)
    assert [text for text in told.warnings if "end training after 6 steps" in text]
    assert not told.messages_with("only the head is trained")
    told = options["report"] = Told()
    jobs.prepare("photos", None, trained, {"epochs": 2, "batch_size": 8}, **options)
    assert told.messages_with("only the head is trained, in all 2 epochs: frozen_epochs=2")
    assert not [text for text in told.warnings if "Early stopping" in text]


def test_weights_of_whole_images_are_trained_further_on_whole_images(here: Path) -> None:
    run = rl.train("photos", run="whole-images", progress=None, **TINY | {"crop": "pad"})
    options: dict[str, Any] = {"allow_losses": False, "placement": Placement(None, "cpu"), "report": Told()}
    chosen = jobs.prepare("photos", None, run, {"epochs": 3}, **options).recipe
    assert (chosen.crop, chosen.crop_pct, chosen.pack_size) == ("resized", 1.0, 32)


def test_a_path_may_begin_with_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    run = rl.train("~/photos", run="~/at-home", progress=None, **TINY)
    assert run.path == here / "at-home"
    assert rl.load("~/at-home").path == here / "at-home"
    image = next((here / "photos" / "cat").iterdir())
    assert run.predict(f"~/photos/cat/{image.name}", progress=None)[0].problem is None


def test_a_run_that_is_trained_is_not_changed_by_a_second_process(here: Path) -> None:
    run = rl.train("photos", run="held", progress=None, **TINY)
    files = {path.name: path.read_bytes() for path in run.path.glob("*.json")}
    code = "import resnetlab as rl; rl.train(resume='held', epochs=2, progress=None)"
    with run.folder.training_lock():
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Another process is training held" in second.stderr
    assert {path.name: path.read_bytes() for path in run.path.glob("*.json")} == files


def test_a_batch_in_any_number_of_parts_is_evaluated(here: Path) -> None:
    run = rl.train("photos", run="in-parts", progress=None, **TINY | {"batch_size": 12, "accumulate": 3})
    found = run.evaluate(progress=None)
    whole = run.recipe.changed(accumulate=1)
    run.folder.write_json("recipe.json", whole.model_dump(mode="json"))
    expected = rl.load(run.path).evaluate(progress=None)
    assert found.n == expected.n == sum(subset == "test" for subset in run.folder.split().values())
    assert found.top1 == expected.top1
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_timing_steps_leaves_the_initial_weights_alone(here: Path, trained: rl.Run) -> None:
    prepared = jobs.prepare(
        "photos",
        None,
        trained,
        {"batch_size": 8, "epochs": 3},
        allow_losses=False,
        placement=Placement(None, "cpu"),
        report=progress.LogProgress(),
    )
    assert prepared.network is not None
    assert prepared.recipe.frozen_epochs == 2
    before = prepared.network.get_weights()
    jobs.time_step(prepared, 0.05)
    for one, other in zip(before, prepared.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_data_is_evaluated_on_its_held_out_part(here: Path, trained: rl.Run) -> None:
    photographs(here / "parts" / "train", 20, seed=1)
    photographs(here / "parts" / "val", 7, seed=2)
    assert trained.evaluate("parts", progress=None).n == 14
    photographs(here / "parts" / "test", 3, seed=3)
    assert trained.evaluate("parts", progress=None).n == 6


def test_an_evaluation_does_not_outlive_its_weights(here: Path) -> None:
    run = rl.train("photos", run="evaluated", progress=None, **TINY)
    run.evaluate(progress=None)
    assert (run.path / "evaluation.json").exists()
    best = run.info.best_epoch
    rl.train(resume=run, epochs=6, progress=None)
    assert (run.path / "evaluation.json").exists() == (run.info.best_epoch == best)


def test_what_a_recipe_file_states_comes_before_the_weights(here: Path) -> None:
    Path("large.toml").write_text('base = "finetune"\nimage_size = 224\n')
    Path("larger.toml").write_text('base = "large.toml"\n')
    fixed = {"model": "resnet18", "image_size": 128, "crop_pct": 0.875, "interpolation": "bicubic"}
    fixed |= {"preprocessing": "imagenet", "eval_size": None}
    silent = progress.LogProgress()
    for name, size in (("large.toml", 224), ("larger.toml", 224), ("finetune", 128)):
        found = jobs.choose_recipe("photos", name, {}, report=silent, fixed=fixed)
        assert (found.image_size, found.interpolation) == (size, "bicubic")
    Path("other.toml").write_text('base = "finetune"\nmodel = "resnet50"\n')
    with pytest.raises(UsageError, match="Received model 'resnet50', expected 'resnet18'"):
        jobs.choose_recipe("photos", "other.toml", {}, report=silent, fixed=fixed)


def test_a_run_is_not_imported_again(here: Path, trained: rl.Run) -> None:
    with pytest.raises(UsageError, match="is a run already"):
        rl.from_pretrained(trained.path, class_names=["a", "b"])


def test_safetensors_has_no_precision(here: Path, trained: rl.Run) -> None:
    with pytest.raises(UsageError, match="safetensors has the weights in float32"):
        trained.export("safetensors", precision="float16")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_a_class_of_any_name_is_evaluated(here: Path) -> None:
    photographs(here / "named", 12)
    (here / "named" / "cat").rename(here / "named" / "caf\udce9")
    run = rl.train("named", run="named-run", progress=None, **TINY)
    assert run.evaluate(progress=None).n > 0
    assert run.folder.class_counts()["caf\udce9"].total() == 12


@pytest.mark.skipif(not installed("jax"), reason="needs two backends: make test EXTRAS=jax")
def test_a_network_is_built_on_the_first_backend_that_is_installed() -> None:
    code = (
        "import os; os.environ.pop('KERAS_BACKEND', None)\n"
        "import resnetlab as rl\n"
        "from resnetlab import environment\n"
        "environment.installed = lambda name: name == 'jax'\n"
        "rl.build('resnet-tiny')\n"
        "import keras; print(keras.backend.backend())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["jax"], done.stderr


@pytest.mark.skipif(not installed("jax"), reason="needs two backends: make test EXTRAS=jax")
def test_a_run_computes_on_the_backend_that_was_asked_for(here: Path, trained: rl.Run) -> None:
    code = (
        "import os; os.environ.pop('KERAS_BACKEND', None); os.environ.pop('TF_CPP_MIN_LOG_LEVEL', None)\n"
        "import resnetlab as rl\n"
        f"rl.load({str(trained.path)!r}, backend='jax', device='cpu').explain('cat.jpg')\n"
        "import keras; print(keras.backend.backend())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=here)
    assert (done.stdout.split(), done.stderr) == (["jax"], "")


def test_every_method_starts_the_backend_before_it_imports_keras(here: Path, trained: rl.Run) -> None:
    trained.evaluate(progress=None)  # a report explains mistakes
    code = f"""
import sys
import resnetlab as rl
from resnetlab import environment

class Started(BaseException):
    pass

def start(**settings):
    raise Started(settings["backend"], settings["device"], "keras" in sys.modules)

environment.start = start
run = rl.load({str(trained.path)!r}, backend="jax", device="cpu")
for call in (
    lambda: run.explain("cat.jpg"), lambda: run.report(), lambda: run.filters(), lambda: run.export("safetensors"),
    lambda: run.model, lambda: run.evaluate(), lambda: run.predict("cat.jpg"),
):
    try:
        call()
    except Started as started:
        print(*started.args)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=here)
    assert (done.stdout.splitlines(), done.stderr) == (["jax cpu False"] * 7, "")


def test_an_engine_on_the_cpu_is_not_for_a_gpu(here: Path, trained: rl.Run) -> None:
    with pytest.raises(UsageError, match="onnx computes on the CPU"):
        rl.load(trained.path, device="gpu").predict("cat.jpg", engine="onnx")


def test_training_from_a_run_and_resuming_it(here: Path, trained: rl.Run) -> None:
    tuned = rl.train("photos", weights=trained, run="tuned", batch_size=8, epochs=1, frozen_epochs=0, progress=None)
    assert (tuned.info.weights, tuned.recipe.name) == (str(trained.path), "finetune")
    resumed = rl.train(resume=tuned, epochs=2, progress=None)
    assert (resumed.path, len(resumed.history), resumed.status) == (tuned.path, 2, "finished")


# Where it runs


class Recorder(progress.LogProgress):
    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("info", "warning", "count", "start", "step", "epoch", "stop"):
            self.events.append(name)
        return super().__getattribute__(name)


def test_progress_is_reported_to_an_object_and_training_works_in_a_thread(here: Path) -> None:
    recorder, found = Recorder(), list[rl.Run]()
    thread = threading.Thread(
        target=lambda: found.append(rl.train("photos", run="threaded", progress=recorder, **TINY))
    )
    thread.start()
    thread.join()
    assert found[0].status == "finished"
    assert [event for event in recorder.events if event in ("start", "epoch", "stop")] == ["start", "epoch", "stop"]
    assert recorder.events.count("step") == recorder.events.index("epoch") - recorder.events.index("step")


def test_messages_without_progress_are_logged(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="resnetlab"):
        rl.train("photos", run="logged", progress=None, **TINY)
    assert any("epoch 1/1" in message for message in caplog.messages)


def test_a_script_prints_nothing(here: Path) -> None:
    program = (
        "import resnetlab as rl\n"
        f"run = rl.train('photos', run='script', **{TINY!r})\n"
        "run.evaluate(); run.predict('cat.jpg'); run.export('onnx')\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_it_takes_the_backend_that_already_runs(here: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    program = (
        "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras; del os.environ['KERAS_BACKEND']\n"
        f"import resnetlab as rl; run = rl.train('photos', run='on jax', **{TINY!r})\n"
        "assert run.info.backend == 'jax', run.info\n"
        "try: rl.train('photos', run='other', backend='tensorflow')\n"
        "except rl.ResnetlabError as error: assert 'already runs on' in str(error)\n"
        "else: raise AssertionError\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, env=environment
    )
    assert child.returncode == 0, child.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["tensorflow", *(pytest.param(b, marks=pytest.mark.benchmark) for b in ("jax", "torch"))]
)
def test_the_quickstart_on_every_backend(tmp_path: Path, name: str) -> None:
    if not installed(name):  # not by importing it: PyTorch and TensorFlow must not share a process
        pytest.skip(f"{name} is not installed")
    child = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py")],
        cwd=tmp_path,
        env=os.environ | {"KERAS_BACKEND": name},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("predicted") == 3
    assert (Path(tmp_path, child.stdout.splitlines()[-1]) / "model.onnx").exists()


@pytest.mark.long
@pytest.mark.benchmark
def test_progress_is_rendered_in_a_notebook(tmp_path: Path) -> None:
    source = "import resnetlab as rl\nrun = rl.train('digits', epochs=2)\nrun.evaluate().top1"
    cell = {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None, "id": "a"}
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--inplace", str(notebook)]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    outputs = json.loads(notebook.read_text())["cells"][0]["outputs"]
    assert [output["output_type"] for output in outputs] == ["display_data", "execute_result"]
    shown = "".join(outputs[0]["data"]["text/html"])
    assert shown.count("  val ") == 2
    assert "<progress" not in shown  # the bar is gone at the end


def test_modules_of_the_api_are_the_documented_ones() -> None:
    import resnetlab.comparison.compare  # a package of the same name would hide the function

    assert {function.__module__ for function in (rl.train, rl.load, rl.compare)} == {tasks.__name__}
    assert resnetlab.comparison.compare.Comparison is rl.Comparison
    assert rl.Run.__module__ == run.__name__
    assert rl.build is models.build
