"""The ensemble view: what the loss of a block costs a residual and a plain network.

Claim   Deleting any one block of a trained residual network costs a few points of accuracy at most, since half of all
        paths do not pass through it. A plain network is then near chance. Exchanging blocks shows the same.
Source  A. Veit et al. 2016, arXiv:1605.06431, figures 3 and 5 (there with a pre-activation ResNet-110 and with VGG).
Cost    That of training its networks (what `degradation.py` or `layer_responses.py` has trained is taken from the
        cache), then minutes. --quick: depths 20 and 56, 5,000 training images of 16x16 pixels, 40 epochs: 25 minutes
        on two CPU cores.

Only blocks that keep their input's shape are deleted or exchanged: without its block, a plain network has nothing that
could change a shape.

    python studies/ensemble_view.py [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from experiment import Claim, Row, arguments, choose_recipe, data_for, keep, say, some_of_test, trained
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from resnetlab.data.pack import Pack
from resnetlab.evaluation.blocks import BlockChain
from resnetlab.models import architecture
from resnetlab.report import plots

EXCHANGES, DRAWS = (1, 2, 4, 8), 5
FEW_POINTS = 5.0  # of accuracy
NEAR_CHANCE = 15.0  # per cent accuracy, of ten classes


def look(blocks: BlockChain, data: Pack, *, images: int, seed: int) -> list[Row]:
    """Test error as it is, without each block in turn, and after exchanges of blocks."""
    pixels, labels = some_of_test(data, images, seed)
    rows: list[Row] = [{"what": "whole", "test_error": blocks.error(blocks.stages, pixels, labels)}]
    for gone, error in blocks.errors_without_each(pixels, labels).items():
        rows.append({"what": "deleted", "block": gone, "test_error": error})
    rng = np.random.default_rng(seed)
    for times in EXCHANGES:
        errors = [blocks.error(blocks.exchange(times, rng), pixels, labels) for _ in range(DRAWS)]
        rows.append({"what": "exchanged", "exchanges": times, "test_error": float(np.mean(errors)), "draws": errors})
    return rows


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    styles = {
        "resnet56": (plots.BLUE, "-"),
        "resnet20": (plots.BLUE, ":"),
        "plain56": (plots.ORANGE, "-"),
        "plain20": (plots.ORANGE, ":"),
    }
    for name, (colour, style) in styles.items():
        mine = [row for row in rows if row["network"] == name]
        whole = next(row["test_error"] for row in mine if row["what"] == "whole")
        deleted = [row["test_error"] for row in mine if row["what"] == "deleted"]
        places = np.linspace(0, 1, len(deleted))
        left.plot(
            places, deleted, style, marker="o", markersize=3, color=colour, label=f"{name} (whole: {100 * whole:.0f} %)"
        )
        swaps = [(row["exchanges"], row["test_error"]) for row in mine if row["what"] == "exchanged"]
        right.plot(*zip((0, whole), *swaps, strict=True), style, marker="o", markersize=3, color=colour)
    for axes in (left, right):
        axes.axhline(0.9, color=plots.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.tick_params(labelleft=True)
    right.text(0, 0.91, "guessing", color=plots.MUTED, fontsize=8.5, va="bottom")
    left.set_title("Without one block")
    left.set_xlabel("which one, from the first (0) to the last (1)")
    left.set_ylabel("test error")
    right.set_title("After exchanging blocks")
    right.set_xlabel("exchanges")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def claims(rows: Sequence[Row]) -> list[Claim]:
    accuracy = {
        name: {
            what: [100 * (1 - row["test_error"]) for row in rows if row["network"] == name and row["what"] == what]
            for what in ("whole", "deleted", "exchanged")
        }
        for name in dict.fromkeys(row["network"] for row in rows)
    }
    deep, plain = accuracy["resnet56"], accuracy["plain56"]
    (whole,) = deep["whole"]
    median, worst = float(np.median(deep["deleted"])), min(deep["deleted"])
    return [
        Claim(
            f"Deleting any one block of ResNet-56 costs at most {FEW_POINTS:.0f} points of test accuracy.",
            f"{whole:.1f} % whole; {worst:.1f} % without the block that costs most ({whole - worst:.1f} points)",
            whole - worst <= FEW_POINTS,
        ),
        Claim(
            f"Deleting the median block of ResNet-56 costs at most {FEW_POINTS:.0f} points.",
            f"{whole:.1f} % whole; {median:.1f} % ({whole - median:.1f} points)",
            whole - median <= FEW_POINTS,
        ),
        Claim(
            f"Deleting the median block of plain-56 leaves it near chance (at most {NEAR_CHANCE:.0f} %).",
            f"{plain['whole'][0]:.1f} % whole; {np.median(plain['deleted']):.1f} %",
            float(np.median(plain["deleted"])) <= NEAR_CHANCE,
        ),
        Claim(
            "After one exchange of two blocks, ResNet-56 keeps more of its accuracy than plain-56.",
            f"{deep['exchanged'][0] / whole:.0%} of it against {plain['exchanged'][0] / plain['whole'][0]:.0%}",
            deep["exchanged"][0] / whole > plain["exchanged"][0] / plain["whole"][0],
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    recipe = choose_recipe(options)
    data = data_for(recipe)
    images = 2000 if options.quick else 10_000
    rows: list[Row] = []
    for name in ("resnet56", "resnet20", "plain56", "plain20"):
        arch = architecture(name)
        network, _ = trained(arch, recipe, data)
        say(f"{name}: deleting and exchanging blocks")
        chain = BlockChain(network, arch)
        rows += [{"network": name} | row for row in look(chain, data, images=images, seed=options.seed)]
    keep(
        "ensemble-view",
        "Test error after deleting and exchanging blocks, plain and residual networks on CIFAR-10",
        options,
        configuration=recipe.model_dump(mode="json") | {"test_images": images},
        rows=rows,
        claims=claims(rows),
        draw=draw,
        size=(8.5, 4.5),
    )


if __name__ == "__main__":
    main()
