"""Transfer: what was learned of vehicles is worth something for animals, of which there are few images.

Claim   A network trained on many images of other classes and then fine-tuned on a hundred of each of its own beats the
        same network trained on these alone, and a new head on what the other classes taught. Batch norm in training
        mode gives up the statistics that the weights were trained with, for those of each batch: the smaller the
        batches, the more is lost by it.
Source  J. Yosinski et al. 2014, arXiv:1411.1792 (features of other classes beat random ones, and more so where they go
        on learning); A. Kolesnikov et al. 2019, arXiv:1912.11370, "Upstream Pre-Training" (batch norm does badly with
        small batches, and is detrimental to transfer).
Cost    ResNet-20 on 20,000 images of CIFAR-10's four vehicles, 40 epochs; then three times in each of six ways on 600
        images of its six animals. For a GPU, half an hour. --quick: 10 epochs of the vehicles: 15 minutes on two CPU
        cores that have nothing else to do.

    python studies/transfer.py [--quick]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiment import Claim, Row, arguments, cifar10, keep, keras, say, trained
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from resnetlab.data.pack import Pack
from resnetlab.inference.predictor import Predictor
from resnetlab.models import architecture
from resnetlab.models.from_recipe import build_network
from resnetlab.progress import LogProgress
from resnetlab.recipes import RECIPES, Recipe
from resnetlab.report import plots
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.training.trainer import train
from resnetlab.training.transfer import load_backbone

VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
IMAGES_OF_EACH = 100
SEEDS = 3

# Chosen by the accuracy on 1,800 other training images of the animals, of one seed (its standard error is 1.2 points),
# after 8 epochs of the vehicles. From scratch: rates of 0.05, 0.1 and 0.2 (49.7, 49.0 and 48.8 %), 100 epochs (49.3 %).
# Fine-tuned: rates of 0.02 and 0.04 (59.1, 56.9 %); a layer decay of 0.6, 0.8 and 1 (58.8, 59.1, 53.4 %). In 20 epochs:
# rates of 0.02 and 0.05 with frozen statistics (55.7, 25.4 %: nothing bounds the features then), and in training mode
# (57.6, 60.7 %: it bears a higher rate).
ON_CIFAR: Row = {"model": "resnet20", "image_size": 32, "crop": "pad", "validation": 0.0, "test": 0.0}
TUNED = RECIPES["finetune"].changed(**ON_CIFAR, epochs=40)
SCRATCH = TUNED.changed(
    name="scratch",
    frozen_epochs=0,
    frozen_batch_norm=False,
    layer_decay=1.0,
    epochs=60,
    learning_rate=0.1,
    warmup=5,
)
SMALL_BATCHES = TUNED.changed(batch_size=4, learning_rate=0.0025, epochs=10, frozen_epochs=1)
FROM_SCRATCH, HEAD, FINE_TUNED, TRAINING_MODE, SMALL_FINE_TUNED, SMALL_TRAINING_MODE = (
    "from scratch",
    "new head alone",
    "fine-tuned",
    "fine-tuned, batch norm in training mode",
    "fine-tuned, batches of 4",
    "fine-tuned, batches of 4, batch norm in training mode",
)
METHODS = {
    FROM_SCRATCH: SCRATCH,
    HEAD: TUNED.changed(frozen_epochs=TUNED.epochs),
    FINE_TUNED: TUNED,
    TRAINING_MODE: TUNED.changed(frozen_batch_norm=False),
    SMALL_FINE_TUNED: SMALL_BATCHES,
    SMALL_TRAINING_MODE: SMALL_BATCHES.changed(frozen_batch_norm=False),
}


def of_classes(data: Pack, class_names: Sequence[str]) -> Pack:
    """The images of some classes, numbered in this order; the others are in no subset that is asked for."""
    numbers = np.full(len(data.class_names), -1)
    numbers[[data.class_names.index(name) for name in class_names]] = range(len(class_names))
    labels = numbers[data.labels]
    return replace(
        data,
        labels=np.maximum(labels, 0),
        subset=np.where(labels >= 0, data.subset, "unused"),
        class_names=tuple(class_names),
        key=f"{data.key} {' '.join(class_names)}",
    )


def some_of_training(data: Pack, count: int, seed: int) -> Pack:
    """The pack with `count` training images of each class, drawn by `seed`; the other training images are unused."""
    rng = np.random.default_rng(seed)
    train = rng.permutation(data.indices("train"))
    chosen = np.concatenate([train[data.labels[train] == label][:count] for label in range(len(data.class_names))])
    subset = np.where(data.subset == "train", "unused", data.subset)
    subset[chosen] = "train"
    return replace(data, subset=subset)


def pretraining(options: argparse.Namespace) -> Recipe:
    """How the vehicles are learned: without label smoothing, whose features are less use to a new head alone
    (S. Kornblith et al. 2020, arXiv:2010.16402)."""
    return RECIPES["cifar-quick"].changed(
        name="vehicles",
        validation=0.0,
        label_smoothing=0.0,
        learning_rate=0.2,
        epochs=10 if options.quick else 40,
        seed=options.seed,
    )


def tested(data: Pack, recipe: Recipe, source: keras.Model | None) -> Row:
    """Train as `resnetlab train` does, with the weights of `source` to begin with, and judge the result."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        info = RunInfo(model=recipe.model, class_names=data.class_names, source=data.source_name)
        run = RunFolder.create(Path(folder, "run"), recipe=recipe, info=info)
        network = build_network(recipe, len(data.class_names))
        if source:
            load_backbone(network, source)
        if train(data, recipe, run, progress=LogProgress(), network=network) == "interrupted":
            sys.exit(130)
        last, test = run.metrics()[-1], data.indices("test")
        top1 = float((Predictor(run).logits(data.images, test).argmax(axis=1) == data.labels[test]).mean())
    seconds = time.perf_counter() - began
    keras.backend.clear_session()
    return {"seed": recipe.seed, "training_top1": last["accuracy"], "top1": top1, "seconds": round(seconds, 1)}


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row["method"] for row in rows))
    axes = figure.subplots()
    for place, name in zip(range(len(names), 0, -1), names, strict=True):
        found = [row["top1"] for row in rows if row["method"] == name]
        axes.barh(place, np.mean(found), 0.6, color=plots.LIGHT_BLUE)
        axes.plot(found, [place] * len(found), "o", color=plots.BLUE, markersize=4, alpha=0.8, clip_on=False)
        axes.text(max(found) + 0.01, place, f"{100 * np.mean(found):.1f} %", va="center", fontsize=8.5)
    axes.axvline(1 / len(ANIMALS), color=plots.MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names), 0, -1), names)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlim(left=0)
    axes.set_xlabel("top-1, 6,000 test images; a dot for each seed, dotted: chance")


