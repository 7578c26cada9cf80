"""Measurements, kept with their conditions: one schema for `results/`, for `resnetlab compare` and for the benchmarks.

A result is a JSON object:

    what            one sentence: what was measured
    configuration   the settings that are the same for all rows
    measured_at     date (UTC)
    commit          of this project, with "+changes" where the working tree had some; None outside a checkout
    environment     `environment.snapshot()`: versions, processor, its instructions, cores, settings
    device          the CPU and its number of cores, and the GPU if there is one
    rows            the measurements: the settings that differ between rows, and in timed ones the fields of `Timing`
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resnetlab import environment
from resnetlab.atomic import atomic_file


@dataclass(frozen=True)
class Timing:
    """Statistics of a throughput over repeated measurements, in images per second or another `unit`."""

    n: int
    median: float
    mean: float
    deviation: float  # standard deviation over the repeats
    minimum: float
    maximum: float
    unit: str = "images/s"

    @classmethod
    def of(cls, values: Sequence[float], unit: str = "images/s") -> Timing:
        return cls(
            n=len(values),
            median=statistics.median(values),
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if len(values) > 1 else 0.0,
            minimum=min(values),
            maximum=max(values),
            unit=unit,
        )

    def to_json(self) -> dict[str, Any]:
        return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(self).items()}


def result(
    what: str, *, configuration: dict[str, Any], rows: Sequence[dict[str, Any]], gpu: str | None = None
) -> dict[str, Any]:
    """A result in the schema above."""
    snapshot = environment.snapshot()
    return {
        "what": what,
        "configuration": configuration,
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "environment": snapshot,
        "device": {"cpu": snapshot["cpu"], "cores": snapshot["cores"], "gpu": gpu},
        "rows": list(rows),
    }


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a result as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def commit() -> str | None:
    """The commit of the checkout this package is imported from, or None."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=here, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
