"""Label errors: images that a network, which was not trained on them, confidently contradicts.

Claim   The labels that out-of-fold predictions make least probable are mostly wrong ones: of labels flipped at random,
        this ranking has a far higher average precision than chance. The predictions of the network that was trained on
        the wrong labels find fewer of them, as it fits them. Our ranking is as good as the package cleanlab's own.
Source  C. Northcutt et al. 2019, arXiv:1911.00068 (confident learning); J. Kuan, J. Mueller 2022, "Model-agnostic label
        quality scoring to detect real-world label errors" (self-confidence as a score). cleanlab is used if it is
        installed: pip install cleanlab.
Cost    ResNet-20 on CIFAR-10's 50,000 training images, 5 % of whose labels are flipped, in 5 folds of 24 epochs: for a
        GPU, half an hour. --quick: 20,000 images, 2 folds, 12 epochs: by the speed of such training, ten minutes on two
        CPU cores that have nothing else to do.

    python studies/label_errors.py [--quick]
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiment import Claim, Row, arguments, cifar10, keep, keras, say
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from resnetlab.data.pack import Pack
from resnetlab.evaluation.label_errors import label_errors
from resnetlab.evaluation.metrics import softmax
from resnetlab.inference.predictor import Predictor
from resnetlab.models.from_recipe import build_network
from resnetlab.progress import LogProgress
from resnetlab.recipes import RECIPES, Recipe
from resnetlab.report import plots
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.training.trainer import train
from resnetlab.training.transfer import load_backbone

FLIPPED = 0.05
RESAMPLES = 200  # of the bootstrap
OURS, IN_SAMPLE, CHANCE, CLEANLAB = (
    "resnetlab, out of fold",
    "loss of the network trained on the labels",
    "chance",
    "cleanlab",
)


def flip(labels: np.ndarray, rng: np.random.Generator, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels, of which a fraction FLIPPED is another class, uniformly drawn; and which ones."""
    flipped = np.zeros(len(labels), bool)
    flipped[rng.permutation(len(labels))[: round(FLIPPED * len(labels))]] = True
    others = (labels + rng.integers(1, num_classes, len(labels))) % num_classes
    return np.where(flipped, others, labels), flipped


def out_of_fold(
    data: Pack, chosen: np.ndarray, recipe: Recipe, folds: int, weights: keras.Model | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, classes) of the images `chosen` (n,): of the network of the folds without each, and of one with it.

    Each image is in one fold, drawn by the recipe's seed; a network is trained on the images of the other folds.
    """
    fold = np.random.default_rng([recipe.seed, 1]).permutation(np.arange(len(chosen)) % folds)
    without, including = (np.empty((len(chosen), len(data.class_names)), np.float32) for _ in range(2))
    for held_out in range(folds):
        subset = np.full(len(data.labels), "unused")
        subset[chosen[fold != held_out]] = "train"
        logits = _logits(replace(data, subset=subset), chosen, recipe, weights)
        without[fold == held_out] = logits[fold == held_out]
        # With three folds and more, several networks were trained on an image: the next fold's is kept.
        seen = fold == (held_out + 1) % folds
        including[seen] = logits[seen]
        right = (logits.argmax(axis=1) == data.labels[chosen])[fold == held_out].mean()
        say(f"fold {held_out + 1} of {folds}: predicts {right:.1%} of the labels that it was not trained on")
    return without, including


def _logits(data: Pack, chosen: np.ndarray, recipe: Recipe, weights: keras.Model | None) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        info = RunInfo(model=recipe.model, class_names=data.class_names, source=data.source_name)
        run = RunFolder.create(Path(folder, "run"), recipe=recipe, info=info)
        network = build_network(recipe, len(data.class_names))
        if weights is not None:
            load_backbone(network, weights)
        if train(data, recipe, run, progress=LogProgress(), network=network) == "interrupted":
            sys.exit(130)
        logits = Predictor(run).logits(data.images, chosen)
    keras.backend.clear_session()
    return logits


def rankings(without: np.ndarray, including: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """How suspect each label is, by each method: the higher, the more."""
    rows, found = np.arange(len(labels)), label_errors(without, labels)
    # Labels that the network predicts are not suspect: they are all below the others, the least probable ones first.
    order = [each.index for each in found]
    suspicion = -softmax(without)[rows, labels] - 1
    suspicion[order] = -np.array([each.score for each in found])
    confident = -softmax(without)[rows, labels] - 1
    certain = [each for each in found if each.confident]
    confident[[each.index for each in certain]] = [-each.score for each in certain]
    scores = {
        OURS: suspicion,
        "confident errors first, out of fold": confident,
        IN_SAMPLE: -softmax(including)[rows, labels],  # in the order of the loss
        CHANCE: np.random.default_rng([seed, 2]).random(len(labels)),
    }
    return scores | _by_cleanlab(softmax(without), labels)


def _by_cleanlab(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Its scores, and its selection of errors ranked by self-confidence; nothing if it is not installed."""
    if not importlib.util.find_spec("cleanlab"):
        say("cleanlab is not installed (pip install cleanlab), so it is not compared")
        return {}
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    scores = {
        f"{CLEANLAB}, {method.replace('_', ' ')}": -get_label_quality_scores(labels, probabilities, method=method)
        for method in ("self_confidence", "normalized_margin")
    }
    issues = find_label_issues(labels, probabilities, n_jobs=1)  # as it comes: prune by noise rate
    own = probabilities[np.arange(len(labels)), labels]
    return scores | {f"{CLEANLAB}, find_label_issues": np.where(issues, 1 - own, -own)}


