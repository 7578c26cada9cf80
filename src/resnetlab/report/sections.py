"""Sections of a report: tables of results by class, of the data, the network, the time and the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resnetlab.data.near_duplicates import CORRELATION, THUMBNAIL, NearDuplicate
from resnetlab.evaluation.metrics import Evaluation
from resnetlab.models import architecture, summarize
from resnetlab.progress import format_duration
from resnetlab.run_folder import RunFolder

CONFUSION_CLASSES = 30  # with more, only the most confused pairs are listed
LOADING_LIMITS = 0.9  # batches that take this fraction of the time of the steps to prepare are waited for
SUBSETS = ("train", "validation", "test")

Content = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `value` is what it is sorted by, `bar` the length of a bar after the text, up to 1."""

    text: str
    value: float | str | None = None
    bar: float | None = None
    text_column: bool = False


def confusion(found: Evaluation) -> Content | None:
    names = found.class_names
    if len(names) > CONFUSION_CLASSES:
        return None
    rows = []
    for name, counts in zip(names, found.confusion.tolist(), strict=True):
        total = max(sum(counts), 1)
        rows.append((name, [(count, f"{0.75 * count / total:.3f}") for count in counts]))
    return {"columns": names, "rows": rows, "note": "Shading: fraction of the row."}


def confused_pairs(found: Evaluation) -> Content:
    rows = [
        [Cell(pair.true), Cell(pair.predicted), Cell(f"{pair.count:,} of {pair.support:,}")]
        for pair in found.most_confused(20)
    ]
    table = {"head": ["true class", "predicted as", "images"], "rows": rows, "sortable": False}
    return {"title": "Most frequent confusions", "lines": [], "tables": [table]}


def classes(found: Evaluation) -> Content:
    def fraction(value: float | None) -> Cell:
        return Cell("–", "") if value is None else Cell(f"{value:.1%}", value)

    rows = [
        [
            Cell(score.name, score.name),
            Cell(f"{score.support:,}", score.support),
            fraction(score.precision),
            fraction(score.recall),
            fraction(score.f1),
        ]
        for score in found.classes
    ]
    return {"head": ["class", "images", "precision", "recall", "F1"], "rows": rows, "sortable": True}


