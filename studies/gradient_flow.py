"""Gradient flow: what of the loss's gradient arrives at each layer.

Claim   Without batch norm, depth makes the gradient of a plain network small everywhere, and that of a residual one
        explode, orders of magnitude apart. With it, a plain network's gradient grows from the last layers to the first
        by a factor that rises steeply with depth; with identity shortcuts by a small one.
Source  K. He et al. 2016, arXiv:1603.05027, equation 5; X. Glorot, Y. Bengio 2010 for the picture by layer;
        G. Yang et al. 2019, arXiv:1902.08129, for what batch norm does to a plain network.
Cost    Seven minutes on two CPU cores. --quick: images of 16x16 pixels, fewer steps: three minutes.

    python studies/gradient_flow.py [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from experiment import Claim, Row, arguments, build, cifar10, keep, keras, say
from matplotlib.figure import Figure

from resnetlab.evaluation.gradients import GradientRecorder
from resnetlab.models import Architecture, architecture, summarize
from resnetlab.report import plots

DEPTHS = (20, 56)
RATE = 0.01


def networks() -> dict[str, Architecture]:
    """Plain and residual, with batch norm and without, and the residual one with each kind of shortcut."""
    found = {}
    for depth in DEPTHS:
        for kind in ("plain", "resnet"):
            arch = architecture(f"{kind}{depth}")
            found[arch.name] = arch
            found[f"{arch.name}, no batch norm"] = replace(arch, batch_norm=False, conv_bias="all")
    for shortcut in ("B", "C"):
        found[f"resnet56, shortcut {shortcut}"] = replace(architecture("resnet56"), shortcut=shortcut)
    return found


def look(arch: Architecture, images: np.ndarray, labels: np.ndarray, *, steps: int, batch: int, seed: int) -> list[Row]:
    """Gradient norms by layer at the first step, and after `steps` of SGD."""
    network = build(arch, num_classes=10, seed=seed)
    recorder = GradientRecorder(RATE, momentum=0.9)
    network.compile(recorder, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rows = []
    for step in range(steps + 1):
        first = step * batch % len(images)
        network.train_on_batch(images[first : first + batch], labels[first : first + batch])
        if step in (0, steps):
            rows += [
                {"steps": step, "layer": name, "place": place, "gradient_norm": norm if np.isfinite(norm) else None}
                for place, (name, norm) in enumerate(recorder.norms(network).items(), start=1)
            ]
    return rows


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    steps = max(row["steps"] for row in rows)
    shown = {
        "resnet56": (plots.BLUE, "-"),
        "plain56": (plots.ORANGE, "-"),
        "resnet56, no batch norm": (plots.BLUE, ":"),
        "plain56, no batch norm": (plots.ORANGE, ":"),
    }
    for axes, when in zip(figure.subplots(1, 2, sharey=True), (0, steps), strict=True):
        gone = []
        for name, (colour, style) in shown.items():
            mine = [row for row in rows if row["network"] == name and row["steps"] == when and row["gradient_norm"]]
            if mine:
                places = [row["place"] for row in mine]
                axes.plot(places, [row["gradient_norm"] for row in mine], style, color=colour, label=name)
            else:
                gone.append(name)
        plots.log_scale(axes)
        axes.set_title("At initialisation" if not when else f"After {when} steps")
        if gone:
            axes.text(
                0.98, 0.97, f"diverged: {', '.join(gone)}", transform=axes.transAxes, ha="right", va="top", fontsize=8
            )
        axes.set_xlabel("convolution, from stem to head")
        axes.tick_params(labelleft=True)
    figure.axes[0].set_ylabel("norm of the loss's gradient")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def claims(rows: Sequence[Row]) -> list[Claim]:
    def ends(network: str) -> tuple[float, float]:
        """Mean norm at the first three and at the last three convolutions, before training."""
        norms = [row["gradient_norm"] for row in rows if row["network"] == network and row["steps"] == 0]
        return float(np.mean(norms[:3])), float(np.mean(norms[-3:]))

    bare = {kind: ends(f"{kind}56, no batch norm")[0] for kind in ("plain", "resnet")}
    growth = {name: ends(name)[0] / ends(name)[1] for name in ("plain20", "plain56", "resnet20", "resnet56")}
    return [
        Claim(
            "Without batch norm, at 56 layers the first layers' gradients of plain and residual networks are three or "
            "more orders of magnitude apart.",
            f"plain {bare['plain']:.1e}, residual {bare['resnet']:.1e}",
            bare["resnet"] > 1e3 * bare["plain"],
        ),
        Claim(
            "With batch norm, the gradient of a plain network grows from the last layers to the first, and ten times "
            "or more as much at 56 layers as at 20; that of a residual network less than four times as much.",
            ", ".join(f"{name} {ratio:.1f}x" for name, ratio in growth.items()),
            growth["plain56"] > 10 * growth["plain20"] > 10 and growth["resnet56"] < 4 * growth["resnet20"],
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    size, steps, batch = (16, 30, 64) if options.quick else (32, 100, 128)
    data = cifar10(size)
    chosen = np.random.default_rng(options.seed).choice(data.indices("train"), 10 * batch, replace=False)
    images, labels = data.images[np.sort(chosen)], data.labels[np.sort(chosen)]
    order = np.random.default_rng(options.seed).permutation(len(images))

    looked_at = networks()
    rows: list[Row] = []
    for name, arch in looked_at.items():
        say(name)
        found = look(arch, images[order], labels[order], steps=steps, batch=batch, seed=options.seed)
        rows += [{"network": name, "depth": summarize(arch).depth} | row for row in found]
        keras.backend.clear_session()

    keep(
        "gradient-flow",
        "Norm of the loss's gradient at each convolution, plain and residual networks on CIFAR-10",
        options,
        configuration={"image_size": size, "steps": steps, "batch_size": batch, "learning_rate": RATE},
        rows=rows,
        claims=claims(rows),
        draw=draw,
    )


if __name__ == "__main__":
    main()
