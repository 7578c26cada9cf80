"""The report of a run, or of several side by side: one HTML file that needs nothing else.

The page is `assets/page.html`, filled in by Jinja; curves are drawn by uPlot (assets/uPlot.LICENSE). Its content
security policy forbids every request.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from resnetlab.atomic import atomic_file
from resnetlab.data.pack import Pack
from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.label_errors import label_errors
from resnetlab.evaluation.logits import centre_crop
from resnetlab.evaluation.metrics import Evaluation, softmax
from resnetlab.models import architecture, summarize
from resnetlab.progress import format_duration
from resnetlab.recipes import BASE, RECIPES
from resnetlab.run_folder import RunFolder

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
GALLERY = 12  # images of each kind
CONFUSION_CLASSES = 30  # with more, only the most confused pairs are listed
BATCH_IMAGES = 16
MAX_SIDE = 224  # of an embedded image, in pixels

Content = dict[str, Any]
Overlay = Callable[[np.ndarray, Sequence[int]], list[Image.Image]]


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `value` is what it is sorted by, `bar` the length of a bar after the text."""

    text: str
    value: float | str | None = None
    bar: float | None = None
    text_column: bool = False


def write_report(folder: RunFolder, path: Path, *, pack: Pack | None = None, overlay: Overlay | None = None) -> None:
    """Write the report of one run.

    Args:
        pack: the run's images; without them the page has no pictures.
        overlay: draws what the prediction of a class rests on; without it there are only the images.
    """
    _write(path, one_run(folder, pack=pack, overlay=overlay))


def write_comparison(folders: Sequence[RunFolder], path: Path) -> None:
    """Write a report of several runs: their curves together, their results, and the settings in which they differ."""
    _write(path, several_runs(folders))


