"""Layer responses: are those of residual networks smaller, and smaller still in deeper ones?

Claim   The responses of a residual network's layers (after batch norm, before the sum and the ReLU) have smaller
        standard deviations than those of a plain network, and a deeper residual network's are smaller still: each
        block only modifies its input.
Source  K. He et al. 2015, arXiv:1512.03385, section 4.2, "Analysis of Layer Responses", and figure 7.
Cost    That of training its networks (what `degradation.py` or `ensemble_view.py` has trained is taken from the cache),
        then a minute. --quick: depths 20 and 56, 5,000 training images of 16x16 pixels, 40 epochs: 23 minutes on
        two CPU cores. So few updates leave batch norm's scales, which are these deviations, near the 1 that
        they begin with: it shows the difference between plain and residual faintly, and that of depth not at all.

    python studies/layer_responses.py [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from experiment import Claim, Row, arguments, choose_recipe, data_for, keep, keras, some_of_test, trained
from matplotlib.figure import Figure

from resnetlab.data.pack import Pack
from resnetlab.models import architecture, summarize
from resnetlab.report import plots

IMAGES = 500
SMALLER = 0.9  # of the other network's mean standard deviation: what counts as a smaller response


def responses(network: keras.Model, data: Pack) -> list[Row]:
    """Standard deviation of each 3x3 layer's output, over images, places and channels."""
    norms = [layer for layer in network.layers if "bn" in layer.name and "shortcut" not in layer.name]
    images, _ = some_of_test(data, IMAGES, 0)
    watched = keras.Model(network.input, [layer.output for layer in norms])
    outputs = watched.predict(images, batch_size=100, verbose=0)
    return [
        {"layer": layer.name, "place": place, "deviation": float(np.std(output))}
        for place, (layer, output) in enumerate(zip(norms, outputs, strict=True), start=1)
    ]


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    above, below = figure.subplots(2, 1)
    names = list(dict.fromkeys(row["network"] for row in rows))
    depths = sorted({row["depth"] for row in rows})
    colours = dict(zip(depths, plots.shades(len(depths)), strict=True))
    for name in names:
        mine = [row for row in rows if row["network"] == name]
        style = {"color": colours[mine[0]["depth"]], "linestyle": "--" if name.startswith("plain") else "-"}
        above.plot([row["place"] for row in mine], [row["deviation"] for row in mine], label=name, **style)
        ranked = sorted((row["deviation"] for row in mine), reverse=True)
        below.plot(range(1, len(ranked) + 1), ranked, **style)
    above.set_title("Responses from stem to head")
    above.set_xlabel("layer")
    below.set_title("The same, sorted by size")
    below.set_xlabel("rank")
    for axes in (above, below):
        axes.set_ylabel("standard deviation")
        axes.set_ylim(bottom=0)
    above.legend(ncols=2)


def claims(rows: Sequence[Row]) -> list[Claim]:
    mean = {
        name: float(np.mean([row["deviation"] for row in rows if row["network"] == name]))
        for name in dict.fromkeys(row["network"] for row in rows)
    }
    depths = sorted({row["depth"] for row in rows if f"plain{row['depth']}" in mean})
    residual = sorted({row["depth"] for row in rows})
    return [
        Claim(
            "The responses of residual networks are smaller than those of plain networks (by 10 % or more).",
            "mean standard deviation, residual over plain: "
            + ", ".join(f"{mean[f'resnet{d}'] / mean[f'plain{d}']:.2f} at {d} layers" for d in depths),
            all(mean[f"resnet{d}"] < SMALLER * mean[f"plain{d}"] for d in depths),
        ),
        Claim(
            "The responses of the deeper residual network are smaller still (by 10 % or more).",
            f"mean standard deviation: {mean[f'resnet{residual[0]}']:.2f} at {residual[0]} layers, "
            f"{mean[f'resnet{residual[-1]}']:.2f} at {residual[-1]}",
            mean[f"resnet{residual[-1]}"] < SMALLER * mean[f"resnet{residual[0]}"],
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    names = ["plain20", "plain56", "resnet20", "resnet56"] + ([] if options.quick else ["resnet110"])
    recipe = choose_recipe(options)
    data = data_for(recipe)
    rows: list[Row] = []
    for name in names:
        arch = architecture(name)
        network, _ = trained(arch, recipe, data)
        rows += [{"network": name, "depth": summarize(arch).depth} | row for row in responses(network, data)]
    keep(
        "layer-responses",
        "Standard deviation of each layer's response after batch norm, plain and residual networks on CIFAR-10",
        options,
        configuration=recipe.model_dump(mode="json") | {"images": IMAGES},
        rows=rows,
        claims=claims(rows),
        draw=draw,
        size=(8, 7),
    )


if __name__ == "__main__":
    main()
