"""Train for hours by the command, and state how the memory of its process grows.

Claim   After the warm-up, the resident memory of the process grows by at most 1 MiB an hour.
How     `resnetlab train` on a packed data set, with checkpoints and a validation per epoch; the resident memory is read
        every ten seconds, the slope is that of a straight line fitted to it.
Cost    As long as is asked for, on two CPU cores.

    python -m tests.reliability.memory --hours 2.2 --data cifar10
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab import results
from tests.reliability.limits import ROOT, process_status

SETTINGS = ("model=resnet-tiny", "image_size=32", "epochs=1000000", "early_stopping=0", "batch_size=64")
MIB_PER_HOUR = 1.0


def slope(hours: np.ndarray, mib: np.ndarray) -> tuple[float, float]:
    """MiB per hour of the straight line that fits best, and its standard error."""
    (rate, _), covariance = np.polyfit(hours, mib, 1, cov=True)
    return float(rate), float(np.sqrt(covariance[0, 0]))


def run(hours: float, warm_up: float, data: str, every: float = 10.0) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "run")
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        command = [sys.executable, "-m", "resnetlab.cli", "train", data, "--recipe", "quick", "--run", str(folder)]
        with Path(temporary, "log").open("wb") as log:
            process = subprocess.Popen([*command, *settings], stdout=log, stderr=log)
            began, times, found = time.monotonic(), [], []
            try:
                while (passed := (time.monotonic() - began) / 3600) < hours and process.poll() is None:
                    times.append(passed)
                    found.append(process_status("RssAnon", process.pid))  # without the files that it maps
                    time.sleep(every)
            finally:
                stopped_early = process.poll() is not None
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=120)
        if stopped_early:
            raise RuntimeError(f"training ended by itself:\n{Path(temporary, 'log').read_text('utf-8')[-2000:]}")
        epochs = len((folder / "metrics.jsonl").read_text().splitlines())
    at, mib = np.array(times), np.array(found)
    rate, error = slope(at[at >= warm_up], mib[at >= warm_up])
    samples = [[round(float(t), 3), round(float(m), 1)] for t, m in zip(at, mib, strict=True)]
    return {
        "hours": round(hours, 2),
        "warm_up_hours": warm_up,
        "epochs": epochs,
        "mib_after_warm_up": round(float(mib[at >= warm_up][0]), 1),
        "mib_at_the_end": round(float(mib[-1]), 1),
        "mib_per_hour": round(rate, 3),
        "standard_error": round(error, 3),
        "mib_by_hours": samples[:: max(1, len(samples) // 60)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.2)
    parser.add_argument("--warm-up", type=float, default=0.2, help="hours that are not counted (default: %(default)s)")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    row = run(options.hours, options.warm_up, options.data)
    print(json.dumps({key: value for key, value in row.items() if key != "mib_by_hours"}, indent=2))
    configuration = {"recipe": "quick", "settings": list(SETTINGS), "data": options.data}
    what = "Memory of a long training run: resident, without mapped files, by hours since the start"
    results.write(
        options.out / "reliability-memory.json", results.result(what, configuration=configuration, rows=[row])
    )
    sys.exit(row["mib_per_hour"] > MIB_PER_HOUR)


if __name__ == "__main__":
    main()
