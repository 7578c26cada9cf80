"""What the studies share: CIFAR-10 in memory, one way to train on it, the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))  # run as `python studies/NAME.py` from a checkout, installed or not

from resnetlab import environment  # noqa: E402

environment.start()  # before Keras is imported: the studies take `keras` from here

logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of many small models, as ensemble_view's blocks are

import keras  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from resnetlab import Run, backend, load, results, train  # noqa: E402
from resnetlab.atomic import atomic_file  # noqa: E402
from resnetlab.data.pack import Pack, pack, prepare_pack  # noqa: E402
from resnetlab.data.sources import resolve  # noqa: E402
from resnetlab.data.stream import as_item  # noqa: E402
from resnetlab.environment import cache_folder  # noqa: E402
from resnetlab.evaluation.logits import predict_logits  # noqa: E402
from resnetlab.models.resnet import build  # noqa: E402
from resnetlab.models.variants import Architecture  # noqa: E402
from resnetlab.progress import TerminalProgress  # noqa: E402
from resnetlab.recipes import RECIPES, Recipe  # noqa: E402
from resnetlab.report import plots  # noqa: E402
from resnetlab.run_folder import is_run_folder  # noqa: E402
from resnetlab.training.build import make_stream, make_trainer  # noqa: E402

Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, what was measured of it, and whether the measurement supports it; None: it cannot tell."""

    text: str
    measured: str
    reproduced: bool | None


UNCERTAIN = 2.0  # points of error: 95 % intervals of 10,000 test images are 1 point each way, and there is one seed


def below(difference: float) -> bool | None:
    """Whether a difference of one seed, in points, is negative; None where it is too small to tell."""
    return None if abs(difference) <= UNCERTAIN else difference < 0


# What --quick changes in the recipe of the paper. Whether depth helps to fit shows only near convergence, so two cores
# are given few images, often: a tenth of them, mirrored but not shifted.
QUICK: Row = {
    "image_size": 16,
    "validation": 0.9,
    "crop": "none",
    "batch_size": 64,  # with the rate: as many updates, of the same noise, as from twice the images
    "learning_rate": 0.05,
    "epochs": 40,
    "schedule": "linear",
    "milestones": (),
    "warmup": 2,
}


def choose_recipe(options: argparse.Namespace) -> Recipe:
    """He et al. 2015, section 4.2, or its quick form. (The paper warms ResNet-110 up at a tenth of the rate first.)"""
    return RECIPES["cifar"].changed(seed=options.seed, **(QUICK if options.quick else {}))


def cifar10(size: int) -> Pack:
    """CIFAR-10 with its own test part, at `size` pixels a side; from $RESNETLAB_DATA, ./data or a download."""
    return pack(resolve("cifar10"), size=size, cache_dir=cache_folder(), validation=0.0, test=0.0)


def data_for(recipe: Recipe) -> Pack:
    """CIFAR-10 as the recipe has it. What it sets apart for validation, of each class and by its seed, nobody sees."""
    return prepare_pack(resolve("cifar10"), recipe)