def _write(path: Path, content: Content) -> None:
    defaults: Content = {
        "notes": [],
        "command": None,
        "results": None,
        "differences": None,
        "charts": [],
        "confusion": None,
        "classes": None,
        "calibration": None,
        "galleries": [],
        "batch": None,
        "sections": [],
    }
    text = _template().render(defaults | content).lstrip()
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@cache
def _template() -> Any:
    assets = files("resnetlab.report") / "assets"
    read = {name: (assets / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")}
    library, style = ((assets / name).read_text("utf-8") for name in ("uPlot.iife.min.js", "uPlot.min.css"))
    environment = Environment(autoescape=True, trim_blocks=False)
    environment.globals |= {"styles": Markup(style + read["page.css"]), "scripts": Markup(library + read["page.js"])}
    page, macro, rest = read["page.html"].partition("{%- macro")
    return environment.from_string(macro + rest + page)  # Jinja wants a macro before its use


# ------------------------------------------------------------------------------------------------------------ one run


def one_run(folder: RunFolder, *, pack: Pack | None, overlay: Overlay | None) -> Content:
    info, recipe, records = folder.info(), folder.recipe(), folder.metrics()
    found = _evaluation(folder)
    content: Content = {
        "title": f"{info.model} on {info.source}",
        "subtitle": f"{folder.path.name}: {len(info.class_names)} classes, recipe {recipe.name}, "
        f"{recipe.image_size}x{recipe.image_size} pixels, {recipe.precision}, {info.status}",
        "figures": list(_figures(folder, found)),
        "notes": [],
        "command": _command(folder),
        "charts": charts([("", records, info.best_epoch)]),
        "sections": [*_data(folder), *_network(folder), *_time(records), *_machine(folder)],
    }
    if found is None:
        content["notes"].append("The run has not been evaluated: `resnetlab evaluate` adds its results.")
        return content
    if found.subset == "validation":
        content["notes"].append(
            "These are the validation images, by which the best epoch was chosen: accuracy on new images is lower."
        )
    content |= {"confusion": _confusion(found), "classes": _classes(found), "calibration": _calibration(found)}
    if found.classes and len(found.classes) > CONFUSION_CLASSES:
        content["sections"].insert(0, _confused_pairs(found))
    if pack is None:
        content["notes"].append("The images are not where they were, so none are shown.")
    else:
        content["galleries"] = list(_galleries(folder, pack, found, overlay))
        content["batch"] = _batch(folder, pack)
    return content


def _evaluation(folder: RunFolder) -> Evaluation | None:
    if not (folder.path / "evaluation.json").exists():
        return None
    return Evaluation.from_json(folder.read_json("evaluation.json"))


def _figures(folder: RunFolder, found: Evaluation | None) -> Iterable[tuple[str, str]]:
    info, records = folder.info(), folder.metrics()
    if found is not None:
        low, high = found.top1_interval
        yield f"{found.top1:.1%}", f"top-1 on {found.n:,} {found.subset} images (95 %: {low:.1%} to {high:.1%})"
        if found.top1_with_flips is not None:
            yield f"{found.top1_with_flips:.1%}", "with test-time flips"
        yield f"{found.calibration_error:.1%}", "calibration error"
    if records:
        yield f"{len(records)}", f"epochs, the best is {info.best_epoch}"
        yield format_duration(sum(record["seconds"] for record in records)), "training"
    yield f"{summarize(architecture(info.model), None, len(info.class_names)).parameters / 1e6:.1f} M", "parameters"


def _command(folder: RunFolder) -> str | None:
    """The command that trains it again, if it was not interrupted and resumed with other settings."""
    info, recipe = folder.info(), folder.recipe()
    if info.data is None:
        return None
    usual = RECIPES.get(recipe.name, BASE).model_dump(mode="json")
    chosen = recipe.model_dump(mode="json", exclude={"name", "description"})
    words = ["resnetlab", "train", str(info.data)]
    words += ["--recipe", recipe.name] if recipe.name in RECIPES else []
    words += ["--weights", info.weights] if info.weights else []
    for key, value in chosen.items():
        if value != usual[key]:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def charts(runs: Sequence[tuple[str, Sequence[Content], int]]) -> list[Content]:
    """Loss, top-1, learning rate and speed by epoch, of (name, records, best epoch) of each run."""
    plans = (
        ("loss", "Loss", {"loss": "training", "val_loss": "validation"}, False, False),
        ("top1", "Top-1", {"accuracy": "training", "val_top1": "validation"}, True, False),
        ("rate", "Learning rate", {"learning_rate": "learning rate"}, False, False),
        ("speed", "Images per second", {"images_per_second": "images/s"}, False, False),
    )
    epochs = list(range(1, 1 + max((len(records) for _, records, _ in runs), default=0)))
    made = []
    for key, title, names, percent, logarithmic in plans:
        series = []
        for number, (run, records, _) in enumerate(runs):
            for place, (field, name) in enumerate(names.items()):
                values = [record.get(field) for record in records]
                if any(value is not None for value in values):
                    colour = COLOURS[(number if len(runs) > 1 else place) % len(COLOURS)]
                    series.append(
                        {
                            "name": f"{run} {name}".strip() if len(names) > 1 or not run else run,
                            "values": values + [None] * (len(epochs) - len(values)),
                            "colour": colour,
                            "dashed": len(names) > 1 and place == 0,
                        }
                    )
        if series:
            best = [best for _, _, best in runs if best] if len(runs) == 1 else []
            made.append(
                {
                    "id": f"chart-{key}",
                    "title": title + (" (training dashed)" if len(names) > 1 else ""),
                    "epochs": epochs,
                    "series": series,
                    "percent": percent,
                    "logarithmic": logarithmic,
                    "best": best,
                }
            )
    return made


def _confusion(found: Evaluation) -> Content | None:
    names = found.class_names
    if len(names) > CONFUSION_CLASSES:
        return None
    rows = []
    for name, counts in zip(names, found.confusion.tolist(), strict=True):
        total = max(sum(counts), 1)
        rows.append((name, [(count, f"{0.75 * count / total:.3f}") for count in counts]))
    return {"columns": names, "rows": rows, "note": "The shade is the share of the row."}


def _confused_pairs(found: Evaluation) -> Content:
    rows = [
        [Cell(pair.true), Cell(pair.predicted), Cell(f"{pair.count:,} of {pair.support:,}")]
        for pair in found.most_confused(20)
    ]
    table = {"head": ["true class", "taken for", "images"], "rows": rows, "sortable": False}
    return {"title": "Most often mistaken", "lines": [], "tables": [table]}


def _classes(found: Evaluation) -> Content:
    def share(value: float | None) -> Cell:
        return Cell("–", "") if value is None else Cell(f"{value:.1%}", value)

    rows = [
        [
            Cell(score.name, score.name),
            Cell(f"{score.support:,}", score.support),
            share(score.precision),
            share(score.recall),
            share(score.f1),
        ]
        for score in found.classes
    ]
    return {"head": ["class", "images", "precision", "recall", "F1"], "rows": rows, "sortable": True}


def _calibration(found: Evaluation) -> Content:
    largest = max(b.count for b in found.bins)
    rows = [
        [
            Cell(f"{b.low:.0%} to {b.high:.0%}"),
            Cell(f"{b.count:,}", bar=round(6 * b.count / largest, 2)),
            Cell(f"{b.confidence:.1%}"),
            Cell(f"{b.accuracy:.1%}"),
            Cell(f"{100 * (b.accuracy - b.confidence):+.1f}"),
        ]
        for b in found.bins
        if b.confidence is not None and b.accuracy is not None
    ]
    excess = found.mean_confidence - found.top1
    note = (
        f"Mean confidence {found.mean_confidence:.1%}, accuracy {found.top1:.1%}: the network is "
        f"{'over' if excess > 0 else 'under'}-confident by {100 * abs(excess):.1f} points on average."
    )
    head = ["predicted probability", "images", "mean probability", "accuracy", "difference"]
    return {"head": head, "rows": rows, "sortable": False, "note": note}


# --------------------------------------------------------------------------------------------------------- pictures


def data_uri(image: Image.Image) -> str:
    """An image for an HTML page: PNG where it is small, otherwise JPEG of at most MAX_SIDE pixels."""
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    content = io.BytesIO()
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.save(content, format=kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _galleries(folder: RunFolder, pack: Pack, found: Evaluation, overlay: Overlay | None) -> Iterable[Content]:
    """The most confident mistakes, the least confident correct predictions, and suspect labels."""
    with np.load(folder.path / "predictions.npz") as file:
        logits, labels, indices = file["logits"], file["labels"], file["indices"]
    probabilities = softmax(logits)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    suspects = label_errors(logits, labels)
    confident = sum(each.confident for each in suspects)
    kinds = (
        ("The most confident mistakes", "", wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY]),
        (
            "The least confident correct predictions",
            "",
            right[np.argsort(confidence[right], kind="stable")][:GALLERY],
        ),
        (
            "Labels that may be wrong",
            f"{confident:,} of these {len(labels):,} images have a label that the network, which was not trained on "
            "them, confidently contradicts (Northcutt 2019); below are the images with the least probable labels. Of a "
            "weak network most are its own mistakes. ",
            np.array([each.index for each in suspects[:GALLERY]], int),
        ),
    )
    size = folder.recipe().test_size
    for title, about, rows in kinds:
        if not len(rows):
            continue
        images = np.ascontiguousarray(centre_crop(pack.images[indices[rows]], size))
        overlays = [None] * len(rows) if overlay is None else overlay(images, predicted[rows].tolist())
        entries = [
            {
                "name": pack.names[indices[row]],
                "image": data_uri(Image.fromarray(image)),
                "map": None if drawn is None else data_uri(drawn),
                "small": size <= 64,
                "alt": found.class_names[labels[row]],
                "predicted": found.class_names[predicted[row]],
                "caption": f"{found.class_names[predicted[row]]} {confidence[row]:.1%}"
                + ("" if predicted[row] == labels[row] else f", is {found.class_names[labels[row]]}"),
            }
            for row, image, drawn in zip(rows, images, overlays, strict=True)
        ]
        note = f"{about}Click on an image to enlarge it."
        if overlay is not None:
            note += (
                " Beside each: where the predicted class's evidence is (Grad-CAM of the last stage, yellow is most)."
            )
        yield {"title": title, "note": note, "entries": entries}


def _batch(folder: RunFolder, pack: Pack) -> Content | None:
    """The first images of training after augmentation."""
    import keras

    from resnetlab.data.augment import Augment
    from resnetlab.training.trainer import make_stream

    recipe = folder.recipe()
    if not len(pack.indices("train")):
        return None
    stream = make_stream(recipe.changed(batch_size=BATCH_IMAGES), pack)
    inputs = {name: keras.ops.convert_to_tensor(array) for name, array in stream.batch(0)[0].items()}
    augmented = Augment(stream.augmentation, recipe.training_side(1))(inputs)
    shown = np.clip(keras.ops.convert_to_numpy(augmented), 0, 255).astype(np.uint8)
    side = shown.shape[1]
    return {
        "images": [data_uri(Image.fromarray(image)) for image in shown],
        "small": side <= 64,
        "note": f"Training images, augmented as the recipe says, at {side}x{side} pixels.",
    }


# --------------------------------------------------------------------------------------------- data, network, machine


def _data(folder: RunFolder) -> Iterable[Content]:
    if not (folder.path / "audit.json").exists():
        return
    audit, subsets = folder.read_json("audit.json"), Counter(folder.split().values())
    counts = audit["classes"]
    largest, smallest = max(counts.values()), min(counts.values())
    lines = [
        f"{audit['usable']:,} usable images of {audit['found']:,}; median size "
        f"{audit['median_size'][0]}x{audit['median_size'][1]} pixels. Different images of each subset: "
        + ", ".join(f"{subsets[name]:,} {name}" for name in ("train", "validation", "test"))
        + ".",
    ]
    if largest > smallest:
        lines.append(f"The largest class has {largest / max(smallest, 1):.1f} times the images of the smallest.")
    if audit["duplicates"]:
        copies = sum(len(group) - 1 for group in audit["duplicates"])
        lines.append(f"{copies:,} exact copies of other images; copies are in the same subset.")
    lines += [f"{name}: {loss}" for name, loss in audit["losses"].items()]
    widest = max(counts.values())
    rows = [[Cell(name, name), Cell(f"{n:,}", n, bar=round(10 * n / widest, 2))] for name, n in counts.items()]
    tables = [{"head": ["class", "images"], "rows": rows, "sortable": True}]
    reasons = Counter(row["problem"].partition(" (")[0] for row in audit["set_aside"])
    if reasons:
        aside = [[Cell(reason), Cell(f"{n:,}")] for reason, n in reasons.most_common()]
        tables.append({"head": ["set aside because", "images"], "rows": aside, "sortable": False})
    yield {"title": "Data", "lines": lines, "tables": tables}


def _network(folder: RunFolder) -> Iterable[Content]:
    info, recipe = folder.info(), folder.recipe()
    summary = summarize(architecture(info.model), recipe.test_size, len(info.class_names))
    rows = [
        [Cell(stage.name), Cell(str(stage.blocks)), Cell(f"{stage.size}x{stage.size}"), Cell(f"{stage.channels:,}")]
        for stage in summary.stages
    ]
    lines = [
        f"{summary.parameters:,} parameters, {summary.multiply_adds / 1e9:.3f} G multiply-adds for an image, "
        f"{summary.depth} layers."
    ]
    table = {"head": ["stage", "blocks", "output", "channels"], "rows": rows, "sortable": False}
    yield {"title": "Network", "lines": lines, "tables": [table]}


def _time(records: Sequence[Content]) -> Iterable[Content]:
    if not records or "validation_seconds" not in records[0]:
        return
    training = sum(record["seconds"] for record in records)
    validation = sum(record["validation_seconds"] for record in records)
    loading = sum(record["loading_seconds"] for record in records)
    rows = [
        [Cell("training steps"), Cell(format_duration(training))],
        [Cell("validation and saving the best weights"), Cell(format_duration(validation))],
        [Cell("of the training steps: preparing batches, in the background"), Cell(format_duration(loading))],
    ]
    yield {"title": "Time", "lines": [], "tables": [{"head": [], "rows": rows, "sortable": False}]}


def _machine(folder: RunFolder) -> Iterable[Content]:
    info, environment = folder.info(), folder.read_json("environment.json")
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    rows = [
        ("computed on", f"{info.device_name} ({info.device}), {info.backend}"),
        ("processor", f"{environment.get('cpu')}, {environment.get('cores')} cores"),
        ("software", f"Python {environment.get('python')}, {versions}"),
        ("commit", info.commit or "not a checkout"),
        ("run folder", str(folder.path)),
    ]
    cells = [[Cell(name), Cell(text, text_column=True)] for name, text in rows]
    yield {"title": "Machine", "lines": [], "tables": [{"head": [], "rows": cells, "sortable": False}]}


# ------------------------------------------------------------------------------------------------------- several runs


def several_runs(folders: Sequence[RunFolder]) -> Content:
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise ResnetlabError("Received the same run twice, expected different ones.")
    names = _short_names([folder.path for folder in folders])
    rows = []
    for name, folder in zip(names, folders, strict=True):
        info, records, found = folder.info(), folder.metrics(), _evaluation(folder)
        top1 = Cell("–", "")
        if found is not None:
            low, high = found.top1_interval
            top1 = Cell(f"{found.top1:.1%} ({low:.1%} to {high:.1%}, {found.n:,} {found.subset})", found.top1)
        best = records[info.best_epoch - 1] if 0 < info.best_epoch <= len(records) else {}
        validation = best.get("val_top1")
        seconds = sum(record["seconds"] for record in records)
        rows.append(
            [
                Cell(name, name),
                Cell(info.status, info.status),
                Cell(f"{len(records)}", len(records)),
                Cell("–", "") if validation is None else Cell(f"{validation:.1%}", validation),
                top1,
                Cell(format_duration(seconds), seconds),
            ]
        )
    recipes = [folder.recipe().model_dump(mode="json") | {"data": folder.info().source} for folder in folders]
    keys = [key for key in recipes[0] if len({repr(recipe[key]) for recipe in recipes}) > 1]
    differences = [[Cell(key), *(Cell(str(recipe[key])) for recipe in recipes)] for key in keys if key != "description"]
    head = ["run", "status", "epochs", "validation", "top-1 (95 % interval)", "training"]
    runs = [(name, f.metrics(), f.info().best_epoch) for name, f in zip(names, folders, strict=True)]
    return {
        "title": f"{len(folders)} runs",
        "subtitle": ", ".join(names),
        "figures": [],
        "results": {"head": head, "rows": rows, "sortable": True},
        "differences": {"head": ["setting", *names], "rows": differences, "sortable": False} if differences else None,
        "charts": charts(runs),
    }


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, with their parents where they are equal."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
