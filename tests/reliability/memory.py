"""Train for hours, and state how the memory of the process grows.

Claim   After the warm-up, the resident memory of the process grows by at most 1 MiB an hour.
How     `resnetlab.train` on a packed data set, with checkpoints and a validation per epoch. After each epoch, when no
        step is in progress, four figures are read; the slope of each is that of a straight line fitted to it:
        - resident memory, without the files that it maps;
        - what malloc holds, in use or free; resident memory may grow towards it, as more of its pages are touched;
        - what is allocated with malloc: growth would be a leak. Growth of the others alone is fragmentation;
        - the tensors of TensorFlow, which lie in regions that malloc counts as a whole.
Cost    As long as is asked for, on two CPU cores.

    python -m tests.reliability.memory --hours 2.2 --data cifar10
    python -m tests.reliability.memory --data cifar10 --recipe cifar-paper-quick --set model=resnet56 --set epochs=24
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import resnetlab as rl
from resnetlab import results
from resnetlab.progress import LogProgress, Record
from resnetlab.recipes import RECIPES, Recipe, parse_settings
from tests.reliability.limits import ROOT, process_status

# By default: a network with the most steps in an hour that CIFAR-10 allows, trained until the time is over.
SETTINGS = ["model=resnet-tiny", "image_size=32", "epochs=1000000", "early_stopping=0", "batch_size=64"]
MIB_PER_HOUR = 1.0


class MallocState(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>, in bytes, over all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def malloc_state() -> tuple[float, float]:
    """MiB that malloc holds, and that are allocated with it and not freed."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocState
    state = libc.mallinfo2()
    return (state.arena + state.hblkhd) / 2**20, (state.uordblks + state.hblkhd) / 2**20


def tensors() -> float:
    """MiB of TensorFlow's tensors on the CPU."""
    import tensorflow as tf

    return float(tf.config.experimental.get_memory_info("CPU:0")["current"]) / 2**20


class Watch(LogProgress):
    """Reads the figures after each epoch, and ends training after so many hours."""

    def __init__(self, hours: float) -> None:
        self.hours, self.began = hours, time.monotonic()
        self.samples: list[tuple[float, ...]] = []  # hours; MiB resident, held, allocated, of tensors

    def epoch(self, record: Record, *, best: bool) -> None:
        passed = (time.monotonic() - self.began) / 3600
        self.samples.append((passed, process_status("RssAnon"), *malloc_state(), tensors()))
        print(*(f"{value:.3f}" for value in self.samples[-1]), flush=True)
        if passed >= self.hours:
            os.kill(os.getpid(), signal.SIGTERM)


def slope(hours: np.ndarray, mib: np.ndarray) -> tuple[float, float]:
    """MiB per hour of the straight line that fits best, and its standard error."""
    (rate, _), covariance = np.polyfit(hours, mib, 1, cov=True)
    return float(rate), float(np.sqrt(covariance[0, 0]))


def run(hours: float, warm_up: float, data: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
    watch = Watch(hours)
    trained = rl.train(data, recipe=recipe, run=folder, progress=watch)
    at, *found = np.array(watch.samples).T
    after = at >= warm_up
    if after.sum() < 4:
        sys.exit(f"Only {after.sum()} epochs ended after the warm-up, expected at least 4: train for longer.")
    slopes = [slope(at[after], mib[after]) for mib in found]
    (rate, error), *others = slopes
    resident = found[0]
    return {
        "hours": round(float(at[-1]), 2),
        "warm_up_hours": warm_up,
        "epochs": len(at),
        "steps": trained.history[-1]["step"],
        "mib_after_warm_up": round(float(resident[after][0]), 1),
        "mib_at_the_end": round(float(resident[-1]), 1),
        "mib_per_hour": round(rate, 3),
        "standard_error": round(error, 3),
        **{
            f"{name}_{figure}": round(value, 3)
            for name, pair in zip(("held", "allocated", "tensors"), others, strict=True)
            for figure, value in zip(("mib_per_hour", "standard_error"), pair, strict=True)
        },
        "mib_by_hours": [[round(value, 3) for value in sample] for sample in watch.samples[:: max(1, len(at) // 60)]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.2)
    parser.add_argument("--warm-up", type=float, default=0.2, help="hours that are not counted (default: %(default)s)")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help=f"by default {' '.join(SETTINGS)}")
    parser.add_argument("--run", type=Path, help="keep the run folder here")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    settings = options.set or SETTINGS
    recipe = RECIPES[options.recipe].changed(**parse_settings(settings))
    with tempfile.TemporaryDirectory() as temporary:
        row = run(options.hours, options.warm_up, options.data, recipe, options.run or Path(temporary, "run"))
    print(json.dumps({key: value for key, value in row.items() if key != "mib_by_hours"}, indent=2))
    configuration = {"recipe": options.recipe, "settings": settings, "data": options.data}
    what = "Memory of a long training run by hours: resident, without mapped files; held; allocated; of tensors"
    results.write(
        options.out / "reliability-memory.json", results.result(what, configuration=configuration, rows=[row])
    )
    sys.exit(row["mib_per_hour"] > MIB_PER_HOUR)


if __name__ == "__main__":
    main()
