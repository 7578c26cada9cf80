"""The plots of a run: curves, confusion matrix, reliability diagram.

Each function draws on a figure of its own (no pyplot, so no display and no state that two runs could share) and
writes a PNG atomically into a folder that exists. A title states the result of this run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from resnetlab.atomic import atomic_file
from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.metrics import CalibrationBin, expected_calibration_error, most_confused, wilson

DPI = 150
# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # of Okabe and Ito
BLUE, ORANGE = PALETTE[:2]
INK, MUTED, RULE, PALE = "#222222", "#6b6b6b", "#e4e4e4", "#f3f3f3"
LIGHT_BLUE = "#bcd7ea"
# One hue, already visible below one percent, where most mistakes are.
SHADES = LinearSegmentedColormap.from_list(
    "shades",
    [(0, "white"), (0.04, "#e3eef6"), (0.2, "#a6cbe3"), (0.5, "#4a97c9"), (0.75, BLUE), (1, "#08306b")],
).with_extremes(bad=PALE)

STYLE: Any = {  # Any: matplotlib's own type of it differs between the versions that we allow
    "axes.axisbelow": True,
    "axes.edgecolor": "#b0b0b0",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.bbox": "standard",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$"
    "text.usetex": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}

MARKED_EPOCHS = 30  # up to here every epoch is a visible point
CELL_COUNTS = 20  # classes up to which the counts are written into the cells
NAMED_CLASSES = 100  # ... and up to which each has its name beside its row


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """`count` colours of one hue, from pale to dark, for ordered quantities such as depth."""
    return [SHADES(place) for place in np.linspace(0.3, 0.95, count)]


def log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis whose labels are plain numbers, as mathtext is off in this style."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def curves(metrics: Sequence[dict[str, Any]], path: str | PathLike[str]) -> None:
    """Draw loss, top-1 and learning rate over the epochs.

    Args:
        metrics: one record per epoch, with `epoch` (from 1) and as many of `loss`, `accuracy`, `val_loss`, `val_top1`
            and `learning_rate` as there are (accuracies in [0, 1]); None and NaN leave a gap. Of records for the
            same epoch the last one counts.
        path: the PNG to write, 1200 x 1275 pixels.

    The best epoch is the first with the lowest validation loss: the one whose weights a run keeps.
    Raises ResnetlabError if there is no record, or the file cannot be written.
    """
    if not metrics:
        raise ResnetlabError("There are no epochs to draw. Expected at least one finished epoch.")
    by_epoch = {int(record["epoch"]): record for record in metrics}
    found = _Curves.of([by_epoch[epoch] for epoch in sorted(by_epoch)])
    write(lambda figure: _draw_curves(figure, found), path, size=(8, 8.5))


@dataclass(frozen=True)
class _Curves:
    """Values by epoch, NaN where missing."""

    epochs: NDArray[np.int64]
    loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    val_top1: NDArray[np.float64]
    rate: NDArray[np.float64]
    non_finite_epochs: list[int]  # epochs with a loss that is not finite

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]]) -> _Curves:
        """From records in the order of their epochs."""
        keys = ("loss", "val_loss", "accuracy", "val_top1", "learning_rate")
        non_finite_epochs = [
            int(record["epoch"])
            for record in records
            if any(key in record and _number(record[key]) is None for key in ("loss", "val_loss"))
        ]
        epochs = np.array([int(record["epoch"]) for record in records])
        loss, val_loss, accuracy, val_top1, rate = (_series(records, key) for key in keys)
        return cls(epochs, loss, val_loss, accuracy, val_top1, rate, non_finite_epochs)

    @property
    def best(self) -> int | None:
        """Index of the epoch with the lowest validation loss."""
        return int(np.nanargmin(self.val_loss)) if np.isfinite(self.val_loss).any() else None


def _draw_curves(figure: Figure, found: _Curves) -> None:
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[5, 5, 1.6])
    epochs, rate = found.epochs, found.rate
    _lines(top, epochs, found.loss, found.val_loss, found.best)
    _lines(middle, epochs, found.accuracy, found.val_top1, found.best)
    _line(bottom, epochs, rate, color=MUTED)

    values = np.concatenate([found.loss, found.val_loss])
    values = values[np.isfinite(values)]
    if not values.size:
        top.set_yticks([])
    elif values.min() > 0 and values.max() > 100 * values.min():
        log_scale(top)
    _frame(middle, np.concatenate([found.accuracy, found.val_top1]), least=0.1)
    middle.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    _frame(bottom, np.append(rate, 0.0))
    peak = np.nanmax(np.append(rate, 0.0))
    bottom.set_yticks([0, peak] if peak else [0])
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bottom.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    margin = 0.5 if len(epochs) == 1 else 0.015 * (epochs[-1] - epochs[0])
    bottom.set_xlim(epochs[0] - min(margin, 0.9), epochs[-1] + margin)  # there is no epoch 0
    bottom.set_xlabel("epoch")
    top.set_ylabel("cross-entropy")
    middle.set_ylabel("top-1")
    top.set_title("Loss" if values.size else "The loss was never finite")
    _title_curves(figure, found)


def _title_curves(figure: Figure, found: _Curves) -> None:
    top, middle, bottom = figure.axes
    middle.set_title("Top-1")
    if (best := found.best) is not None:
        top.set_title(f"Validation loss is lowest at epoch {found.epochs[best]}: {found.val_loss[best]:.4g}")
        if np.isfinite(found.val_top1[best]):
            middle.set_title(f"Validation top-1 at that epoch: {100 * found.val_top1[best]:.1f} %")
    bottom.set_title("Learning rate")
    handles = {str(line.get_label()): line for axes in (middle, top) for line in axes.lines}
    handles = {label: line for label, line in handles.items() if not label.startswith("_")}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=3, columnspacing=1.4)
    for axes in (top, middle, bottom):
        for epoch in found.non_finite_epochs:
            axes.axvspan(epoch - 0.5, epoch + 0.5, color="#f6e3d7", linewidth=0, zorder=0)
    if found.non_finite_epochs:
        note = f"shaded: loss not finite ({len(found.non_finite_epochs)} of {len(found.epochs)} epochs)"
        top.set_title(note, loc="right", color=ORANGE, fontsize=8.5, fontweight="normal")


def confusion(matrix: ArrayLike, class_names: Sequence[str], path: str | PathLike[str]) -> None:
    """Draw a confusion matrix: colour for the fraction of the true class, and up to 20 classes the counts in the cells.

    Args:
        matrix: (k, k) counts, rows true, columns predicted. A class without samples has a grey row.
        class_names: k names; beyond 100 classes only some are written.
        path: the PNG to write; its size grows with k.

    Raises ResnetlabError for shapes that disagree, or if the file cannot be written.
    """
    counts = np.asarray(matrix).astype(np.int64)
    k = len(class_names)
    if counts.shape != (k, k) or k == 0:
        raise ResnetlabError(
            f"The confusion matrix has shape {counts.shape}; expected ({k}, {k}) for {k} class names, at least one."
        )
    support = counts.sum(axis=1, keepdims=True)  # (k, 1)
    with np.errstate(invalid="ignore"):
        fractions = np.ma.masked_invalid(counts / support)  # (k, k)

    total, hits = int(counts.sum()), int(np.trace(counts))
    title = "Confusion matrix" if total == 0 else f"{100 * hits / total:.1f} % of {total:,} images on the diagonal"
    pairs = most_confused(counts, class_names, limit=1)
    subtitle = "nothing was confused" if total else "no images"
    if pairs:
        true, predicted = _short(pairs[0].true), _short(pairs[0].predicted)
        subtitle = f"most often: {true} predicted as {predicted}, {pairs[0].count:,} of {pairs[0].support:,}"
    layout = _MatrixLayout.of([_short(name) for name in class_names])

    def draw(figure: Figure) -> None:
        image = _draw_matrix(figure, counts, fractions, layout)
        left, height = layout.room / layout.width, layout.height
        figure.text(left, 1 - 0.30 / height, title, fontsize=11, fontweight="bold", va="center")
        figure.text(left, 1 - 0.56 / height, subtitle, fontsize=9, color=MUTED, va="center")
        _draw_scale(figure, image, layout)

    write(draw, path, size=(layout.width, layout.height), tight=True)


@dataclass(frozen=True)
class _MatrixLayout:
    """Sizes in inches, and the font that fits."""

    names: list[str]
    every: int  # every how many classes a name is written
    cell: float
    side: float
    font: float  # points
    lying: bool  # names below lie flat
    room: float  # for the names
    width: float
    height: float

    @classmethod
    def of(cls, names: list[str]) -> _MatrixLayout:
        k = len(names)
        every = math.ceil(k / NAMED_CLASSES)
        cell = 0.46 if k <= CELL_COUNTS else max(0.155, 0.46 * CELL_COUNTS / k) if k <= NAMED_CLASSES else 15.5 / k
        side = max(k * cell, 2.4)
        font = min(9.0, 0.62 * 72 * cell * every)
        longest = max(map(len, names)) * font * 0.6 / 72  # a character is on average 0.6 of its size wide
        room, header, bar = 0.35 + longest, 0.85, 0.95
        return cls(
            names=names,
            every=every,
            cell=cell,
            side=side,
            font=font,
            lying=longest < 0.95 * side / k,
            room=room,
            width=max(room + side + bar, 4.6),
            height=header + side + room + 0.3,
        )


def _draw_matrix(figure: Figure, counts: NDArray[np.int64], fractions: Any, layout: _MatrixLayout) -> Any:
    k, width, height, room, side = len(layout.names), layout.width, layout.height, layout.room, layout.side
    axes = figure.add_axes((room / width, (room + 0.3) / height, side / width, side / height))
    # Square root: a mistake of 2 % should be seen beside a diagonal of 95 %. The scale bar shows it.
    image = axes.imshow(fractions, cmap=SHADES, norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto")
    ticks, names = range(0, k, layout.every), layout.names[:: layout.every]
    axes.set_xticks(ticks, names, rotation=0 if layout.lying else 90, fontsize=layout.font)
    axes.set_yticks(ticks, names, fontsize=layout.font)
    axes.tick_params(length=0, colors=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if k <= NAMED_CLASSES:  # thin white lines between the cells
        axes.set_xticks(np.arange(-0.5, k), minor=True)
        axes.set_yticks(np.arange(-0.5, k), minor=True)
        axes.grid(
            which="minor", color="white" if k <= CELL_COUNTS else RULE, linewidth=1.5 if k <= CELL_COUNTS else 0.4
        )
        axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted", labelpad=8)
    axes.set_ylabel("true", labelpad=8)
    if k <= CELL_COUNTS:
        digits = len(f"{counts.max():,}")
        size = min(9.0, 72 * layout.cell * 0.9 / (0.62 * digits))
        for i, j in np.argwhere(counts):  # zeros are left empty, so that mistakes stand out
            color = "white" if fractions[i, j] > 0.35 else INK
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center_baseline", fontsize=size, color=color)
    return image


def _draw_scale(figure: Figure, image: Any, layout: _MatrixLayout) -> None:
    width, height = layout.width, layout.height
    bar = min(layout.side, 4.0)
    left, bottom = (layout.room + layout.side + 0.18) / width, (layout.room + 0.3 + layout.side - bar) / height
    scale = figure.add_axes((left, bottom, 0.13 / width, bar / height))
    colorbar = figure.colorbar(image, cax=scale, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    colorbar.set_label("fraction of the true class", fontsize=8)
    colorbar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    colorbar.ax.tick_params(length=0, labelsize=8)
    colorbar.ax.grid(visible=False)
    colorbar.outline.set_visible(False)


def reliability(bins: Iterable[CalibrationBin], path: str | PathLike[str]) -> None:
    """Draw accuracy against confidence, a reliability diagram (Guo et al. 2017, figure 1).

    The points have 95 % intervals, and the lower panel the number of images in each bin: a gap in a bin with three
    images means little.

    Args:
        bins: those of an `Evaluation`.
        path: the PNG to write, 975 x 1050 pixels.

    Raises ResnetlabError if the bins are empty, or the file cannot be written.
    """
    bins = list(bins)
    n = sum(b.count for b in bins)
    if n == 0:
        raise ResnetlabError("There are no predictions in the calibration bins. Expected at least one.")
    filled = [(b, b.accuracy, b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None]
    error = expected_calibration_error(bins)
    excess = sum(b.count * (confidence - accuracy) for b, accuracy, confidence in filled) / n

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        centres = [(b.low + b.high) / 2 for b, _, _ in filled]
        widths = [0.9 * (b.high - b.low) for b, _, _ in filled]
        right = [accuracy for _, accuracy, _ in filled]
        sure = [confidence for _, _, confidence in filled]
        top.bar(centres, right, widths, color=LIGHT_BLUE)
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
        # The calibration error is the weighted sum of the distances between the points and the diagonal.
        top.vlines(sure, right, sure, color=ORANGE, linewidth=2.2, label="gap", zorder=3)
        intervals = [wilson(round(accuracy * b.count), b.count) for b, accuracy, _ in filled]
        spread = [[r - low for r, (low, _) in zip(right, intervals, strict=True)]]
        spread.append([high - r for r, (_, high) in zip(right, intervals, strict=True)])
        top.errorbar(sure, right, spread, fmt="none", ecolor=BLUE, elinewidth=1, capsize=2.5, zorder=3)
        top.plot(
            sure, right, "o", color=BLUE, markersize=5, label="fraction that was right, 95 % interval", clip_on=False,
            zorder=4,
        )  # fmt: skip
        top.legend(loc="upper left", handlelength=1.6)
        bars = bottom.bar(centres, [b.count for b, _, _ in filled], widths, color="#9a9a9a")
        bottom.bar_label(bars, [f"{b.count:,}" for b, _, _ in filled], fontsize=7.5, padding=1, color=MUTED)
        bottom.margins(y=0.25)
        word = (
            "" if error < 0.01 or abs(excess) < error / 2 else ", over-confident" if excess > 0 else ", under-confident"
        )
        top.set_title(f"Calibration error {100 * error:.1f} %{word}")
        top.set_ylabel("fraction that was right")
        top.set_ylim(0, 1)
        top.set_xlim(0, 1)
        bottom.set_xlabel("confidence of the prediction")
        bottom.set_ylabel("images")
        bottom.yaxis.set_major_locator(MaxNLocator(3))
        for axis in (top.yaxis, bottom.xaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))

    write(draw, path, size=(6.5, 7))


def _lines(
    axes: Axes,
    epochs: NDArray[np.int64],
    training: NDArray[np.float64],
    validation: NDArray[np.float64],
    best: int | None,
) -> None:
    _line(axes, epochs, training, color=BLUE, label="training")
    _line(axes, epochs, validation, color=ORANGE, label="validation")
    if best is not None:
        axes.axvline(epochs[best], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.plot(
            epochs[best], validation[best], "o", markersize=8, color="white", markeredgecolor=ORANGE,
            markeredgewidth=2, zorder=4, label="best epoch", linestyle="none",
        )  # fmt: skip


def _line(axes: Axes, epochs: NDArray[np.int64], values: NDArray[np.float64], **style: Any) -> None:
    if not np.isfinite(values).any():
        return
    axes.plot(epochs, values, **style)
    finite = np.pad(np.isfinite(values), 1)
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]  # a line would not show these
    points = finite[1:-1] if len(epochs) <= MARKED_EPOCHS else alone
    axes.plot(epochs[points], values[points], "o", markersize=4 if len(epochs) > 1 else 6, color=style["color"])


def _series(records: Sequence[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """(epochs,) values, NaN where there is none."""
    numbers = (_number(record.get(key)) for record in records)
    return np.array([math.nan if number is None else number for number in numbers])


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _frame(axes: Axes, values: NDArray[np.float64], *, least: float = 0.0) -> None:
    """Set limits with a margin around the finite values, spanning at least `least`."""
    values = values[np.isfinite(values)]
    if values.size and (span := max(values.max() - values.min(), least)) > 0:
        middle = (values.max() + values.min()) / 2
        axes.set_ylim(middle - 0.56 * span, middle + 0.56 * span)


def _short(name: str, length: int = 24) -> str:
    name = " ".join(str(name).encode("utf-8", "replace").decode().split())  # bytes that are not UTF-8 cannot be drawn
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def write(
    draw: Callable[[Figure], None],
    path: str | PathLike[str],
    *,
    size: tuple[float, float],
    tight: bool = False,
) -> None:
    """Draw on a new figure in this module's style and write it as a PNG.

    `size` is in inches, to be laid out by matplotlib; with `tight`, `draw` places the axes and the margins are cut.
    """
    path = Path(path)
    with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        # A class name in a script that the font lacks is drawn as boxes: no reason to end a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        layout = None if tight else ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.04)
        figure = Figure(figsize=size, dpi=DPI, layout=layout)
        draw(figure)
        with atomic_file(path) as temporary:
            # Without the version of matplotlib in it: the same data, the same bytes.
            figure.savefig(
                temporary,
                format="png",
                dpi=DPI,
                bbox_inches="tight" if tight else None,
                pad_inches=0.2,
                metadata={"Software": None},
            )
