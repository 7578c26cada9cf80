"""Render the report for the terminal: readable without colour, with commands that can be copied."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

    from resnetlab.doctor import Report

MARKS = {
    "ok": ("ok", "green"),
    "info": ("-", "dim"),
    "warning": ("warn", "yellow"),
    "error": ("ERROR", "bold red"),
}


def render(report: Report) -> Group:
    """A rich renderable, at most 100 columns wide."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=5, no_wrap=True)
    table.add_column(width=max(len(finding.part) for finding in report.findings), no_wrap=True)
    table.add_column(max_width=70, overflow="fold")
    for section, findings in groupby(report.findings, key=lambda finding: finding.section):
        table.add_row("", Text(section, style="bold"), "")
        for finding in findings:
            mark, style = MARKS[finding.status]
            # Text, not markup: "resnetlab[gpu]" must keep its brackets.
            text = Text(finding.found)
            if finding.needed:
                text.append(f"{', ' if finding.status == 'ok' else chr(10)}needed: {finding.needed}", "dim")
            if finding.fix:
                text.append("\nfix: ", "dim").append(finding.fix, "bold" if finding.status != "info" else "")
            table.add_row(Text(mark, style), finding.part, text)
        table.add_row()
    style = "bold green" if report.exit_code == 0 else "bold red"
    return Group(table, Padding(Text.assemble(("Summary  ", style), report.summary), (0, 0, 1, 0)))