def points(rows: Sequence[Row], method: str, other: str) -> str:
    """By how many points the one is better than the other: mean and standard deviation over the seeds."""
    first, second = (np.array([row["top1"] for row in rows if row["method"] == name]) for name in (method, other))
    return f"{100 * (first - second).mean():+.1f} ± {100 * (first - second).std(ddof=1):.1f} points"


def claims(rows: Sequence[Row]) -> list[Claim]:
    top = {name: 100 * np.array([row["top1"] for row in rows if row["method"] == name]) for name in METHODS}

    def clear(difference: np.ndarray) -> bool:
        """Whether its mean over the seeds is more than two of its standard deviations above zero."""
        return bool(difference.mean() > 2 * difference.std(ddof=1))

    def above(better: str, worse: str) -> bool:
        return clear(top[better] - top[worse])

    def shown(*names: str) -> str:
        return "; ".join(f"{name} {top[name].mean():.1f} ± {top[name].std(ddof=1):.1f} %" for name in names)

    lost = [
        top[kept] - top[own] for kept, own in ((FINE_TUNED, TRAINING_MODE), (SMALL_FINE_TUNED, SMALL_TRAINING_MODE))
    ]
    return [
        Claim(
            "Fine-tuning beats training from scratch.", shown(FINE_TUNED, FROM_SCRATCH), above(FINE_TUNED, FROM_SCRATCH)
        ),
        Claim("Fine-tuning beats a new head alone.", shown(FINE_TUNED, HEAD), above(FINE_TUNED, HEAD)),
        Claim(
            "At the rates of frozen statistics, batch norm in training mode loses accuracy, and more with small "
            "batches.",
            f"{points(rows, TRAINING_MODE, FINE_TUNED)}; batches of 4: "
            f"{points(rows, SMALL_TRAINING_MODE, SMALL_FINE_TUNED)}",
            all(map(clear, (*lost, lost[1] - lost[0]))),
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    recipe = pretraining(options)
    data = cifar10(recipe.image_size)
    vehicles, animals = (of_classes(data, class_names) for class_names in (VEHICLES, ANIMALS))
    source, _ = trained(architecture(recipe.model), recipe, vehicles)
    rows: list[Row] = []
    for name, by in METHODS.items():
        for seed in range(options.seed, options.seed + SEEDS):
            few = some_of_training(animals, IMAGES_OF_EACH, seed)
            row = tested(few, by.changed(seed=seed), None if by is SCRATCH else source)
            say(f"{name}, seed {seed}: top-1 {100 * row['top1']:.1f} %  {row['seconds']:.0f} s")
            rows.append({"method": name} | row)
    configuration = {
        "pretraining": recipe.model_dump(mode="json", exclude_defaults=True),
        "images": {"vehicles": len(vehicles.indices("train")), "of each animal": IMAGES_OF_EACH},
        "methods": {name: by.model_dump(mode="json", exclude_defaults=True) for name, by in METHODS.items()},
    }
    keep(
        "transfer",
        "Top-1 on CIFAR-10's six animals after training on 100 images of each, from scratch and from its four vehicles",
        options,
        configuration=configuration,
        rows=rows,
        claims=claims(rows),
        draw=draw,
        size=(8, 3),
    )


if __name__ == "__main__":
    main()
