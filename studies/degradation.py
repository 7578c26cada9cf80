"""Degradation: a deeper plain network trains *worse*; with shortcuts, the training error does not.

Claim   The plain network of 56 layers has a higher training error than the one of 20, so the cause is not overfitting.
        The residual network of 56 layers does not, and its test error is lower. `claims` says what holds here.
Source  K. He et al. 2015, arXiv:1512.03385, section 4.2 and figure 6.
Cost    Eight networks, 164 epochs of CIFAR-10 each: hours on one GPU, so it is for a GPU.
        --quick: depths 20 and 56, a tenth of the training images, of 16x16 pixels and only mirrored, 40 epochs:
        22 minutes on two CPU cores. It asks what fits those 5,000 images: where both residual networks do, they are
        equal up to a few images, and the deeper one gets there later. Test errors are those of so few images.

The training error is the mean over an epoch, on augmented images, while the weights change: as in the paper.

    python studies/degradation.py [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence

from experiment import UNCERTAIN, Claim, Row, arguments, below, choose_recipe, data_for, keep, trained
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from resnetlab.models import architecture
from resnetlab.report import plots

KINDS = {"plain": "Plain networks", "resnet": "Residual networks"}


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Training error dashed, test error solid, as in the paper's figure 6."""
    depths = sorted({row["depth"] for row in rows})
    colours = dict(zip(depths, plots.shades(len(depths)), strict=True))
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        for depth in depths:
            mine = [row for row in rows if row["network"] == f"{kind}{depth}"]
            for key, style in (("training_error", "--"), ("test_error", "-")):
                points = [(row["epoch"], row[key]) for row in mine if key in row]
                axes.plot(*zip(*points, strict=True), style, color=colours[depth], label=f"{depth} layers, {key[:-6]}")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.tick_params(labelleft=True)
    axes.legend()
    figure.axes[0].set_ylabel("error")


def claims(rows: Sequence[Row]) -> list[Claim]:
    last = {row["network"]: row for row in rows}
    shallow, deep = min(row["depth"] for row in rows), max(row["depth"] for row in rows)

    def difference(kind: str, error: str) -> float:
        return round(100 * (last[f"{kind}{deep}"][error] - last[f"{kind}{shallow}"][error]), 2)

    def points(kind: str, error: str) -> str:
        return f"{kind}{deep} minus {kind}{shallow}: {difference(kind, error):+.2f} points"

    return [
        Claim(
            f"The deeper plain network has the higher training error (by more than {UNCERTAIN} points).",
            points("plain", "training_error"),
            difference("plain", "training_error") > UNCERTAIN,
        ),
        Claim(
            f"The deeper residual network has no higher training error (by more than {UNCERTAIN} points).",
            points("resnet", "training_error"),
            difference("resnet", "training_error") <= UNCERTAIN,
        ),
        Claim(
            "The deeper residual network has the lower test error.",
            points("resnet", "test_error"),
            below(difference("resnet", "test_error")),
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    depths = (20, 56) if options.quick else (20, 32, 44, 56)
    recipe = choose_recipe(options)
    data = data_for(recipe)

    rows: list[Row] = []
    for kind in KINDS:
        for depth in depths:
            name = f"{kind}{depth}"
            _, epochs = trained(architecture(name), recipe, data)
            rows += [{"network": name, "depth": depth} | row for row in epochs]

    keep(
        "degradation",
        "Training and test error by depth, plain and residual networks on CIFAR-10",
        options,
        configuration=recipe.model_dump(mode="json"),
        rows=rows,
        claims=claims(rows),
        draw=draw,
    )


if __name__ == "__main__":
    main()