def measure(scores: Mapping[str, np.ndarray], flipped: np.ndarray, seed: int) -> list[Row]:
    """A row for each ranking: average precision with a 95 % bootstrap interval, precision of the first so many."""
    rows = []
    for name, suspicion in scores.items():
        rng = np.random.default_rng([seed, 3])  # the same images for each ranking
        draws = (rng.integers(0, len(flipped), len(flipped)) for _ in range(RESAMPLES))
        again = [average_precision_score(flipped[drawn], suspicion[drawn]) for drawn in draws]
        low, high = np.quantile(again, (0.025, 0.975))
        first = np.argsort(-suspicion, kind="stable")[: flipped.sum()]
        rows.append(
            {
                "ranking": name,
                "average_precision": round(float(average_precision_score(flipped, suspicion)), 4),
                "interval": [round(float(low), 4), round(float(high), 4)],
                "precision_at_number_flipped": round(float(flipped[first].mean()), 4),
                "images": len(flipped),
                "flipped": int(flipped.sum()),
            }
        )
    return rows


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for place, row in zip(range(len(rows), 0, -1), rows, strict=True):
        low, high = row["interval"]
        colour = plots.BLUE if row["ranking"] == OURS else plots.LIGHT_BLUE
        axes.barh(place, row["average_precision"], 0.6, color=colour)
        axes.plot([low, high], [place, place], color=plots.MUTED, linewidth=1.5)
        axes.text(high + 0.01, place, f"{row['average_precision']:.3f}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(rows), 0, -1), [row["ranking"] for row in rows])
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"average precision, {rows[0]['flipped']:,} flipped labels among {rows[0]['images']:,}")


def claims(rows: Sequence[Row]) -> list[Claim]:
    found = {row["ranking"]: row for row in rows}
    precision = {name: row["average_precision"] for name, row in found.items()}

    def shown(*names: str) -> str:
        return "; ".join(f"{name} {precision[name]:.3f}" for name in names)

    low, high = found[OURS]["interval"]
    made = [
        Claim(
            "Of the labels ranked first, most are wrong: an average precision of 0.5 or more, where chance has 0.05.",
            f"{shown(OURS)} (95 % interval {low:.3f} to {high:.3f}); {shown(CHANCE)}",
            low >= 0.5,
        ),
        Claim(
            "The network that was trained on the wrong labels finds fewer of them.",
            shown(OURS, IN_SAMPLE),
            low > found[IN_SAMPLE]["interval"][1],
        ),
    ]
    theirs = [name for name in precision if name.startswith(CLEANLAB)]
    if theirs:
        best = max(theirs, key=precision.__getitem__)
        text = "Our ranking is as good as the best of cleanlab's (to 0.01)."
        made.append(Claim(text, shown(OURS, *theirs), precision[OURS] >= precision[best] - 0.01))
    return made


def main() -> None:
    options = arguments(__doc__ or "")
    folds, epochs = (2, 12) if options.quick else (5, 24)
    recipe = RECIPES["cifar-quick"].changed(validation=0.0, epochs=epochs, precision="auto", seed=options.seed)
    data = cifar10(recipe.image_size)
    rng = np.random.default_rng(options.seed)
    chosen = np.sort(rng.permutation(data.indices("train"))[: 20_000 if options.quick else None])
    labels, flipped = flip(data.labels[chosen], rng, len(data.class_names))
    wrong = data.labels.copy()
    wrong[chosen] = labels
    without, including = out_of_fold(replace(data, labels=wrong), chosen, recipe, folds)
    accuracy = float((without.argmax(axis=1) == data.labels[chosen]).mean())
    say(f"out of fold, {accuracy:.1%} of the true classes are predicted")
    rows = measure(rankings(without, including, labels, options.seed), flipped, options.seed)
    keep(
        "label-errors",
        f"Average precision of rankings of {len(chosen):,} CIFAR-10 training labels, {FLIPPED:.0%} of them flipped",
        options,
        configuration={
            "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
            "image_size": recipe.image_size,
            "epochs": epochs,
            "folds": folds,
            "flipped": FLIPPED,
            "accuracy_out_of_fold": round(accuracy, 4),
        },
        rows=rows,
        claims=claims(rows),
        draw=draw,
        size=(8, 3),
    )


if __name__ == "__main__":
    main()
