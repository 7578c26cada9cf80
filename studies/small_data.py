"""Few images: what a recipe reaches from scratch with a hundred images of each class, and with twenty.

Claim   With 1,000 images of CIFAR-10, `cifar-small-data` is at least 12 points better than `cifar`, on all 10,000 test
        images (results/small-data-cifar.json, by seed). With the 240 photographs of the Animals-10 sample, `photos` is
        at least 12 points better than `animals`, in the mean of five folds (results/small-data-animals.json).
Source  L. Brigato, L. Iocchi 2020, arXiv:2003.12843 (with few images, tuning matters more than special methods).
Cost    On two CPU cores: CIFAR-10 47 minutes for each seed; the photographs an hour. --quick: one epoch of each, to
        see that it works; nothing is kept.

CIFAR-10: 100 training images of each class, chosen anew by each seed. `cifar-small-data` was tuned on 3,000 other
training images (--tune), never on the test images. Animals-10: five folds, each tested once by a network trained on the
other four; the size and the length of `photos` were chosen with the training part of the first fold.
Runs are ordinary run folders: an interrupted one is resumed, a finished one is not repeated.

    python studies/small_data.py cifar --seeds 3
    python studies/small_data.py cifar --recipe cifar-94 --tune --set epochs=80
    python studies/small_data.py animals
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from experiment import Row, arguments, finished_run, keras, say, training_seconds, with_kept_rows
from PIL import Image

import resnetlab as rl
from resnetlab import backend, results
from resnetlab.atomic import atomic_folder
from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from resnetlab.environment import cache_folder
from resnetlab.recipes import INPUT_KEYS, RECIPES, parse_settings

OF_EACH, OF_EACH_IN_TUNING, FOLDS = 100, 300, 5
COMPARED = {"cifar": ("cifar", "cifar-small-data"), "animals": ("animals", "photos", "finetune")}


def subset_of_cifar(seed: int, folder: Path, *, tuning: bool) -> Path:
    """A folder of 100 training images of each class, and those to test on: CIFAR-10's own, or other training images."""
    data = pack(resolve("cifar10"), size=32, cache_dir=cache_folder(), validation=0.0, test=0.0)
    target = folder / f"cifar10-{OF_EACH}-seed{seed}{'-tuning' if tuning else ''}"
    if not target.exists():
        with atomic_folder(target) as building:
            for label, name in enumerate(data.class_names):
                of_class = data.indices("train")[data.labels[data.indices("train")] == label]
                mixed = np.random.default_rng([seed, label]).permutation(of_class)
                test = data.indices("test")[data.labels[data.indices("test")] == label]
                if tuning:
                    test = mixed[OF_EACH : OF_EACH + OF_EACH_IN_TUNING]
                write_images(building / "train" / name, data, mixed[:OF_EACH])
                write_images(building / "test" / name, data, test)
    return target


