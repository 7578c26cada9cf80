"""Grad-CAM: our class activation maps are those of the package grad-cam, for the same weights.

Claim   For an imported network, the maps of Grad-CAM, Grad-CAM++, HiResCAM and LayerCAM that `resnetlab explain` lays
        over photographs correlate with those of the package grad-cam by 0.99 or more, on each photograph.
Source  R. Selvaraju et al. 2016, arXiv:1610.02391, and what evaluation/explain.py names; J. Gildenblat and others,
        github.com/jacobgil/pytorch-grad-cam (pip install grad-cam): that package runs a PyTorch network, written in
        references/grad_cam.py, with the weights as published.
Cost    A few minutes on two CPU cores. The weights are ResNet-56 for CIFAR-10 of
        github.com/akamaster/pytorch_resnet_cifar10, in $RESNETLAB_DATA/weights or from --weights; the photographs are
        of Animals-10, at 128x128 pixels. --quick: 64x64 pixels.

    python studies/grad_cam.py [--quick] [--weights resnet56-4bfd9763.th]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from experiment import Claim, Row, arguments, keep, say
from matplotlib.figure import Figure

import resnetlab as rl
from resnetlab.data.pack import pack
from resnetlab.data.sources import resolve
from resnetlab.environment import cache_folder
from resnetlab.evaluation.explain import explain
from resnetlab.inference.explanation import enlarged
from resnetlab.report import plots

PHOTOGRAPHS = 20
REFERENCE = Path(__file__).parent / "references" / "grad_cam.py"
WEIGHTS = Path(os.environ.get("RESNETLAB_DATA", "data"), "weights", "resnet56-4bfd9763.th")
ASKED = 0.99


def photographs(size: int) -> np.ndarray:
    """The first two of each class: (PHOTOGRAPHS, size, size, 3) uint8."""
    data = pack(resolve("animals10"), size=size, cache_dir=cache_folder(), validation=0.0, test=0.0)
    rows = [row for label in range(len(data.class_names)) for row in np.flatnonzero(data.labels == label)[:2]]
    return np.ascontiguousarray(data.images[rows[:PHOTOGRAPHS]])


def of_the_package(images: np.ndarray, classes: np.ndarray, weights: Path) -> dict[str, np.ndarray]:
    """Maps (n, size, size) of the package, by method and stage; computed in another process, as it imports PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "request.npz"), images=images, classes=classes)
        Path(folder, "weights.txt").write_text(str(weights.resolve()), "utf-8")
        subprocess.run([sys.executable, str(REFERENCE), folder], check=True)
        with np.load(Path(folder, "maps.npz")) as file:
            return dict(file)


def compare(ours: np.ndarray, theirs: np.ndarray) -> Row:
    """Correlation of the maps of each photograph; a map that is 0 everywhere has none."""
    pairs = [(a.ravel(), b.ravel()) for a, b in zip(ours, theirs, strict=True) if a.std() > 0 and b.std() > 0]
    found = [float(np.corrcoef(*pair)[0, 1]) for pair in pairs]
    return {
        "photographs": len(ours),
        "compared": len(found),
        "correlation_least": round(min(found), 5),
        "correlation_mean": round(float(np.mean(found)), 5),
    }


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for place, row in zip(range(len(rows), 0, -1), rows, strict=True):
        axes.plot([row["correlation_least"], 1], [place, place], color=plots.LIGHT_BLUE, linewidth=5)
        axes.plot(row["correlation_mean"], place, "o", color=plots.BLUE, markersize=5)
    axes.axvline(ASKED, color=plots.MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows), 0, -1), [f"{row['method']}, {row['stage']}" for row in rows])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"correlation with the package's maps, {rows[0]['photographs']} photographs; dot: mean, bar: least")


def claims(rows: Sequence[Row]) -> list[Claim]:
    made = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        measured = "; ".join(
            f"{row['stage']}: {row['correlation_mean']:.4f} on average, {row['correlation_least']:.4f} at least "
            f"({row['compared']} of {row['photographs']} photographs have a map)"
            for row in mine
        )
        text = f"{method} correlates with the package's by {ASKED} or more on each photograph."
        made.append(Claim(text, measured, all(row["correlation_least"] >= ASKED for row in mine)))
    return made


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the checkpoint")


def main() -> None:
    options = arguments(__doc__ or "", add_weights)
    if not importlib.util.find_spec("pytorch_grad_cam"):
        sys.exit("grad-cam is not installed, which this study compares with. Install it with: pip install grad-cam")
    size = 64 if options.quick else 128
    images = photographs(size)
    network = rl.from_pretrained(options.weights, shortcut_padding="both").model
    classes = network.predict(images, verbose=0).argmax(axis=1)
    rows = []
    for name, theirs in of_the_package(images, classes, options.weights).items():
        method, stage = name.split("/")
        maps = explain(network, images, method=method, stage=stage, classes=classes.tolist())
        rows.append({"method": method, "stage": stage} | compare(np.stack([enlarged(m, size) for m in maps]), theirs))
        say(str(rows[-1]))
    keep(
        "grad-cam",
        f"Class activation maps of {len(images)} photographs, compared with those of the package grad-cam",
        options,
        configuration={"image_size": size, "weights": options.weights.name},
        rows=rows,
        claims=claims(rows),
        draw=draw,
        size=(8, 3),
    )


if __name__ == "__main__":
    main()
