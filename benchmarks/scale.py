"""Several processes: what sharing the work costs on this machine, and what to expect of many GPUs.

Questions: what share of the rate of one process with two threads do two processes with a core each reach, at the same
batch size? Does it follow from the time of the all-reduces, by the model that is computed for 8, 64 and 512 GPUs?

    python benchmarks/scale.py                     about a quarter of an hour on two cores
    python benchmarks/scale.py --part model        computed, not measured

The model. In a ring of n devices, each sends 2 (n - 1) / n x G bytes to add up G bytes of gradients. Among many GPUs,
those of a node (g of them) first add up theirs, so that each has the sum of G / g bytes; these are added up by a ring
across nodes, and then collected within each node. With a step time t, and a share v of it that the transfer can overlap
with (the backward pass), the efficiency is t / (t + max(0, transfer - v t)).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
from harness import Row, say

from resnetlab import environment, results
from resnetlab.cluster import Cluster
from resnetlab.models import VARIANTS, summarize

JOBS = {  # model, side, batch size, epochs, and the fraction of the 1,797 digits that is not trained on
    "resnet20, 32x32, batch size 128": ("resnet20", 32, 128, 6, 0.6),
    "resnet50, 64x64, batch size 32": ("resnet50", 64, 32, 5, 0.9),
}
# Inputs of the model: assumptions, not measurements.
RATES = (1000, 2500)  # images/s of one GPU
BATCH = 256  # images of one GPU
NODE = 8  # GPUs
IN_NODE = 450e9  # bytes/s of a GPU to the others of its node: NVLink 4, one direction
NETWORKS = {"400 Gbit/s a GPU": 50e9, "100 Gbit/s a node": 12.5e9 / NODE}  # bytes/s of a GPU to other nodes
BACKWARD = 2 / 3  # of a step
BYTES_PER_IMAGE = 256 * 256 * 3  # in a pack of the imagenet recipe


def ring_bytes(gradients: float, count: int) -> float:
    """What each of `count` devices sends to add up their gradients."""
    return 2 * (count - 1) / count * gradients


def transfer_seconds(gradients: float, nodes: int, bandwidth: float) -> float:
    """To add up gradients among the GPUs of so many nodes; `bandwidth` is that of a GPU to other nodes."""
    return ring_bytes(gradients, NODE) / IN_NODE + ring_bytes(gradients / NODE, nodes) / bandwidth


def efficiency(step: float, transfer: float, overlap: float) -> float:
    return step / (step + max(0.0, transfer - overlap * step))


def model() -> list[Row]:
    parameters = summarize(VARIANTS["resnet50"]).parameters
    rows = []
    for network, bandwidth in NETWORKS.items():
        for rate in RATES:
            for count in (8, 64, 512):
                nodes = count // NODE
                transfer = transfer_seconds(4 * parameters, nodes, bandwidth)
                step = BATCH / rate
                rows.append(
                    {
                        "part": "model",
                        "network": network,
                        "gpus": count,
                        "images_per_second_of_one": rate,
                        "gradient_mb": round(4 * parameters / 1e6, 1),
                        "step_ms": round(1000 * step, 1),
                        "transfer_ms": round(1000 * transfer, 1),
                        "efficiency_without_overlap": round(efficiency(step, transfer, 0.0), 4),
                        "efficiency": round(efficiency(step, transfer, BACKWARD), 4),
                        "input_mb_per_second_of_a_node": round(NODE * rate * BYTES_PER_IMAGE / 1e6),
                    }
                )
    return rows


def processes(
    commands: list[list[str]], *, own_core: bool, folder: Path, variables: Mapping[str, str] | None = None
) -> list[str]:
    """Run commands at the same time, each on a core of its own if asked; their outputs."""
    cores = sorted(os.sched_getaffinity(0))
    running = []
    for number, command in enumerate(commands):
        pinned = ["taskset", "-c", str(cores[number])] if own_core else []
        environ = os.environ | harness.ENVIRONMENT | {"RESNETLAB_CACHE": str(folder / "cache")} | (variables or {})
        running.append(
            subprocess.Popen(
                [*pinned, *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [process.communicate(timeout=900)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("\n".join(outputs))
    return outputs


def all_reduces(dump: Path) -> int:
    """Operations that add up arrays of all processes, in the compiled training step."""
    texts = [path.read_text() for path in dump.glob("*jit_train_step*after_optimizations.txt")]
    (found,) = {len(re.findall(r" all-reduce(?:-start)?\(", text)) for text in texts}
    return found


def train(job: str, count: int, folder: Path, number: int) -> float:
    """Images/s of a run by `count` processes: the median of its epochs after the first two."""
    name, side, batch, epochs, held_out = JOBS[job]
    run = folder / f"run-{number}"
    settings = {
        "model": name,
        "image_size": side,
        "batch_size": batch,
        "epochs": epochs,
        "validation": 0.0,
        "test": held_out,
    }
    settings |= {"early_stopping": 0, "precision": "float32", "ema": 0.0}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    program = [sys.executable, "-m", "resnetlab.cli", "train", "digits", "--recipe", "quick", "--backend", "jax"]
    program += ["--device", "cpu", "--run", str(run), *options]
    commands = [program]
    if count > 1:
        shared = ["--coordinator", f"127.0.0.1:{harness.free_port()}", "--num-processes", str(count), "--process-id"]
        commands = [[*program, *shared, str(process)] for process in range(count)]
    dumped = {"XLA_FLAGS": f"--xla_dump_to={folder / name} --xla_dump_hlo_as_text"} if count > 1 else {}
    processes(commands, own_core=count > 1, folder=folder, variables=dumped)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(record["images_per_second"] for record in records[2:])


def seconds_to_add_up(megabytes: float, folder: Path) -> float:
    """Of two processes with a core each."""
    address = f"127.0.0.1:{harness.free_port()}"
    commands = [[sys.executable, __file__, "--add-up", address, str(n), str(megabytes)] for n in range(2)]
    outputs = processes(commands, own_core=True, folder=folder)
    return float(outputs[0].split("seconds ")[-1].split()[0])


def add_up(coordinator: str, number: str, megabytes: str, times: int = 10) -> None:
    """Print the median of the seconds that two processes take to add up so many megabytes of float32."""
    from resnetlab import backend

    backend.join(Cluster(coordinator, 2, int(number)))
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("process",))
    size = max(1, int(float(megabytes) * 1e6 / 4))
    own = jax.device_put(np.ones((1, size), np.float32), jax.local_devices()[0])
    parts = jax.make_array_from_single_device_arrays((2, size), NamedSharding(mesh, PartitionSpec("process")), [own])
    add = jax.jit(lambda x: x.sum(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    seconds = []
    for _ in range(times + 2):
        began = time.perf_counter()
        add(parts).block_until_ready()
        seconds.append(time.perf_counter() - began)
    print(f"seconds {statistics.median(seconds[2:])}")


def measured(rounds: int) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for job, (name, _, batch, _, _) in JOBS.items():
            rates: dict[int, list[float]] = {1: [], 2: []}
            for number in range(rounds):
                for count in (1, 2) if number % 2 else (2, 1):
                    rates[count].append(train(job, count, folder, len(list(folder.glob("run-*")))))
                    say(f"{job}, {count} processes: {rates[count][-1]:.1f} images/s")
            ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
            gradients = 4 * summarize(VARIANTS[name], 32, 10).parameters / 1e6
            transfer, latency = (seconds_to_add_up(megabytes, folder) for megabytes in (gradients, 1e-4))
            times = all_reduces(folder / name)
            step = batch / statistics.median(rates[1])
            for count, found in rates.items():
                rows.append(
                    {"part": "processes", "job": job, "processes": count}
                    | results.Timing.of(found, "images/s").to_json()
                )
            rows.append(
                {
                    "part": "ratio",
                    "job": job,
                    "gradient_mb": round(gradients, 2),
                    "step_ms_of_one_process": round(1000 * step, 1),
                    "add_up_ms": round(1000 * transfer, 1),
                    "add_up_100_bytes_ms": round(1000 * latency, 2),
                    "times_in_a_step": times,
                    "expected": round(efficiency(step, transfer + times * latency, 0.0), 3),
                }
                | results.Timing.of(ratios, "x").to_json()
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["processes", "model"], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results" / "scale.json")
    parser.add_argument("--add-up", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.add_up:
        environment.configure(backend="jax", device="cpu")
        add_up(*options.add_up)
        return
    parts = options.part or ["processes", "model"]
    rows: list[Row] = []
    rows += measured(options.rounds) if "processes" in parts else []
    rows += model() if "model" in parts else []
    configuration: dict[str, Any] = {
        "data": "digits",
        "backend": "jax",
        "threads": "one process: both cores; two processes: a core each",
        "load at the end": [round(load, 2) for load in os.getloadavg()],
        "model": {
            "images_of_one_gpu": BATCH,
            "gpus_of_a_node": NODE,
            "bytes_per_second_within_a_node": IN_NODE,
            "bytes_per_second_between_nodes": NETWORKS,
            "overlap": round(BACKWARD, 3),
            "bytes_per_image": BYTES_PER_IMAGE,
        },
    }
    results.write(options.out, results.result("Training by several processes", configuration=configuration, rows=rows))
    harness.show(rows, "part")
    print(f"\nWritten to {options.out}")


if __name__ == "__main__":
    main()
