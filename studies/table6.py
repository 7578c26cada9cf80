"""Table 6 of He et al. 2015: the test error of ResNets of each depth on CIFAR-10; the paper's, ours, public weights'.

Claim   Our networks, trained by cifar-paper-quick in fewer epochs than the paper's, have an error no higher than the
        paper's. Public weights of these networks, imported, have their published error.
Source  K. He et al. 2015, arXiv:1512.03385, table 6 (for ResNet-110: the best of five runs, mean 6.61 ± 0.16);
        Y. Idelbayev, github.com/akamaster/pytorch_resnet_cifar10 (its published errors).
Cost    A minute: it reads what `accuracy.py cifar-paper-quick --model resnetN [--set epochs=E]` keeps, and evaluates
        the public weights in $RESNETLAB_DATA/weights. --quick is the same.

    python studies/table6.py
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiment import Claim, Row, arguments, keep
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import resnetlab as rl
from resnetlab.progress import LogProgress, format_count
from resnetlab.report import plots

PAPER = {20: 0.0875, 32: 0.0751, 44: 0.0717, 56: 0.0697, 110: 0.0643}
PUBLISHED = {20: 0.0827, 56: 0.0661}  # of the public weights
ONE_SEED = 0.008  # of 10,000 test images, two networks of an error of 8 % differ by as much in one case of 20
PUBLIC = "public weights, imported"
COLOURS = {"paper": plots.MUTED, "ours": plots.BLUE, PUBLIC: plots.ORANGE}


def ours(results: Path) -> Iterator[Row]:
    for depth in PAPER:
        stem = f"accuracy-cifar-paper-quick-resnet{depth}"
        paths = [*results.glob(f"{stem}.json"), *sorted(results.glob(f"{stem}-epochs=*.json"))]
        if not paths:
            continue
        found = json.loads(paths[0].read_text("utf-8"))
        errors = [1 - row["top1"] for row in found["rows"]]
        yield {
            "whose": "ours",
            "depth": depth,
            "error": round(statistics.fmean(errors), 5),
            "deviation": round(statistics.stdev(errors), 5) if len(errors) > 1 else None,
            "n": len(errors),
            "epochs": found["configuration"]["epochs"],
            "training": " and ".join(trainings(found["rows"])),
            "commits": list(dict.fromkeys(row["commit"] for row in found["rows"])),
        }


def trainings(rows: Sequence[Row]) -> Iterator[str]:
    """The mean time of the trainings on each machine."""
    for machine in dict.fromkeys((row["device"], row["cores"], row["precision"]) for row in rows):
        device, cores, precision = machine
        seconds = [row["seconds"] for row in rows if (row["device"], row["cores"], row["precision"]) == machine]
        yield f"{statistics.fmean(seconds) / 60:.0f} min on {format_count(cores, 'core')} of {device}, {precision}"


def public(folder: Path) -> Iterator[Row]:
    for depth, published in PUBLISHED.items():
        for path in sorted(folder.glob(f"resnet{depth}-*.th")):
            with tempfile.TemporaryDirectory() as temporary:
                run = rl.from_pretrained(path, run=Path(temporary, "run"), shortcut_padding="both")
                error = 1 - run.evaluate("cifar10", progress=LogProgress()).top1
            yield {"whose": PUBLIC, "depth": depth, "error": round(error, 5), "published": published}


def at_most(error: float, paper: float, seeds: int) -> bool | None:
    """Whether a mean error is at most the paper's, a single one; None if the seeds are too few to tell."""
    noise = ONE_SEED * math.sqrt((1 + 1 / seeds) / 2)
    return None if abs(error - paper) < noise else error <= paper


def claims(rows: Sequence[Row]) -> list[Claim]:
    found = []
    for row in rows:
        if row["whose"] == "ours":
            spread = f" ± {100 * row['deviation']:.2f}" if row["deviation"] is not None else ""
            found.append(
                Claim(
                    f"ResNet-{row['depth']} has an error of at most {100 * PAPER[row['depth']]:.2f} %, the paper's.",
                    f"{100 * row['error']:.2f}{spread} % (n = {row['n']}), {row['epochs']} epochs, {row['training']}",
                    at_most(row["error"], PAPER[row["depth"]], row["n"]),
                )
            )
        elif row["whose"] == PUBLIC:
            found.append(
                Claim(
                    f"Public weights of ResNet-{row['depth']} have their published error of "
                    f"{100 * row['published']:.2f} %.",
                    f"{100 * row['error']:.2f} %",
                    abs(row["error"] - row["published"]) < 5e-5,
                )
            )
    return found


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for whose, colour in COLOURS.items():
        mine = [row for row in rows if row["whose"] == whose]
        axes.errorbar(
            [row["depth"] for row in mine],
            [row["error"] for row in mine],
            [row.get("deviation") or 0 for row in mine],
            color=colour,
            marker="o",
            linestyle="-" if whose == "paper" else "none",
            capsize=3,
            label=whose,
        )
    axes.set(xlabel="layers", ylabel="test error", xticks=list(PAPER), title="CIFAR-10, He et al. 2015, table 6")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1, symbol=" %"))
    axes.legend()


def main() -> None:
    options = arguments(__doc__ or "")
    folder = Path(os.environ.get("RESNETLAB_DATA", "data")) / "weights"
    rows: list[Row] = [{"whose": "paper", "depth": depth, "error": error} for depth, error in PAPER.items()]
    rows += [*ours(options.out), *public(folder)]
    keep(
        "table6",
        "Test error of ResNets on CIFAR-10 by depth: the paper's, ours, and that of public weights",
        options,
        configuration={"image_size": 32},
        rows=rows,
        claims=claims(rows),
        draw=draw,
        size=(7, 4),
    )


if __name__ == "__main__":
    main()