def some_of_test(data: Pack, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of `count` test images of all classes: a pack has them class by class."""
    chosen = np.sort(np.random.default_rng(seed).permutation(data.indices("test"))[:count])
    return data.images[chosen], data.labels[chosen]


def trained(arch: Architecture, recipe: Recipe, data: Pack) -> tuple[keras.Model, list[Row]]:
    """A network trained by `recipe`, and a row for each epoch: the error on the training images as they were shown,
    that on the test images (about fifteen times in all, and at the end), loss, step and seconds.

    Kept in the cache: at one commit, studies that look at the same network train it once between them.
    """
    network = build(arch, num_classes=len(data.class_names), seed=recipe.seed)
    asked = json.dumps(
        [
            asdict(arch),
            recipe.model_dump(),
            data.key,
            len(data.indices("train")),
            keras.backend.backend(),
            next(iter(backend.gpus()), None),
            results.commit(),  # as the result of the study will state it
        ]
    )
    kept = cache_folder() / "studies" / f"{arch.name}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    weights, rows = kept.with_suffix(".weights.h5"), kept.with_suffix(".json")
    if rows.exists():
        network.load_weights(weights)
        say(f"{arch.name}: trained before ({kept})")
        return network, json.loads(rows.read_text("utf-8"))
    found = list(_epochs(network, recipe, data, arch.name))
    kept.parent.mkdir(parents=True, exist_ok=True)
    network.save_weights(weights)
    with atomic_file(rows) as temporary:  # last: whoever finds it finds the weights
        temporary.write_text(json.dumps(found), "utf-8")
    return network, found


def training_seconds(run: Run) -> float:
    """Of all epochs, by the rate of each: the record of an epoch that was interrupted has the time since then only."""
    images = run.history[0]["step"] * run.recipe.batch_size
    return sum(images / epoch["images_per_second"] for epoch in run.history)


def finished_run(data: Path | str, recipe: Recipe, folder: Path, *, weights: Run | None = None) -> Run:
    """A run by the library: found, resumed, or trained now. Ends the process if it is interrupted."""
    shown = TerminalProgress()
    if is_run_folder(folder):
        run = load(folder)
        if run.recipe != recipe.changed(precision=run.recipe.precision, description=run.recipe.description):
            sys.exit(f"{folder} was trained by another recipe. Move it away, or give another --runs.")
        if run.status != "finished":
            run = train(resume=folder, progress=shown)
    else:
        run = train(data, recipe=recipe, weights=weights, run=folder, progress=shown)
    if run.status != "finished":
        sys.exit(130)
    return run


def with_kept_rows(rows: Sequence[Row], path: Path, configuration: Row, *keys: str) -> list[Row]:
    """The rows, and those that a result file has of the same configuration and other values of `keys`; by the first."""
    now = {tuple(row[key] for key in keys) for row in rows}
    others = [row for row in kept_rows(path, configuration) if tuple(row[key] for key in keys) not in now]
    return sorted([*others, *rows], key=lambda row: row[keys[0]])


def kept_rows(path: Path, configuration: Row) -> list[Row]:
    """The rows of a result file, if it is of the same configuration; descriptions of recipes may differ."""
    if not path.exists():
        return []
    before = json.loads(path.read_text("utf-8"))
    same = _without_descriptions(before["configuration"]) == _without_descriptions(
        json.loads(json.dumps(configuration))
    )
    return before["rows"] if same else []


def _without_descriptions(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_descriptions(each) for key, each in value.items() if key != "description"}


def _epochs(network: keras.Model, recipe: Recipe, data: Pack, label: str) -> Iterator[Row]:
    stream = make_stream(recipe, data)
    trainer = make_trainer(network, recipe, stream)
    feed = backend.feed(as_item(stream.batch(0)))
    steps, test_every = stream.steps_per_epoch, max(1, recipe.epochs // 15)
    for epoch in range(1, recipe.epochs + 1):
        began = time.perf_counter()
        with closing(stream.batches((epoch - 1) * steps)) as batches:
            logs = trainer.fit(feed(partial(iter, batches)), steps_per_epoch=steps, shuffle=False, verbose=0).history
        row: Row = {"epoch": epoch, "step": epoch * steps, "loss": logs["loss"][-1]}
        row |= {"training_error": 1 - logs["accuracy"][-1], "seconds": time.perf_counter() - began}
        if epoch % test_every == 0 or epoch == recipe.epochs:
            row["test_error"] = _error_on_test(network, data, recipe.image_size)
        shown = "".join(f"  {key.replace('_', ' ')} {100 * row[key]:.1f} %" for key in row if key.endswith("error"))
        say(f"{label} epoch {epoch} of {recipe.epochs}: loss {row['loss']:.3f}{shown}  {row['seconds']:.0f} s")
        yield {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def _error_on_test(network: keras.Model, data: Pack, size: int) -> float:
    """Share of the test images whose class is not the one with the largest logit."""
    test = data.indices("test")
    logits = predict_logits(network, data.images, test, size=size, batch_size=250)
    return float((logits.argmax(axis=1) != data.labels[test]).mean())


def arguments(
    documentation: str, add: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> argparse.Namespace:
    """Every study's options, and those that `add` adds."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the reduced form for two CPU cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for the data and the figure")
    add(parser)
    return parser.parse_args()


def keep(
    name: str,
    what: str,
    options: argparse.Namespace,
    *,
    configuration: Row,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    draw: Callable[[Figure, Sequence[Row]], None],
    size: tuple[float, float] = (8, 4.5),
) -> None:
    """Write `NAME[-quick].json` and its figure, and print the claims."""
    stem = options.out / (f"study-{name}-quick" if options.quick else f"study-{name}")
    shared = {"backend": keras.backend.backend(), "seed": options.seed, "quick": options.quick}
    gpu = next(iter(backend.gpus()), None)
    found = results.result(what, configuration=shared | configuration, rows=rows, gpu=gpu)
    figure_path = stem.with_suffix(".png")
    results.write(
        stem.with_suffix(".json"), found | {"claims": [asdict(claim) for claim in claims], "figure": figure_path.name}
    )
    plots.write(lambda figure: draw(figure, rows), figure_path, size=size)
    for claim in claims:
        verdict = {True: "reproduced", False: "NOT reproduced", None: "cannot tell"}[claim.reproduced]
        print(f"{verdict}: {claim.text}\n    {claim.measured}")
    print(f"Written to {stem}.json and .png")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
