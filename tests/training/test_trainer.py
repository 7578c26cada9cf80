"""Training: an interrupted run equals one that never stopped, and what can go wrong leaves a usable run folder."""

import gc
import re
import signal
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from resnetlab import backend as active_backend
from resnetlab.data.pack import Pack
from resnetlab.data.stream import as_item
from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.logits import predict_logits
from resnetlab.evaluation.metrics import evaluate_logits
from resnetlab.inference.predictor import Predictor
from resnetlab.models.from_recipe import build_network
from resnetlab.progress import LogProgress
from resnetlab.recipes import Recipe
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.training.build import make_loss, make_stream, make_trainer
from resnetlab.training.checkpoint import Checkpoints
from resnetlab.training.resume import extend
from resnetlab.training.trainer import train
from tests.workers import Workers

TRAIN, VALIDATION = 96, 40
BASE = Recipe(
    model="resnet-tiny",
    image_size=16,
    batch_size=16,  # 6 steps an epoch
    epochs=2,
    learning_rate=0.05,
    flip=False,
    seed=3,
)
EVERYTHING = BASE.changed(
    stochastic_depth=0.5,
    ema=0.9,
    crop="pad",
    crop_padding=2,
    flip=True,
    color_jitter=0.3,
    erase=0.5,
    mixup=0.2,
    cutmix=1.0,
    label_smoothing=0.1,
    class_weights=True,
    nesterov=True,
    warmup=1,
)
FAST = BASE.changed(
    model="fast-resnet8",
    image_size=16,
    optimizer="muon",
    adam_learning_rate=0.01,
    nesterov=True,
    flip="alternating",
    crop="pad",
    crop_padding=2,
    crop_border="reflect",
    progressive=((12, 0.5),),  # 12 pixels in the first epoch, 16 in the second
)
RECIPES = {"everything": EVERYTHING, "fast": FAST, "in parts": EVERYTHING.changed(accumulate=2)}


