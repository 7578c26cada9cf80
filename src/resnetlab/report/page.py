"""The report of a run, or of several side by side: one HTML file that needs nothing else.

The page is `assets/page.html`, filled in by Jinja; curves are drawn by uPlot (assets/uPlot.LICENSE). Its content
security policy forbids every request.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from resnetlab.atomic import atomic_file
from resnetlab.data.near_duplicates import near_duplicates
from resnetlab.data.pack import Pack
from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.metrics import Evaluation
from resnetlab.models import architecture, summarize
from resnetlab.progress import format_duration
from resnetlab.recipes import INPUT_KEYS, RECIPES
from resnetlab.report import pictures, sections
from resnetlab.report.pictures import Overlay
from resnetlab.report.plots import PALETTE
from resnetlab.report.sections import CONFUSION_CLASSES, Cell
from resnetlab.run_folder import RunFolder

Content = dict[str, Any]


def write_report(
    folder: RunFolder,
    path: Path,
    *,
    pack: Pack | None = None,
    overlay: Overlay | None = None,
    filters: np.ndarray | None = None,
) -> None:
    """Write the report of one run.

    Args:
        pack: the run's images; without them the page has no pictures.
        overlay: draws the class activation map of a class; without it there are only the images.
        filters: weights of the first convolution (filters, size, size, 3); without them they are not shown.
    """
    _write(path, one_run(folder, pack=pack, overlay=overlay, filters=filters))


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
        "filters": None,
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


def one_run(folder: RunFolder, *, pack: Pack | None, overlay: Overlay | None, filters: np.ndarray | None) -> Content:
    info, recipe, records = folder.info(), folder.recipe(), folder.metrics()
    found = _evaluation(folder)
    near = None if pack is None else near_duplicates(pack)
    content: Content = {
        "title": f"{info.model} on {info.source}",
        "subtitle": f"{folder.path.name}: {len(info.class_names)} classes, recipe {recipe.name}, "
        f"{recipe.image_size}x{recipe.image_size} pixels, {recipe.precision}, {info.status}",
        "figures": list(_figures(folder, found)),
        "notes": [],
        "command": _command(folder),
        "charts": charts([("", records, info.best_epoch)]),
        "filters": None if filters is None else pictures.filters(filters),
        "sections": [
            *sections.data(folder, near, searched=pack is not None),
            *sections.network(folder),
            *sections.time(records),
            *sections.machine(folder),
        ],
    }
    if found is None:
        evaluate = "`resnetlab evaluate RUN` adds its results"
        if info.status == "imported":
            evaluate = "its weights were imported, so it has no images of its own"
        content["notes"].append(f"The run has not been evaluated: {evaluate}.")
        return content
    if found.subset == "validation":
        content["notes"].append(
            "These are the validation images, by which the best epoch was chosen: accuracy on new images is lower."
        )
    content |= {
        "confusion": sections.confusion(found),
        "classes": sections.classes(found),
        "calibration": sections.calibration(found),
    }
    if found.classes and len(found.classes) > CONFUSION_CLASSES:
        content["sections"].insert(0, sections.confused_pairs(found))
    if pack is None:
        content["notes"].append("The images are not where they were, so none are shown.")
    else:
        content["galleries"] = list(pictures.galleries(folder, pack, found, overlay))
        content["galleries"] += pictures.near_duplicate_pairs(folder, pack, near or [])
        content["batch"] = pictures.batch(folder, pack)
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
    words = ["resnetlab", "train", str(info.data)]
    if recipe.name in RECIPES:
        usual = RECIPES[recipe.name].model_dump(mode="json")
        words += ["--recipe", recipe.name]
        for key, value in recipe.model_dump(mode="json", exclude={"name", "description"}).items():
            replaced = info.weights and key in (*INPUT_KEYS, "eval_size")  # by what the weights had
            if value != usual[key] or (replaced and value is not None):
                words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    else:
        words += ["--recipe", str(folder.path / "recipe.json")]
    words += ["--weights", info.weights] if info.weights else []
    words += ["--allow-losses"] if info.allow_losses else []
    words += ["--deterministic"] if info.deterministic else []
    return shlex.join(words)


def charts(runs: Sequence[tuple[str, Sequence[Content], int]]) -> list[Content]:
    """Loss, top-1, learning rate and speed by epoch, of (name, records, best epoch) of each run."""
    plans = (
        ("loss", "Loss", {"loss": "training", "val_loss": "validation"}, False),
        ("top1", "Top-1", {"accuracy": "training", "val_top1": "validation"}, True),
        ("rate", "Learning rate", {"learning_rate": "learning rate"}, False),
        ("speed", "Images per second", {"images_per_second": "images/s"}, False),
    )
    epochs = list(range(1, 1 + max((len(records) for _, records, _ in runs), default=0)))
    made = []
    for key, title, names, percent in plans:
        series = []
        for number, (run, records, _) in enumerate(runs):
            for place, (field, name) in enumerate(names.items()):
                values = [record.get(field) for record in records]
                if any(value is not None for value in values):
                    colour = PALETTE[(number if len(runs) > 1 else place) % len(PALETTE)]
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
                    "best": best,
                }
            )
    return made


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
        best = info.best_record(records)
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
