"""A comparison of devices as a terminal table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from resnetlab.report import plots

Row = dict[str, Any]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")  # Okabe and Ito's


def table(rows: Sequence[Row]) -> str:
    """Lines of at most 80 columns, under the name of each configuration; the fastest has a star.

    What failed has dashes, and its reason in `problems`.
    """
    done = [row for row in rows if not row.get("problem")]
    fastest = max(done, key=lambda row: row["end_to_end"]["median"], default=None)
    lines = [
        "      first step    training images/s       inference    loader            peak   share",
        " batch       sec  compute     ±   all in      images/s  images/s    limit    GB  matmul",
    ]
    before = None
    for row in rows:
        if row["configuration"] != before:
            before = row["configuration"]
            lines.append(before)
        if row.get("problem"):
            lines.append(f"{row['batch_size']:6}" + "".join(f"{'–':>{w}}" for w in (10, 9, 6, 9, 14, 10)))
            continue
        first = row["import_seconds"] + row["build_seconds"] + row["first_step_seconds"]
        train, inference = row["train"], row["inference"]["median"]
        cells = (
            (f"{row['batch_size']}", 6),
            (f"{first:.1f}", 10),
            (_number(train["median"]), 9),
            (_number(train["deviation"]), 6),
            (_number(row["end_to_end"]["median"]), 9),
            (_number(inference), 14),
            (_number(row["loader"]), 10),
            (row["bottleneck"], 9),
            (f"{row['peak_memory'] / 1e9:.1f}", 6),
            (f"{row['matmul_share']:.0%}", 8),
        )
        lines.append("".join(f"{text:>{width}}" for text, width in cells) + ("  *" if row is fastest else ""))
    return "\n".join(lines)


def problems(rows: Sequence[Row]) -> list[str]:
    """Why measurements are missing, a sentence each."""
    return [
        f"{row['configuration']}, batch size {row['batch_size']}: {row['problem']}"
        for row in rows
        if row.get("problem")
    ]


def chart(found: dict[str, Any], path: Path) -> None:
    """Training rate, end to end, over batch size: a line for each configuration, named where it ends."""
    done = [row for row in found["rows"] if not row.get("problem")]
    labels = list(dict.fromkeys(row["configuration"] for row in done))
    facts = found["configuration"]
    hardware = " and ".join(filter(None, (found["device"]["cpu"], found["device"]["gpu"])))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, color in zip(labels, cycle(PALETTE), strict=False):
            rows = [row for row in done if row["configuration"] == label]
            sizes = [row["batch_size"] for row in rows]
            rates = [row["end_to_end"]["median"] for row in rows]
            low, high = (
                [rate - row["end_to_end"][end] for row, rate in zip(rows, rates, strict=True)]
                for end in ("minimum", "maximum")
            )
            spread = [[max(value, 0.0) for value in low], [max(-value, 0.0) for value in high]]
            dashed = "--" if rows[0]["device"] == "cpu" and any(row["device"] == "gpu" for row in done) else "-"
            axes.errorbar(
                sizes, rates, spread, color=color, linestyle=dashed, marker="o", markersize=4, capsize=2, label=label
            )
        ticks = sorted({row["batch_size"] for row in done})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if str(value)[0] in "25" else ""))
        axes.set_xlabel("batch size")
        axes.set_ylabel("training images per second, end to end")
        side = facts["image_size"]
        axes.set_title(
            f"Training {facts['model']} on {facts['data']} at {side}x{side}\n"
            f"{hardware}, {found['device']['cores']} cores; median and range of {facts['repeats']} repeats",
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    plots.write(draw, path, size=(9.6, 4.4))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
