"""Figures and texts of the notebook `resnet_from_scratch.ipynb`: how they are drawn, not what they are about."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from resnetlab.data.loading import open_run_data
from resnetlab.data.pack import pack
from resnetlab.environment import cache_folder
from resnetlab.inference.engines import keras_engine
from resnetlab.models.from_recipe import build_network
from resnetlab.progress import LogProgress
from resnetlab.report import plots

if TYPE_CHECKING:
    from resnetlab.data.sources import Source
    from resnetlab.run import Run

COLOURS = (plots.INK, plots.BLUE, "#e69f00", "#cc79a7", "#009e73")


def _style(name: str) -> tuple[str, str]:
    """Colour and line of a network: plain or residual, and dotted where it has 20 layers."""
    return (plots.ORANGE if name.startswith("plain") else plots.BLUE), (":" if name.endswith("20") else "-")


def tell(text: str) -> None:
    """Show a text, in Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def show(draw: Callable[[Figure], None], alt: str, size: tuple[float, float] = (10, 4.2)) -> None:
    """Draw a figure and show it with a text for those who do not see it."""
    import matplotlib as mpl
    from IPython.display import Image as Shown
    from IPython.display import display

    with mpl.rc_context({key: value for key, value in plots.STYLE.items() if not key.startswith("savefig")}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
    display(Shown(data=content.getvalue(), format="png", alt=alt, width=round(90 * size[0])))


def training_errors(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Callable[[Figure], None]:
    """Training error by epoch of plain and of residual networks, side by side."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, kind in zip(axes, ("plain", "resnet"), strict=True):
            for name, history in histories.items():
                if name.startswith(kind):
                    colour, style = _style(name)
                    errors = [1 - record["accuracy"] for record in history]
                    axis.plot(range(1, len(errors) + 1), errors, style, color=colour, label=name)
            axis.set(xlabel="epoch", title={"plain": "Plain", "resnet": "Residual"}[kind], ylim=(0, 1))
            axis.yaxis.set_major_formatter(PercentFormatter(1))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.legend()
        axes[0].set_ylabel("training error")

    return draw


def lines_by_depth(
    values: Mapping[str, Sequence[float]], ylabel: str, *, logarithmic: bool = False
) -> Callable[[Figure], None]:
    """A value at each layer or block, from the stem to the head."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for name, line in values.items():
            colour, style = _style(name)
            axis.plot(np.linspace(0, 1, len(line)), line, style, color=colour, label=name, marker=".", markersize=4)
        if logarithmic:
            plots.log_scale(axis)
        else:
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.set(xlabel="from the first (0) to the last (1)", ylabel=ylabel)
        axis.legend()

    return draw


def loss_slices(positions: Sequence[float], losses: Mapping[str, Sequence[float]]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for name, line in losses.items():
            colour, style = _style(name)
            axis.plot(positions, line, style, color=colour, label=name)
        plots.log_scale(axis)
        axis.set(xlabel="distance along a random direction, in units of the weights' norm", ylabel="loss")
        axis.legend()

    return draw


def block_diagrams(blocks: Mapping[str, tuple[Sequence[str], str, str]]) -> Callable[[Figure], None]:
    """Blocks as boxes and arrows: the steps of the residual branch, the shortcut, and what follows the sum."""

    def draw(figure: Figure) -> None:
        for axis, (title, parts) in zip(figure.subplots(1, len(blocks)), blocks.items(), strict=True):
            _diagram(axis, title, *parts)

    return draw


def _diagram(axis: Any, title: str, steps: Sequence[str], shortcut: str, after: str) -> None:
    box = {"boxstyle": "round,pad=0.45", "facecolor": "#eaf2f8", "edgecolor": plots.BLUE}
    arrow = {"arrowstyle": "-|>", "color": plots.INK, "shrinkA": 0, "shrinkB": 0}
    places = np.linspace(0.8, 0.3, len(steps))
    half = 0.07
    stops = [0.98, *(y for place in places for y in (place + half, place - half)), 0.16]
    for text, place in zip(steps, places, strict=True):
        axis.text(0.3, place, text, ha="center", va="center", bbox=box, fontsize=8.5)
    for top, bottom in zip(stops[::2], stops[1::2], strict=True):
        axis.annotate("", (0.3, bottom), (0.3, top), arrowprops=arrow)
    axis.text(0.3, 1.01, "x", ha="center", va="center", style="italic", fontsize=12)
    sum_box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": plots.INK}
    axis.text(0.3, 0.12, "+", ha="center", va="center", fontsize=12, bbox=sum_box)
    axis.annotate("", (0.3, -0.04), (0.3, 0.08), arrowprops=arrow)
    axis.text(0.35, 0.02, after, va="center", fontsize=8.5, color=plots.MUTED)
    axis.plot([0.3, 0.8, 0.8], [0.94, 0.94, 0.12], color=plots.ORANGE)
    axis.annotate("", (0.34, 0.12), (0.8, 0.12), arrowprops=arrow | {"color": plots.ORANGE})
    orange = box | {"facecolor": "#fdf0e7", "edgecolor": plots.ORANGE}
    axis.text(0.8, 0.55, shortcut, ha="center", va="center", bbox=orange, fontsize=8.5)
    axis.set(xlim=(0, 1.1), ylim=(-0.06, 1.06), title=title)
    axis.axis("off")


def overfitting(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Callable[[Figure], None]:
    """Loss of training and validation, and validation accuracy, by epoch; a dot marks the best epoch."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for colour, (name, history) in zip(COLOURS, histories.items(), strict=False):
            epochs = [record["epoch"] for record in history]
            validation = [record["val_loss"] for record in history]
            best = int(np.argmin(validation))
            left.plot(epochs, [record["loss"] for record in history], "--", color=colour, linewidth=1.2)
            left.plot(epochs, validation, color=colour, label=name)
            left.plot(epochs[best], validation[best], "o", color=colour)
            accuracy = [record["val_top1"] for record in history]
            right.plot(epochs, accuracy, color=colour)
            right.plot(epochs[best], accuracy[best], "o", color=colour)
        left.set(xlabel="epoch", ylabel="cross-entropy", title="Training dashed, validation solid", ylim=(0, None))
        right.set(xlabel="epoch", ylabel="top-1", title="Validation accuracy")
        right.yaxis.set_major_formatter(PercentFormatter(1))
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.legend()

    return draw


def image_rows(rows: Mapping[str, Sequence[tuple[np.ndarray, str]]]) -> Callable[[Figure], None]:
    """Rows of images with a caption each; the names of the rows are their titles."""

    def draw(figure: Figure) -> None:
        columns = max(map(len, rows.values()), default=1)
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (title, images) in zip(parts, rows.items(), strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=10)
            pairs = [*images, *[None] * (columns - len(images))]
            for axis, pair in zip(part.subplots(1, columns, squeeze=False)[0], pairs, strict=True):
                axis.axis("off")
                if pair is not None:
                    axis.imshow(pair[0])
                    axis.set_title(pair[1], fontsize=8.5)

    return draw


def class_counts(counts: Mapping[str, int], title: str) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.barh(list(counts), list(counts.values()), color=plots.BLUE)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set(xlabel="images", title=title)

    return draw


@dataclass(frozen=True)
class Sample:
    """Images in memory and, as PNG files, in a folder that the library trains from: SUBSET/CLASS/NUMBER.png.

    `images` and `labels` have the subsets "train", "val" and "test".
    """

    folder: Path
    class_names: tuple[str, ...]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    @property
    def counts(self) -> dict[str, int]:
        return {subset: len(labels) for subset, labels in self.labels.items()}


def write_sample(source: Source, folder: Path, *, size: int, seed: int, **counts: int) -> Sample:
    """At most so many images of each subset of a source, resized to size x size pixels."""
    packed = pack(source, size=size, cache_dir=cache_folder(), validation=0.2, test=0.2)
    images, labels = {}, {}
    rng = np.random.default_rng(seed)
    for subset, name in {"train": "train", "val": "validation", "test": "test"}.items():
        chosen = rng.permutation(packed.indices(name))[: counts[subset]]
        images[subset], labels[subset] = packed.images[chosen], packed.labels[chosen]
        for number, (image, label) in enumerate(zip(images[subset], labels[subset], strict=True)):
            path = folder / subset / packed.class_names[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return Sample(folder, packed.class_names, images, labels)


def load_images(run: Run, subset: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a run's own data that belong to a subset."""
    _, packed = open_run_data(run.folder, progress=LogProgress())
    rows = packed.indices(subset)
    return packed.images[rows], packed.labels[rows]


def predict(run: Run, data: Sample, *, weights: str) -> np.ndarray:
    """Probabilities (n, classes) of the test images, by the weights of the "best" or of the "last" epoch."""
    import keras

    network = build_network(run.recipe, len(run.class_names))
    network.load_weights(run.path / f"{weights}.weights.h5")
    probabilities: np.ndarray = keras_engine(network, run.recipe.test_size)(data.images["test"])
    keras.backend.clear_session()
    return probabilities


def accuracy(run: Run, data: Sample, *, weights: str) -> float:
    return float(np.mean(predict(run, data, weights=weights).argmax(axis=1) == data.labels["test"]))


def captions(data: Sample, probabilities: np.ndarray, rows: Sequence[int]) -> list[tuple[np.ndarray, str]]:
    """Test images with the predicted class and its probability, and the true class where that is another one."""
    found = []
    for row in rows:
        predicted, true = int(probabilities[row].argmax()), int(data.labels["test"][row])
        text = f"{data.class_names[predicted]} {probabilities[row].max():.0%}"
        text += "" if predicted == true else f"\n(is: {data.class_names[true]})"
        found.append((data.images["test"][row], text))
    return found
