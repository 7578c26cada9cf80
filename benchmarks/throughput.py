"""Training on the CPU, ours and others side by side.

Claim: on two cores `resnetlab train` on TensorFlow beats keras.applications as installed and the best native PyTorch at
the same batch in float32, and comes near the rate at which the machine multiplies matrices.

    python benchmarks/throughput.py                         all jobs, about 25 minutes on two cores
    python benchmarks/throughput.py --job resnet50-64-b32   one of them, 5 minutes; may be repeated
    python benchmarks/throughput.py --precision float32 --precision bfloat16 --job resnet50-64-b32
        both precisions in turns, PyTorch's by autocast; results in precision-MACHINE.json

A round times each contender once. Each round gives its own ratios and its own matrix-product rate (in the precision of
the contender; the better of PyTorch's and TensorFlow's); the figures are medians over the rounds. `first-step` times a
process from its start to the end of its first training step, and `help` times `resnetlab --help`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import harness  # puts src/ on the path
from contenders import MAKERS, OURS, is_product, matrix_products, native_peers, work
from harness import ChildFailed, Contender, Job, Row, RunningContender, say

from resnetlab import environment, results

JOBS = {
    "resnet50-64-b32": Job("resnet50", 64, 32),
    "resnet50-64-b128": Job("resnet50", 64, 128),
    "resnet50-224-b16": Job("resnet50", 224, 16),
    "resnet20-32-b128": Job("resnet20", 32, 128),
    # Ours from packed images, with crops and colour jitter on the device; native PyTorch with a resident batch.
    "resnet50-64-b32-augmented": Job("resnet50", 64, 32, packed=True),
    "resnet50-224-b16-augmented": Job("resnet50", 224, 16, packed=True),
}
_KERAS = ("keras_applications", {"backend": "tensorflow"})
KERAS_PEERS = [
    Contender("keras.applications, as installed", *_KERAS),
    Contender("keras.applications, oneDNN on", *_KERAS, {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    Contender("keras.applications, oneDNN off", *_KERAS, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
]
MATRIX = matrix_products("torch", "tensorflow")


def train(name: str, precisions: Sequence[str], only: str, rounds: int, seconds: float) -> list[Row]:
    """Rows of rates, of failures, and of ratios, of all contenders at one job."""
    job = JOBS[name]
    big = job.model == "resnet50"
    peers = [*KERAS_PEERS, *native_peers("transformers", "torchvision", "timm")] if big else native_peers("by hand")
    chosen = [*MATRIX, *(each for each in [*OURS, *peers] if re.search(only, each.name))]
    rows: list[Row] = []
    alive: list[RunningContender] = []
    for precision in precisions:
        named = [replace(each, name=f"{each.name}, {precision}") for each in chosen] if len(precisions) > 1 else chosen
        alive += harness.start(named, replace(job, precision=precision), where={"job": name}, rows=rows)
    by_name = {each.contender.name: each for each in alive}
    rates = harness.compare(
        alive,
        where={"job": name},
        rows=rows,
        rounds=rounds,
        amount=lambda each: work(each, 1e9),
        unit=lambda each: "GFLOP/s" if is_product(each) else "images/s",
        seconds=seconds,
        pairs=harness.ours_to_others if len(precisions) == 1 else all_to_each_other,
    )
    for each in alive:
        each.close()
    machine = matrix_rates(alive, rates)
    for row in rows:
        if row.get("unit") == "images/s":
            row["precision"] = precision = by_name[row["contender"]].job.precision
            if precision in machine:
                pairs = zip(rates[row["contender"]], machine[precision], strict=True)
                shares = [rate * flop(job, by_name[row["contender"]].contender) / 1e9 / limit for rate, limit in pairs]
                row["share_of_matrix_product"] = round(statistics.median(shares), 4)
    return rows


def flop(job: Job, contender: Contender) -> float:
    """Operations of a training step for each image; keras.applications has its own ResNet50."""
    theirs = contender.maker == "keras_applications"
    return (replace(job, model=f"keras-{job.model}") if theirs else job).train_flop


def matrix_rates(alive: Sequence[RunningContender], rates: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The matrix-product rate in each precision, round by round."""
    by_precision: dict[str, list[Sequence[float]]] = {}
    for each in alive:
        if is_product(each) and each.contender.name in rates:
            by_precision.setdefault(each.job.precision, []).append(rates[each.contender.name])
    return {precision: [max(turn) for turn in zip(*found, strict=True)] for precision, found in by_precision.items()}