def calibration(found: Evaluation) -> Content:
    largest = max(b.count for b in found.bins)
    rows = [
        [
            Cell(f"{b.low:.0%} to {b.high:.0%}"),
            Cell(f"{b.count:,}", bar=b.count / largest),
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


def data(folder: RunFolder, near: Sequence[NearDuplicate] | None, *, searched: bool) -> Iterable[Content]:
    """What the audit found, and how the images are split.

    Args:
        near: near-duplicates across the split; None if there are too many images to look for them.
        searched: whether the images were there to look for them.
    """
    if not (folder.path / "audit.json").exists():
        return
    audit = folder.read_json("audit.json")
    subsets = Counter(folder.split().values())
    lines = [
        f"{audit['usable']:,} usable images of {audit['found']:,}; median size "
        f"{audit['median_size'][0]}x{audit['median_size'][1]} pixels. Different images of each subset: "
        + ", ".join(f"{subsets[name]:,} {name}" for name in SUBSETS)
        + ".",
        *_remarks(audit),
    ]
    if searched:
        lines.append(_near_duplicates(near))
    yield {"title": "Data", "lines": lines, "tables": [_class_counts(folder, audit), *_set_aside(audit)]}


def _remarks(audit: Content) -> Iterable[str]:
    largest, smallest = max(audit["classes"].values()), min(audit["classes"].values())
    if largest > smallest:
        yield f"The largest class has {largest / max(smallest, 1):.1f} times the images of the smallest."
    if audit["duplicates"]:
        copies = sum(len(group) - 1 for group in audit["duplicates"])
        yield f"{copies:,} exact copies of other images; copies are in the same subset."
    if audit["conversions"]:
        yield "Converted: " + ", ".join(f"{n:,} {what}" for what, n in audit["conversions"].items()) + "."
    if audit["suspicious"]:
        reasons = Counter(row["reason"] for row in audit["suspicious"])
        yield "Suspicious, but used: " + ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) + "."
    if audit["ignored"]:
        files = ", ".join(f"{n:,} {ending}" for ending, n in audit["ignored"].items())
        yield f"Files that are no images by ending or place: {files}."
    yield from audit["notes"]
    yield from (f"{name}: {loss}" for name, loss in audit["losses"].items())


def _near_duplicates(near: Sequence[NearDuplicate] | None) -> str:
    if near is None:
        return "Near-duplicates of held-out images among the training images were not looked for: too many images."
    count = f"{len(near):,} held-out images have" if len(near) != 1 else "1 held-out image has"
    return (
        f"{count if near else 'No held-out image has'} a near-duplicate among the training images: grey thumbnails of "
        f"{THUMBNAIL}x{THUMBNAIL} pixels that correlate by {CORRELATION} or more."
        + (" On these the accuracy is not that on new images." if near else "")
    )


def _class_counts(folder: RunFolder, audit: Content) -> Content:
    """The images of each class, in all and by subset."""
    split = folder.class_counts()
    widest = max(audit["classes"].values())
    used = [name for name in (*SUBSETS, "unused") if any(counts[name] for counts in split.values())]
    rows = [
        [
            Cell(name, name),
            *(Cell(f"{split[name][subset]:,}", split[name][subset]) for subset in used),
            Cell(f"{n:,}", n, bar=n / widest),
        ]
        for name, n in audit["classes"].items()
    ]
    return {"head": ["class", *used, "images"], "rows": rows, "sortable": True}


def _set_aside(audit: Content) -> Iterable[Content]:
    named: dict[str, list[str]] = {}
    for row in audit["set_aside"]:
        named.setdefault(row["problem"].partition(" (")[0], []).append(row["name"])
    if named:
        rows = [
            [
                Cell(reason),
                Cell(f"{len(names):,}"),
                Cell(", ".join(names[:3]) + (", …" if len(names) > 3 else ""), text_column=True),
            ]
            for reason, names in sorted(named.items(), key=lambda item: -len(item[1]))
        ]
        yield {"head": ["set aside because", "images", "such as"], "rows": rows, "sortable": False}


def network(folder: RunFolder) -> Iterable[Content]:
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


def time(records: Sequence[Content]) -> Iterable[Content]:
    if not records or "validation_seconds" not in records[0]:
        return
    training, validation, loading, saving = (
        sum(record.get(key, 0.0) for record in records)
        for key in ("seconds", "validation_seconds", "loading_seconds", "checkpoint_seconds")
    )
    parts = (
        ("training steps", training),
        ("of these, saving checkpoints", saving),
        ("validation and saving the best weights", validation),
        ("loading: preparing batches, in the background of the training steps", loading),
    )
    longest = max(seconds for _, seconds in parts)
    rows = [[Cell(name, text_column=True), Cell(format_duration(took), bar=took / longest)] for name, took in parts]
    fraction = loading / training if training else 0.0
    line = f"Preparing batches took {fraction:.0%} of the time of the training steps" + (
        ", so loading limits the speed." if fraction > LOADING_LIMITS else ": computing limits the speed, not loading."
    )
    yield {"title": "Time", "lines": [line], "tables": [{"head": [], "rows": rows, "sortable": False}]}


def machine(folder: RunFolder) -> Iterable[Content]:
    info, environment = folder.info(), folder.read_json("environment.json")
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    rows = [
        *([("computed on", f"{info.device_name} ({info.device}), {info.backend}")] if info.device else []),
        ("processor", f"{environment.get('cpu')}, {environment.get('cores')} cores"),
        ("software", f"Python {environment.get('python')}, {versions}"),
        ("commit", info.commit or "not a checkout"),
        ("run folder", str(folder.path)),
    ]
    cells = [[Cell(name), Cell(text, text_column=True)] for name, text in rows]
    yield {"title": "Machine", "lines": [], "tables": [{"head": [], "rows": cells, "sortable": False}]}