def write_images(folder: Path, data: Pack, rows: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for row in rows:
        Image.fromarray(data.images[row]).save(folder / f"{row:05d}.png")


def folds_of_animals(folder: Path) -> Iterator[Path]:
    """Five folders of the same photographs, each class's fifth of which is the test part of one of them."""
    source = resolve("animals10")
    for fold in range(FOLDS):
        target = folder / f"animals10-fold{fold}"
        if not target.exists():
            with atomic_folder(target) as building:
                for label, name in enumerate(source.class_names):
                    samples = [sample for sample in source.samples if sample.label == label]
                    order = np.random.default_rng(label).permutation(len(samples))
                    for place, number in enumerate(order):
                        part = building / ("test" if place % FOLDS == fold else "train") / name
                        part.mkdir(parents=True, exist_ok=True)
                        shutil.copy(samples[number].path, part)
        yield target


def cifar_weights(folder: Path) -> rl.Run | None:
    """A ResNet-56 that was trained on CIFAR-10, from $RESNETLAB_DATA/weights; None where it is not there."""
    imported = folder / "weights-resnet56"
    if imported.exists():
        return rl.load(imported)
    found = sorted(Path(os.environ.get("RESNETLAB_DATA", "data"), "weights").glob("resnet56-*.th"))
    return rl.from_pretrained(found[0], run=imported, shortcut_padding="both") if found else None


def measure(part: str, run: rl.Run, **fields: Any) -> Row:
    found, recipe = run.evaluate(progress=None), run.recipe
    return {
        "part": part,
        "recipe": recipe.name,
        "network": f"{recipe.model}, {recipe.image_size}x{recipe.image_size}",
        **fields,
        "n": found.n,
        "top1": found.top1,
        "loss": round(found.loss, 5),
        "epochs": len(run.history),
        "seconds": round(training_seconds(run), 1),
        "precision": run.recipe.precision,
        "device": run.info.device_name,
        "commit": run.info.commit,
    }


def measured(options: Any) -> Iterator[Row]:
    """A row for each recipe and seed or fold: the recipes in turns."""
    names = [options.recipe] if options.recipe else list(COMPARED[options.part])
    weights = cifar_weights(options.runs) if "finetune" in names else None
    if "finetune" in names and weights is None:
        say("finetune is left out: $RESNETLAB_DATA/weights has no resnet56-*.th")
        names.remove("finetune")
    recipes = [RECIPES[name].changed(**parse_settings(options.set)) for name in names]
    if options.quick:
        quick = {"epochs": 1, "warmup": 0, "early_stopping": 0, "progressive": (), "frozen_epochs": 0}
        recipes = [recipe.changed(**quick) for recipe in recipes]
    if options.part == "cifar":
        seeds = range(options.seed, options.seed + options.seeds)
        data = {f"seed{seed}": subset_of_cifar(seed, options.runs, tuning=options.tune) for seed in seeds}
    else:
        data = {path.name.removeprefix("animals10-"): path for path in folds_of_animals(options.runs)}
    changes = "-".join(["", "tuning"] * options.tune + options.set)
    for number, (name, images) in enumerate(data.items()):
        for recipe in recipes:
            seeded = recipe.changed(seed=options.seed + number if options.part == "cifar" else options.seed)
            initial = weights if recipe.name == "finetune" else None
            if initial is not None:
                of_weights = {key: getattr(initial.recipe, key) for key in ("model", *INPUT_KEYS)}
                seeded = seeded.changed(**of_weights | {"crop_pct": 1.0})  # it has seen whole images
            folder = options.runs / f"small-{options.part}-{recipe.name}-{name}{changes}"
            row = measure(options.part, finished_run(images, seeded, folder, weights=initial), of=name)
            say(f"{recipe.name} {name}: top-1 {100 * row['top1']:.2f} % of {row['n']:,}, {row['seconds']:.0f} s")
            keras.backend.clear_session()
            yield row


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """The mean of each recipe, its deviation, and the mean of the differences to the first one."""
    by_recipe: dict[str, list[float]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append(100 * row["top1"])
    for name, found in by_recipe.items():
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        yield f"{name}: top-1 {statistics.fmean(found):.2f}{spread} % (n = {len(found)})"
    (first, plain), *others = by_recipe.items()
    for name, found in others:
        pairs = [b - a for a, b in zip(plain, found, strict=True)]
        shown = f"{statistics.fmean(pairs):+.2f} points, from {min(pairs):+.2f} to {max(pairs):+.2f}"
        yield f"{name} minus {first}: {shown}"


def main() -> None:
    def add(parser: Any) -> None:
        parser.add_argument("part", choices=COMPARED)
        parser.add_argument("--recipe", choices=RECIPES, help="this one alone; nothing is kept")
        parser.add_argument("--tune", action="store_true", help="test on other training images; nothing is kept")
        parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on, of CIFAR-10")
        parser.add_argument("--set", action="append", metavar="KEY=VALUE", default=[], help="change the recipes")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders and images are")

    options = arguments(__doc__ or "", add)
    if options.tune and options.part != "cifar":
        sys.exit("--tune is for cifar: the photographs are too few to hold others out.")
    with tempfile.TemporaryDirectory() if options.quick else nullcontext(options.runs) as folder:
        options.runs = Path(folder)
        options.runs.mkdir(parents=True, exist_ok=True)
        rows = list(measured(options))
    print("\n".join(summary(rows)))
    if options.quick or options.tune or options.recipe or options.set:
        return
    recipes = {name: RECIPES[name].model_dump(mode="json") for name in COMPARED[options.part]}
    device = backend.gpus()[0] if backend.gpus() else None
    configuration = {"recipes": recipes, "backend": keras.backend.backend()}
    what = "Training on few images: top-1 of each recipe, by seed or fold"
    path = options.out / f"small-data-{options.part}.json"
    rows = with_kept_rows(rows, path, configuration, "of", "recipe")
    results.write(path, results.result(what, configuration=configuration, rows=rows, gpu=device))
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
