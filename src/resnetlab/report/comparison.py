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


def table(rows: Sequence[Row]) -> str:
    """A table of at most 80 columns, grouped by configuration; the fastest row is marked with a star.

    Failed measurements are shown as dashes; `problems` gives the reasons.
    """
    done = [row for row in rows if not row.get("problem")]
    fastest = max(done, key=lambda row: row["end_to_end"]["median"], default=None)
    lines = [
        "         first       training, images/s     predict   loader                  of",
        " batch  step,s  compute   all in       ±  images/s  images/s   limit   GB matmul",
    ]
    before = None
    for row in rows:
        if row["configuration"] != before:
            before = row["configuration"]
            lines.append(before)
        if row.get("problem"):
            lines.append(f"{row['batch_size']:6}" + "".join(f"{'–':>{w}}" for w in (8, 9, 9, 8, 10, 10)))
            continue
        first = row["import_seconds"] + row["build_seconds"] + row["first_step_seconds"]
        train = row["train"]
        cells = (
            (f"{row['batch_size']}", 6),
            (f"{first:.1f}", 8),
            (_number(train["median"]), 9),
            (_number(row["end_to_end"]["median"]), 9),
            (_number(train["deviation"]) if train["n"] > 1 else "–", 8),  # one measurement has no spread
            (_number(row["inference"]["median"]), 10),
            (_number(row["loader"]), 10),
            (row["bottleneck"], 8),
            (f"{row['peak_memory'] / 1e9:.1f}", 5),
            (f"{row['matmul_share']:.0%}", 5),
        )
        lines.append("".join(f"{text:>{width}}" for text, width in cells) + (" *" if row is fastest else ""))
    return "\n".join(lines)


def problems(rows: Sequence[Row]) -> list[str]:
    """The reasons for missing measurements, one sentence each."""
    return [
        f"{row['configuration']}, batch size {row['batch_size']}: {row['problem']}"
        for row in rows
        if row.get("problem")
    ]


def chart(found: dict[str, Any], path: Path) -> None:
    """Plot end-to-end training throughput over batch size, with a line for each configuration."""
    done = [row for row in found["rows"] if not row.get("problem")]
    labels = list(dict.fromkeys(row["configuration"] for row in done))
    facts = found["configuration"]
    hardware = " and ".join(filter(None, (found["device"]["cpu"], found["device"]["gpu"])))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, color in zip(labels, cycle((*plots.PALETTE, plots.INK)), strict=False):
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