class Quiet(LogProgress):
    """Progress that shows nothing; it asks the process to stop while a step is under way."""

    def __init__(self, stop_at: int = 0, name: signal.Signals = signal.SIGINT) -> None:
        self.stop_at, self.name = stop_at, name
        self.steps: list[int] = []
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        self.steps.append(step)
        if step == self.stop_at:
            signal.raise_signal(self.name)

    def info(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Slow(np.ndarray):
    """Images from a slow disk: steps that take a while, so that a backend that runs ahead is not through too soon."""

    def __getitem__(self, key: Any) -> Any:
        time.sleep(0.1)
        return np.asarray(self)[key]


def digits(*, scrambled: bool = False) -> Pack:
    """Some of scikit-learn's digits at 16x16; `scrambled` gives the validation images labels of others."""
    found = load_digits()
    count = TRAIN + VALIDATION
    images = (found.images[:count] * 15.9).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    labels = found.target[:count].copy()
    if scrambled:
        labels[TRAIN:] = (labels[TRAIN:] + 5) % 10
    return Pack(
        images=np.repeat(images[..., None], 3, axis=-1),
        labels=labels,
        subset=np.repeat(["train", "validation"], [TRAIN, VALIDATION]),
        hashes=tuple(map(str, range(count))),
        names=tuple(map(str, range(count))),
        class_names=tuple("0123456789"),
        source_name="digits",
        key="",
        audit={},
    )


def new_run(path: Path, recipe: Recipe) -> RunFolder:
    info = RunInfo(model=recipe.model, class_names=tuple("0123456789"), source="digits")
    return RunFolder.create(path, recipe=recipe, info=info)


def state(run: RunFolder) -> dict[str, np.ndarray]:
    """Everything that training reads and writes, by its name."""
    with np.load(Checkpoints(run).files()[0]) as file:  # the second optimizer of a process is "sgd_1"
        names = [re.sub(r"_\d+/", "/", str(name)) for name in file["names"]]
        return {f"{i:03} {name}": file[f"{i:05d}"] for i, name in enumerate(names)}


def records(run: RunFolder) -> list[dict[str, Any]]:
    """The epochs' records without what a clock measured."""
    return [
        {k: v for k, v in r.items() if k != "images_per_second" and not k.endswith("seconds")} for r in run.metrics()
    ]


# (a) Interrupted and resumed. Of three programs, each on two of the three backends: here everything at once, in
# test_accumulate.py batches in parts, in test_transfer.py phases.


def interrupted_and_not(
    folder: str, name: str = "everything", stop_at: int = 8, whole: RunFolder | None = None
) -> dict[str, Any]:
    """Two epochs at a stretch, if not `whole` is that; and two epochs, stopped in the second, and gone on with."""
    recipe, parts = RECIPES[name], new_run(Path(folder, "parts"), RECIPES[name])
    pack = digits()
    pack = replace(pack, images=pack.images.view(Slow))
    before = signal.getsignal(signal.SIGINT)
    if whole is None:
        whole = new_run(Path(folder, "whole"), recipe)
        train(pack, recipe, whole, progress=Quiet())
    stopped, resumed = Quiet(stop_at=stop_at), Quiet()
    statuses = [whole.info().status, train(pack, recipe, parts, progress=stopped)]
    halfway = parts.info()
    assert signal.getsignal(signal.SIGINT) is before
    assert parts.weights().exists()  # usable as it is
    statuses.append(train(pack, recipe, parts, progress=resumed, resume=True))
    return {
        "statuses": statuses,
        "halfway": halfway,
        "messages": stopped.messages,
        "steps": (sorted(stopped.steps), sorted(resumed.steps)),
        "states": (state(whole), state(parts)),
        "records": (records(whole), records(parts)),
        "best": [Predictor(run).logits(pack.images[-3:]) for run in (whole, parts)],
    }


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_an_interrupted_run_equals_one_that_never_stopped(on: Workers, backend: str, tmp_path: Path) -> None:
    found = on(backend)(interrupted_and_not, folder=str(tmp_path))
    assert found["statuses"] == ["finished", "interrupted", "finished"]
    step = found["halfway"].step
    assert step == 8 if backend == "tensorflow" else 8 <= step < 12  # the others run ahead of what they tell
    assert found["halfway"].status == "interrupted"
    assert found["messages"] == [
        f"Stopped at step {step}. Resume with: `resnetlab train --resume {tmp_path / 'parts'}`"
    ]
    assert found["steps"] == (list(range(1, step + 1)), list(range(step + 1, 13)))
    whole, parts = found["states"]
    kinds = " ".join(whole)
    assert all(kind in kinds for kind in ("kernel", "gamma", "moving_variance", "momentum", "average", "seed", "total"))
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
    assert found["records"][1] == found["records"][0]
    assert [record["step"] for record in found["records"][0]] == [6, 12]
    np.testing.assert_array_equal(*found["best"])


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = new_run(tmp_path_factory.mktemp("grown") / "run", FAST)
    train(digits(), FAST, run, progress=Quiet())
    return run


@pytest.mark.parametrize("stop_at", [6, 8])  # where the size changes, and after it
def test_a_run_of_growing_images_is_resumed_exactly(grown: RunFolder, tmp_path: Path, stop_at: int) -> None:
    found = interrupted_and_not(str(tmp_path), "fast", stop_at, whole=grown)
    assert found["statuses"] == ["finished", "interrupted", "finished"]
    whole, parts = found["states"]
    assert "components" in " ".join(whole)
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
    assert found["records"][1] == found["records"][0]


def test_images_grow_with_the_epochs() -> None:
    recipe = FAST.changed(epochs=10, progressive=[[8, 0.3], [12, 0.75]])
    sides = [recipe.training_side(epoch) for epoch in range(1, 11)]
    assert sides == [8] * 3 + [12] * 5 + [16] * 2
    for epochs in (1, 2, 3):
        assert recipe.changed(epochs=epochs).training_side(epochs) == 16, "the last epoch has the full size"


def test_more_epochs_for_growing_images_are_noted(tmp_path: Path) -> None:
    recipe, pack = FAST.changed(epochs=4), digits()
    run = new_run(tmp_path / "run", recipe)
    run.update(status="finished", step=24, epoch=4)
    changed, notes = extend(run, recipe, pack, {"epochs": 12})
    assert changed.training_side(5) == 12
    assert "the images of the next epoch have a side of 12, after 16" in notes[0]


@pytest.mark.parametrize(("stop_at", "steps"), [(6, 7), (12, 12)])
def test_a_stop_at_the_end_of_an_epoch_loses_no_epoch(tmp_path: Path, stop_at: int, steps: int) -> None:
    run = new_run(tmp_path / "run", BASE)
    status = train(digits(), BASE, run, progress=Quiet(stop_at, signal.SIGTERM))
    assert (status, run.info().step) == ("interrupted" if steps < 12 else "finished", steps)
    assert len(run.metrics()) == stop_at // 6


# (b) Early stopping


def test_early_stopping_stops_and_keeps_the_best(tmp_path: Path) -> None:
    """What is learned of the training images is wrong of these validation images, so it soon gets worse."""
    recipe, pack = BASE.changed(epochs=40, early_stopping=2), digits(scrambled=True)
    run = new_run(tmp_path / "run", recipe)
    assert train(pack, recipe, run, progress=Quiet()) == "finished"
    losses = [record["val_loss"] for record in run.metrics()]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 2 < 40
    assert run.info().best_epoch == best + 1
    validation = pack.indices("validation")
    judged = evaluate_logits(Predictor(run).logits(pack.images, validation), pack.labels[validation], pack.class_names)
    assert judged.loss == pytest.approx(losses[best], rel=1e-5)
    assert judged.loss != pytest.approx(losses[-1], rel=1e-3)

    quiet = Quiet()  # (f) a run that has finished is gone on with: nothing is left to do
    assert train(pack, recipe, run, progress=quiet, resume=True) == "finished"
    assert quiet.steps == []
    assert [record["val_loss"] for record in run.metrics()] == losses


def test_early_stopping_without_validation_images_is_told(tmp_path: Path) -> None:
    recipe, pack = BASE.changed(early_stopping=2), digits()
    pack.subset[:] = "train"
    with pytest.raises(ResnetlabError, match=r"validation set is empty.*--set early_stopping=0"):
        train(pack, recipe, new_run(tmp_path / "run", recipe), progress=Quiet())


@pytest.mark.parametrize(("more", "parts"), [(True, 1), (False, 2)])
def test_a_run_that_goes_on_with_other_images_counts_epochs(tmp_path: Path, more: bool, parts: int) -> None:
    recipe = BASE.changed(epochs=6, early_stopping=5, accumulate=parts)
    run, few = new_run(tmp_path / "run", recipe), digits()
    subset = few.subset.copy()
    subset[: TRAIN // 2] = "unused"
    before, after = (replace(few, subset=subset), digits()) if more else (digits(), replace(few, subset=subset))
    steps = [make_stream(recipe, pack).steps_per_epoch for pack in (before, after)]
    assert (steps[0] < steps[1]) == more
    assert train(before, recipe, run, progress=Quiet(stop_at=3 * steps[0] + 1)) == "interrupted"
    assert run.info().epoch == 3
    told = Quiet()
    assert train(after, recipe, run, progress=told, resume=True, force=True) == "finished"
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert sorted(set(told.steps)) == list(range(3 * steps[1] + 1, 6 * steps[1] + 1))
    assert run.info().best_epoch > 3  # losses of other validation images are not compared
    assert Checkpoints(run).newest(pytest.fail)[0]["step"] == 6 * steps[1]
    iterations = next(array for name, array in state(run).items() if name.endswith("iteration"))
    assert iterations == 6 * steps[1] * parts


# (c) Divergence


def diverge(folder: str, rate: float, batch_size: int) -> dict[str, Any]:
    """An epoch that goes well, and then steps of an absurd length."""
    calm = BASE.changed(epochs=1, batch_size=batch_size)
    run, pack = new_run(Path(folder, "run"), calm), digits()
    train(pack, calm, run, progress=Quiet())
    best, before = run.best_weights.read_bytes(), run.metrics()
    wild = calm.changed(epochs=20, schedule="constant", learning_rate=rate, weight_decay=0.01)
    try:
        train(pack, wild, run, progress=Quiet(), resume=True, force=True)
        told = ""
    except ResnetlabError as error:
        told = str(error)
    return {
        "told": told,
        "status": run.info().status,
        "kept": run.best_weights.read_bytes() == best,
        "metrics": run.metrics()[:1] == before,
    }


@pytest.mark.parametrize("batch_size", [16, 96])  # 96: after its one step the training loss is still finite
def test_divergence_is_told_and_leaves_the_best_weights(tmp_path: Path, batch_size: int) -> None:
    found = diverge(str(tmp_path), 1e30, batch_size)
    assert "Training diverged; --resume would repeat these steps. Start a new run" in found["told"]
    assert found["status"] == "diverged"
    assert found["kept"]
    assert found["metrics"]


def test_a_rate_of_a_million_diverges_on_every_backend(on: Workers, backend: str, tmp_path: Path) -> None:
    found = on(backend)(diverge, folder=str(tmp_path), rate=1e6, batch_size=16)
    assert "Training diverged" in found["told"]
    assert re.search(r"not finite at step \d+ \(epoch \d+, batch \d of 6, learning rate 1e\+06\)", found["told"])
    assert re.search(r"(first layer .* is|made the weight) (stem|stage|head)", found["told"])
    assert found["status"] == "diverged"


# (d) Averaged weights


def test_averages_are_evaluated_and_training_goes_on_from_live_weights(tmp_path: Path) -> None:
    pack, plain, averaged = digits(), BASE, BASE.changed(ema=0.9)
    runs = [new_run(tmp_path / str(recipe.ema), recipe) for recipe in (plain, averaged)]
    for run in runs:
        train(pack, run.recipe(), run, progress=Quiet())
    # Without their numbers: the averages come before the network's own weights.
    without, averages = ({name.partition(" ")[2]: array for name, array in state(run).items()} for run in runs)
    kernels = [name for name in without if name.endswith("/kernel")]
    assert len(kernels) > 8
    for name in kernels:
        np.testing.assert_array_equal(averages[name], without[name])  # averaging changes nothing about training
    losses, averages_losses = ([record["loss"] for record in run.metrics()] for run in runs)
    assert losses == averages_losses

    network = Predictor(runs[1]).network
    network.load_weights(runs[1].last_weights)
    differ = {
        variable.path: not np.array_equal(keras.ops.convert_to_numpy(variable), averages[variable.path])
        for variable in network.weights
    }
    assert all(value for path, value in differ.items() if "moving" in path)  # running statistics are averaged too
    assert sum(differ.values()) > len(differ) / 2  # the others have no gradient yet: a last gamma begins at zero

    validation, best = pack.indices("validation"), runs[1].info().best_epoch
    logits = Predictor(runs[1]).logits(pack.images, validation)
    judged = evaluate_logits(logits, pack.labels[validation], pack.class_names)
    found, plainly = (run.metrics()[best - 1]["val_loss"] for run in reversed(runs))
    assert judged.loss == pytest.approx(found, rel=1e-5)
    assert found != pytest.approx(plainly, rel=1e-3)


# (e) Whatever a recipe may ask for


def few_steps(folder: str, changes: dict[str, Any]) -> dict[str, Any]:
    recipe = BASE.changed(epochs=1, batch_size=48, **changes)  # two steps
    run = new_run(Path(folder, "run"), recipe)
    train(digits(), recipe, run, progress=Quiet())
    return run.metrics()[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "lamb", "precision": "bfloat16", "mixup": 0.2, "cutmix": 1.0, "loss": "binary-cross-entropy"},
        {**FAST.model_dump(include={"model", "optimizer", "nesterov", "flip"}), "crop": "pad", "precision": "auto"},
    ],
    ids=["lamb, bfloat16, mixing", "muon, whitening, auto"],
)
def test_two_steps_of_whatever_a_recipe_asks_for(
    on: Workers, backend: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_two_steps(on(backend)(few_steps, folder=str(tmp_path), changes=changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "class_weights": True, "ema": 0.9, "learning_rate": 1e-3, "schedule": "linear"},
        {"momentum": 0.0, "schedule": "steps", "milestones": [0.5], "validation": 0.0},
    ],
    ids=["adamw, class weights, averages", "no momentum"],
)
def test_two_steps_of_other_recipes(on: Workers, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_two_steps(on("tensorflow")(few_steps, folder=str(tmp_path), changes=changes))


def assert_two_steps(record: dict[str, Any]) -> None:
    assert record["step"] == 2
    assert 0 < record["loss"] < 10
    assert 0 < record["val_loss"] < 10


def forgotten_batches() -> list[bool]:
    """Of three calls of `fit` with one model, whether the batches of each could be freed afterwards."""
    pack, recipe = digits(), BASE.changed(batch_size=48)
    stream = make_stream(recipe, pack)
    trainer = make_trainer(build_network(recipe, 10), recipe, stream)
    feed, freed = active_backend.feed(as_item(stream.batch(0))), []
    for _ in range(3):
        made = [stream.batches(0)]
        alive = weakref.ref(made[0])
        trainer.fit(feed(made.pop), steps_per_epoch=2, shuffle=False, verbose=0)
        gc.collect()
        freed.append(alive() is None)
    return freed


def test_the_batches_of_an_epoch_are_freed_after_it(on: Workers, backend: str) -> None:
    assert on(backend)(forgotten_batches) == [True, True, True]


def test_whoever_asks_again_after_a_second_means_it(tmp_path: Path) -> None:
    class Impatient(Quiet):
        def step(self, step: int, logs: Mapping[str, float]) -> None:
            for pause in (0.0, 0.0, 1.1):  # the second, at once, is the first again
                time.sleep(pause)
                self.messages.append("asked")
                signal.raise_signal(signal.SIGINT)

    before, progress = signal.getsignal(signal.SIGINT), Impatient()
    with pytest.raises(KeyboardInterrupt):
        train(digits(), BASE, new_run(tmp_path / "run", BASE), progress=progress)
    assert progress.messages == ["asked"] * 3
    assert signal.getsignal(signal.SIGINT) is before


def loss_of(threshold: float | None) -> float:
    logits = np.array([[2.0, -1.0, 0.5, -3.0]], np.float32)
    return float(make_loss(A3.changed(target_threshold=threshold))(np.array([[0.3, 0.7, 0.0, 0.0]]), logits))


A3 = BASE.changed(
    optimizer="lamb",
    learning_rate=0.01,
    loss="binary-cross-entropy",
    target_threshold=0.2,
    gradient_clip=1.0,
    crop="resized",
    eval_size=24,
    crop_pct=0.75,
    whole_images=True,
    rand_augment=6.0,
    mixup=0.1,
    cutmix=1.0,
)


def test_both_classes_of_a_mixed_image_are_targets(on: Workers, backend: str) -> None:
    logits = np.array([2.0, -1.0, 0.5, -3.0])

    def expected(targets: tuple[float, ...]) -> float:
        return float(np.mean(np.log1p(np.exp(logits)) - np.array(targets) * logits))

    assert on(backend)(loss_of, threshold=None) == pytest.approx(expected((0.3, 0.7, 0, 0)), rel=1e-5)
    assert on(backend)(loss_of, threshold=0.2) == pytest.approx(expected((1, 1, 0, 0)), rel=1e-5)
    assert on(backend)(loss_of, threshold=0.5) == pytest.approx(expected((0, 1, 0, 0)), rel=1e-5)


def a3_losses(folder: Path) -> tuple[list[float], list[float]]:
    """Losses of two epochs of everything in procedure A3: training's, and validation's at the larger size."""
    found = digits()
    stored = found.images.repeat(2, axis=1).repeat(2, axis=2)  # 32: evaluated at 24, trained at 16
    packed = replace(found, images=stored, whole=stored, aspect=np.full(len(stored), 1.5, np.float32))
    run = new_run(folder, A3)
    train(packed, A3, run, progress=Quiet())
    records = run.metrics()
    network = build_network(A3, 10)
    network.load_weights(run.last_weights)
    logits = predict_logits(network, packed.images, packed.indices("validation"), size=24)
    again = evaluate_logits(logits, packed.labels[packed.indices("validation")], packed.class_names)
    assert again.loss == pytest.approx(records[-1]["val_loss"], rel=1e-5)
    return [record["loss"] for record in records], [record["val_loss"] for record in records]


@pytest.mark.long
@pytest.mark.benchmark
def test_procedure_a3_trains_alike_on_every_backend(on: Workers, tmp_path: Path) -> None:
    expected = on("tensorflow")(a3_losses, folder=tmp_path / "tensorflow")
    assert expected[0][1] < expected[0][0]
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(on(backend)(a3_losses, folder=tmp_path / backend), expected, rtol=0.02)
