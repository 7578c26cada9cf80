"""Shortcuts: which kind, and where the activation stands.

Claim   Any shortcut beats none by far. At 34 layers A (zero-padded identity), B (projection where shapes change) and C
        (projection everywhere) differ little; at 110, projections everywhere are far worse than identities. In very
        deep networks pre-activation beats post-activation.
Source  K. He et al. 2015, arXiv:1512.03385, table 3 (there ResNet-34 on ImageNet), and K. He et al. 2016,
        arXiv:1603.05027, tables 1 and 2 (ResNet-110 and ResNet-164 on CIFAR-10).
Cost    Seven networks of 110 or 164 layers, 164 epochs each: for a GPU, most of a day.
        --quick: 20 and 29 layers, 5,000 training images of 16x16 pixels, 40 epochs: 22 minutes on two CPU cores. So
        shallow, all of them fit those images (without shortcuts not quite), and of one seed and 10,000 test images
        test errors tell nothing that lies within two points: the claim is one about depth.

    python studies/shortcuts.py [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiment import UNCERTAIN, Claim, Row, arguments, choose_recipe, data_for, keep, trained
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from resnetlab.models import Architecture, architecture, summarize
from resnetlab.report import plots


def variants(*, quick: bool) -> dict[str, Architecture]:
    basic = architecture("resnet20" if quick else "resnet110")
    bottleneck = architecture("preresnet164")
    if quick:
        bottleneck = replace(bottleneck, name="preresnet29", depths=(3, 3, 3))
    kinds = {"no shortcut": "none", "shortcut A": "A", "shortcut B": "B", "shortcut C": "C"}
    rows = {f"{summarize(basic).depth} layers, {name}": replace(basic, shortcut=kind) for name, kind in kinds.items()}
    deep = f"{summarize(bottleneck).depth} layers, bottlenecks"
    return rows | {
        f"{summarize(basic).depth} layers, pre-activation": replace(basic, preactivation=True),
        f"{deep}, post-activation": replace(bottleneck, preactivation=False),
        f"{deep}, pre-activation": bottleneck,
    }


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    last = list({row["network"]: row for row in rows}.values())
    axes = figure.subplots()
    places = range(len(last), 0, -1)
    axes.barh(
        [p + 0.18 for p in places],
        [row["training_error"] for row in last],
        0.34,
        color=plots.LIGHT_BLUE,
        label="training",
    )
    bars = axes.barh(
        [p - 0.18 for p in places], [row["test_error"] for row in last], 0.34, color=plots.BLUE, label="test"
    )
    axes.bar_label(bars, [f"{100 * row['test_error']:.1f} %" for row in last], padding=4, fontsize=8.5)
    axes.set_yticks(list(places), [row["network"] for row in last])
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("error after the last epoch")
    figure.legend(loc="outside upper right", ncols=2)


def claims(rows: Sequence[Row]) -> list[Claim]:
    error = {row["network"]: 100 * row["test_error"] for row in rows if "test_error" in row}  # of the last epoch
    by_kind = {name.partition(", ")[2]: value for name, value in error.items() if "bottlenecks" not in name}
    kinds = {name.removeprefix("shortcut "): value for name, value in by_kind.items() if name.startswith("shortcut ")}
    spread = max(kinds.values()) - min(kinds.values())
    gain = {
        name.removesuffix(", pre-activation"): error[other] - error[name]
        for name in error
        if name.endswith("pre-activation")
        for other in (name.replace("pre-activation", "post-activation"), name.replace("pre-activation", "shortcut A"))
        if other in error
    }
    any_beats_none = max(kinds.values()) < by_kind["no shortcut"] - UNCERTAIN
    return [
        Claim(
            f"Any shortcut beats none (by more than {UNCERTAIN} points of test error).",
            f"no shortcut {by_kind['no shortcut']:.1f} %; "
            + ", ".join(f"{name} {value:.1f} %" for name, value in kinds.items()),
            any_beats_none,
        ),
        Claim(
            f"Shortcuts A, B and C differ little (by at most {UNCERTAIN} points).",
            f"{spread:.1f} points between the best and the worst",
            spread <= UNCERTAIN if any_beats_none else None,  # where even that cannot be told apart
        ),
        Claim(
            f"Pre-activation beats post-activation (by more than {UNCERTAIN} points, basic blocks and bottlenecks).",
            ", ".join(f"{name}: {points:+.1f} points" for name, points in gain.items()),
            min(gain.values()) > UNCERTAIN,
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    recipe = choose_recipe(options)
    data = data_for(recipe)
    rows: list[Row] = []
    for name, arch in variants(quick=options.quick).items():
        _, epochs = trained(arch, recipe, data)
        rows += [{"network": name} | row for row in epochs]
    keep(
        "shortcuts",
        "Error by kind of shortcut and place of the activation, on CIFAR-10",
        options,
        configuration=recipe.model_dump(mode="json"),
        rows=rows,
        claims=claims(rows),
        draw=draw,
    )


if __name__ == "__main__":
    main()