def all_to_each_other(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each of ours to all others, and to itself in another precision."""
    trained = [name for name in names if not name.startswith("matrix")]
    return [(mine, name) for mine in trained if mine.startswith("ours") for name in trained if name != mine]


def first_step(rounds: int) -> list[Row]:
    """Seconds from the start of a process to the end of its first step of ResNet-50, 64x64, batch 32."""
    spent: dict[str, list[dict[str, float]]] = {}
    rows: list[Row] = []
    for number in range(rounds):
        for contender in [*OURS, *KERAS_PEERS[:1], *native_peers("transformers")[:1]]:
            say(f"first-step: round {number + 1}, {contender.name}")
            try:
                alive = RunningContender(contender, JOBS["resnet50-64-b32"])
                alive.run(1)
                steady = alive.run(2).seconds / 2
                alive.close()
            except ChildFailed as failure:
                if not number:
                    rows.append({"job": "first-step", "contender": contender.name, "failed": str(failure)})
                continue
            at = alive.marks
            parts = {"import": at["import"], "build": at["build"] - at["import"], "total": at["first"]}
            parts["trace_and_compile"] = max(0.0, at["first"] - at["build"] - steady)
            spent.setdefault(contender.name, []).append(parts)
    for name, runs in spent.items():
        parts = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0] if key != "total"}
        total = results.Timing.of([run["total"] for run in runs], "s").to_json()
        rows.append({"job": "first-step", "contender": name, "parts": parts} | total)
    return rows


def help_time(repeats: int) -> list[Row]:
    """Seconds that `resnetlab --help` takes."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        command = [sys.executable, "-m", "resnetlab.cli", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | harness.ENVIRONMENT)
        seconds.append(time.perf_counter() - began)
    return [{"job": "help", "contender": "ours"} | results.Timing.of(seconds[1:], "s").to_json()]  # the first is cold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = [*JOBS, "first-step", "help"]
    parser.add_argument("--job", action="append", choices=jobs, help="default: all")
    parser.add_argument("--precision", action="append", choices=["float32", "bfloat16"], help="default: float32")
    parser.add_argument("--only", default="", help="contenders whose name matches this regular expression")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one contender in one round, about")
    parser.add_argument("--out", type=Path, help="default: results/throughput-MACHINE.json")
    options = parser.parse_args()
    precisions = options.precision or ["float32"]
    what = "throughput" if precisions == ["float32"] else "precision"
    out = options.out or harness.ROOT / "results" / f"{what}-{harness.machine_name()}.json"
    rows: list[Row] = []
    for name in options.job or jobs:
        if name in JOBS:
            rows += train(name, precisions, options.only, options.repeats, options.seconds)
        else:
            rows += first_step(min(options.repeats, 3)) if name == "first-step" else help_time(options.repeats)
        configuration = {
            "precision": ", ".join(precisions),
            "optimizer": "SGD, momentum 0.9, Nesterov",
            "threads": f"each contender's own default on {environment.usable_cores()} cores",
            "repeats": options.repeats,
            "load at the end": [round(load, 2) for load in os.getloadavg()],
        }
        # After each job, so that what was measured stays if a later one is cut short.
        about = "Training throughput, ours and others"
        results.write(out, results.result(about, configuration=configuration, rows=rows))
    harness.show(rows, "job")
    print(f"\nWritten to {out}")


if __name__ == "__main__":
    harness.main(MAKERS, main)
