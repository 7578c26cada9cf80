"""Accuracy: what a recipe reaches on CIFAR-10's test images, over seeds, and how long that takes.

Claim   The recipes cifar-90, cifar-94 and cifar-96 reach the accuracy that they are named after, without test-time
        augmentation; cifar-paper-quick reaches the accuracy of He et al. 2015, table 6, in fewer epochs.
Source  K. He et al. 2015, arXiv:1512.03385, table 6; K. Jordan 2024, arXiv:2404.00498 (94 % in seconds on a GPU).
Cost    Estimated, on two CPU cores with bfloat16, for each seed: cifar-90 6 minutes, cifar-94 25 minutes, cifar-96 4
        hours, cifar-paper-quick one hour for ResNet-20. --quick: two epochs, to see that it works; nothing is kept.

--without leaves one ingredient out: without the whitening stem, feature maps are a pixel larger and there is one more
batch norm; SGD in place of Muon has a rate that was not tuned. Such networks have no name, so only this program opens
their runs.

Recipes were tuned on a tenth of the training images, never on the test images: with --set validation=0.1, the accuracy
is that of these images after the last epoch, and the test images are not looked at.
Runs are ordinary run folders: an interrupted one is resumed, a finished one is not repeated.

    python studies/accuracy.py cifar-94 --seeds 5
    python studies/accuracy.py cifar-94 --seeds 2 --without muon
    python studies/accuracy.py cifar-paper-quick --model resnet20 --seeds 3
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment import Row, arguments, finished_run, keras, say, training_seconds, with_kept_rows

import resnetlab as rl
from resnetlab import backend, results
from resnetlab.comparison.measure import matmul_gflops
from resnetlab.models import VARIANTS, architecture, summarize
from resnetlab.recipes import RECIPES, Recipe, parse_settings

# What an ablation changes: fields of the recipe, and of the architecture.
WITHOUT: dict[str, tuple[Row, Row]] = {
    "muon": ({"optimizer": "sgd", "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "warmup": 1}, {}),
    "whitening": ({}, {"stem": "cifar", "stem_width": 24}),
    "shortcuts": ({}, {"shortcut": "none"}),
    "alternating-flips": ({"flip": True}, {}),
    "reflection": ({"crop_border": "grey"}, {}),
    "label-smoothing": ({"label_smoothing": 0.0}, {}),
    "progressive-resizing": ({"progressive": ()}, {}),
    "bfloat16": ({"precision": "float32"}, {}),
}


def choose(options: Any) -> tuple[str, Recipe]:
    """The name of the result, and the recipe."""
    recipe = RECIPES[options.recipe]
    name = options.recipe
    if options.model:
        recipe, name = recipe.changed(model=options.model), f"{name}-{options.model}"
    if options.without:
        fields, changes = WITHOUT[options.without]
        arch = architecture(recipe.model)
        as_it_is = all(getattr(recipe, key) == value for key, value in fields.items())
        needed = {"muon": recipe.optimizer == "muon", "whitening": arch.stem == "whitening"}
        if not needed.get(options.without, not as_it_is or bool(changes)):
            sys.exit(f"{recipe.name} with {recipe.model} has no {options.without} to leave out.")
        recipe, name = recipe.changed(**fields), f"{name}-without-{options.without}"
        if changes:
            arch = replace(arch, **changes, name=f"{recipe.model}-without-{options.without}")
            VARIANTS[arch.name] = arch
            recipe = recipe.changed(model=arch.name)
    if options.set:
        recipe, name = recipe.changed(**parse_settings(options.set)), f"{name}-{'-'.join(options.set)}"
    return name, recipe


def floating_point_operations(recipe: Recipe, images: int) -> float:
    """Of a whole training."""
    arch = architecture(recipe.model)
    sides = [recipe.training_side(epoch) for epoch in range(1, recipe.epochs + 1)]
    return sum(summarize(arch, side, 10).training_operations * images for side in sides)


def judged(run: rl.Run) -> Row:
    """The accuracy on the test images; in tuning, on the validation images."""
    if run.recipe.validation:
        last = run.history[-1]
        return {"subset": "validation", "top1": last["val_top1"], "loss": round(last["val_loss"], 5)}
    found = run.evaluate(flips=True, progress=None)
    return {
        "subset": found.subset,
        "n": found.n,
        "top1": found.top1,
        "top1_with_flips": found.top1_with_flips,
        "loss": round(found.loss, 5),
    }


def measure(run: rl.Run) -> Row:
    """A row of the result: accuracy, time, and the share of the matrix-product rate."""
    epochs = run.history
    seconds = training_seconds(run)
    recipe, info = run.recipe, run.info
    images = epochs[0]["step"] * recipe.batch_size
    rate = floating_point_operations(recipe, images) / seconds / 1e9
    product = matmul_gflops(info.device or "cpu", recipe.precision)
    return {
        "seed": recipe.seed,
        "precision": recipe.precision,
        **judged(run),
        "seconds": round(seconds, 1),
        "images_per_second": round(statistics.median(epoch["images_per_second"] for epoch in epochs), 1),
        "gflops": round(rate, 1),
        "share_of_matrix_product": round(rate / product, 4),
        "device": info.device_name,
        "cores": json.loads((run.path / "environment.json").read_text("utf-8"))["cores"],
        "commit": info.commit,
        "epochs": [
            {key: round(epoch[key], 5) for key in ("loss", "accuracy", "seconds", "val_top1") if key in epoch}
            for epoch in epochs
        ],
    }


def keep(name: str, recipe: Recipe, rows: Sequence[Row], out: Path) -> None:
    """Write the result, after each run, so that none is lost; other seeds that the file has of the recipe stay."""
    device = backend.gpus()[0] if backend.gpus() else None
    arch = architecture(recipe.model)
    configuration = recipe.model_dump(mode="json", exclude={"seed"}) | {
        "parameters": summarize(arch).parameters,
        "backend": keras.backend.backend(),
    }
    what = f"CIFAR-10: top-1 of {recipe.model} by recipe {recipe.name}, and training time, by seed"
    path = out / f"accuracy-{name}.json"
    rows = with_kept_rows(rows, path, configuration, "seed")
    results.write(path, results.result(what, configuration=configuration, rows=rows, gpu=device))


def main() -> None:
    def add(parser: Any) -> None:
        known = [name for name in RECIPES if name.startswith("cifar") and not RECIPES[name].validation]
        parser.add_argument("recipe", choices=known)
        parser.add_argument("--model", help="another network than the recipe's")
        parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
        parser.add_argument("--without", choices=WITHOUT, help="leave one ingredient out")
        parser.add_argument("--set", action="append", metavar="KEY=VALUE", default=[], help="change the recipe")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")

    options = arguments(__doc__ or "", add)
    name, recipe = choose(options)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run = finished_run(
                "cifar10", recipe.changed(seed=options.seed, epochs=2, warmup=0, progressive=()), Path(folder, "run")
            )
            say(str({key: value for key, value in measure(run).items() if key != "epochs"}))
        return
    rows = []
    for seed in range(options.seed, options.seed + options.seeds):
        run = finished_run("cifar10", recipe.changed(seed=seed), options.runs / f"accuracy-{name}-seed{seed}")
        rows.append(measure(run))
        keep(name, recipe, rows, options.out)
        keras.backend.clear_session()
    top1 = [row["top1"] for row in rows]
    spread = f" ± {100 * statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    print(f"{name}: top-1 {100 * statistics.fmean(top1):.2f}{spread} % of {len(top1)} seeds")
    print(f"Written to {options.out / f'accuracy-{name}.json'}")


if __name__ == "__main__":
    main()
