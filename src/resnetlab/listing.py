"""Lists of the runs in a folder, and of the architectures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

from resnetlab.errors import ResnetlabError
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import VARIANTS, architecture
from resnetlab.run_folder import RunFolder


@dataclass(frozen=True)
class RunSummary:
    """A run folder in a few words.

    Attributes:
        path: of the folder.
        model, data, recipe: names.
        status: "started", "interrupted", "finished", "diverged" or "imported".
        epochs: number of finished epochs.
        validation_top1: of the best epoch; None without validation images.
        subset, top1: of the last evaluation: "test" or "validation", and the accuracy; None without one.
        when: start of the run, in local time.
    """

    path: Path
    model: str
    data: str
    recipe: str
    status: str
    epochs: int
    validation_top1: float | None
    subset: str | None
    top1: float | None
    when: str


def list_runs(folder: str | PathLike[str] = "runs") -> list[RunSummary]:
    """The runs in a folder and below it, the newest first. A folder whose run.json cannot be read is left out."""
    found = []
    for file in Path(folder).glob("**/run.json"):
        try:
            run = RunFolder.open(file.parent)
            info, recipe, records = run.info(), run.recipe(), run.metrics()
            began = (run.path / "environment.json").stat().st_mtime
        except (ResnetlabError, OSError):
            continue
        best = info.best_record(records)
        evaluated = _last_evaluation(run)
        summary = RunSummary(
            path=run.path,
            model=info.model,
            data=info.source,
            recipe=recipe.name,
            status=info.status,
            epochs=len(records),
            validation_top1=best.get("val_top1"),
            subset=evaluated.get("subset"),
            top1=evaluated.get("top1"),
            when=f"{datetime.fromtimestamp(began):%Y-%m-%d %H:%M}",
        )
        found.append((began, str(run.path), summary))
    return [summary for *_, summary in sorted(found, key=lambda each: each[:2], reverse=True)]


def _last_evaluation(run: RunFolder) -> dict[str, Any]:
    """Subset and top-1 of evaluation.json; nothing where there is none, or it is damaged."""
    try:
        found = run.read_json("evaluation.json")
        return {"subset": str(found["subset"]), "top1": float(found["top1"])}
    except (ResnetlabError, OSError, KeyError, TypeError, ValueError):
        return {}


@dataclass(frozen=True)
class Variant:
    """An architecture and its size.

    Attributes:
        name: model name for `build` and `train`.
        paper: paper or project that introduced it.
        parameters: as its paper or reference counts them.
        multiply_adds: of one forward pass at `image_size`.
        image_size: image side in pixels that `multiply_adds` refers to.
        depth: number of layers with weights on the longest path.
        num_classes: number of classes that `parameters` refers to.
        stages: name, number of blocks, side and channels of each end point.
    """

    name: str
    paper: str
    parameters: int
    multiply_adds: int
    image_size: int
    depth: int
    num_classes: int
    stages: tuple[tuple[str, int, int, int], ...]


def variants(name: str | None = None) -> list[Variant]:
    """List all architectures, or only the one called `name`. Imports no Keras.

    >>> rl.variants("resnet50")[0].parameters
    25557032
    """
    found = []
    for arch in [architecture(name)] if name else VARIANTS.values():
        summary = summarize(arch)
        parameters = summary.parameters_and_statistics if arch.counts_statistics else summary.parameters
        found.append(
            Variant(
                name=arch.name,
                paper=arch.paper,
                parameters=parameters,
                multiply_adds=summary.multiply_adds,
                image_size=arch.reference_size,
                depth=summary.depth,
                num_classes=arch.num_classes,
                stages=tuple(summary.stages),
            )
        )
    return found
