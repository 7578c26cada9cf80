"""Training on the CPU, us and the peers side by side.

Claim: on two cores `resnetlab train` beats keras.applications as installed, and the best native PyTorch, at the same
batch in float32, and comes near the rate at which the machine multiplies matrices.

    python benchmarks/throughput.py                         all jobs, about 25 minutes on two cores
    python benchmarks/throughput.py --job resnet50-64-b32   one of them, 5 minutes; may be repeated
    python benchmarks/throughput.py --quick                 a look, 8 minutes
    python benchmarks/throughput.py --job resnet50-64-b32 --variants    what holds our speed: memory, threads

Every contender is a process kept alive; a round times each of them once, in an order that rotates, so that the
machine's drift hits all alike. Each round gives its own ratios and its own matrix-product rate (2048 cubed, float32;
the better of PyTorch's and TensorFlow's); what is told are medians over the rounds. `first-step` times a process from
its start to the end of its first training step, and `help` times `resnetlab --help`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import MATRIX_SIDE, SOURCE, Child, Contender, Failed, Job  # puts src/ on the path

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
STARTS = ("first-step", "help")

OURS = [Contender(f"ours, {backend}", "ours", {"backend": backend}) for backend in environment.BACKENDS]
_KERAS = ("keras.applications", {"backend": "tensorflow"})
KERAS_PEERS = [
    Contender("keras.applications, as installed", *_KERAS),
    Contender("keras.applications, oneDNN on", *_KERAS, {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    Contender("keras.applications, oneDNN off", *_KERAS, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
]
MACHINE = [
    Contender(f"matrix product, {framework}", "matrix product", {"framework": framework})
    for framework in ("torch", "tensorflow")
]


def native_peers(job: Job) -> list[Contender]:
    networks = ("by hand",) if job.size == 32 else ("transformers", "torchvision", "timm")
    return [
        Contender(f"{network}, {how}", "native", {"network": network, "compiled": how == "torch.compile"})
        for network in networks
        for how in ("eager", "torch.compile")
    ]


def variants(preload: Sequence[str]) -> list[Contender]:
    """Ours, and with one setting changed: freed memory, huge pages, other allocators, threads."""
    made = []
    for backend in ("tensorflow", "torch"):
        settings = {"": {}, ", freed memory returned": {"MALLOC_MMAP_MAX_": "65536"}}  # that is glibc's default
        settings[", huge pages"] = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        settings |= {f", {Path(library).name.split('.so')[0]}": {"LD_PRELOAD": library} for library in preload}
        made += [
            Contender(f"ours, {backend}{name}", "ours", {"backend": backend}, env) for name, env in settings.items()
        ]
        made.append(Contender(f"ours, {backend}, 1 thread", "ours", {"backend": backend, "threads": 1}))
    return made


def allocators() -> list[str]:
    """tcmalloc and jemalloc, where the system has them."""
    patterns = ("libtcmalloc*.so*", "libjemalloc.so*")
    found = [path for folder in ("/usr/lib", "/usr/local/lib") for p in patterns for path in Path(folder).rglob(p)]
    return sorted({str(path.resolve()) for path in found})


def tensorflow_turns_onednn_on() -> bool:
    """TensorFlow's own rule for this processor, `DefaultOneDnnPolicy()` of tensorflow/core/util/port.cc (2.21)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    if platform.machine() == "aarch64":
        return bool(re.search(r"CPU part\s*: 0xd40\b", text))  # Neoverse V1
    flags = set(re.findall(r"\w+", next((line for line in text.splitlines() if line.startswith("flags")), "")))
    return bool(flags & {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"})


# ------------------------------------------------------------------------------------------------- measuring


def rounds(
    name: str, job: Job, contenders: Sequence[Contender], *, repeats: int, seconds: float, steps: int | None
) -> list[dict[str, Any]]:
    """Time all contenders at one job: rows of rates, of failures, and of ratios."""
    rows: list[dict[str, Any]] = []
    alive: list[tuple[Child, int]] = []
    for contender in [*MACHINE, *contenders]:
        say(f"{name}: starting {contender.name}")
        try:
            child = Child(contender, job)
            child.train(1)  # TensorFlow's second step still settles things
            needed = child.train(1)
        except Failed as failure:
            rows.append({"job": name, "contender": contender.name, "failed": str(failure)})
            continue
        alive.append((child, steps or max(1, min(200, round(seconds / max(needed, 1e-3))))))

    rates: dict[str, list[float]] = {child.contender.name: [] for child, _ in alive}
    processor: dict[str, list[float]] = {name: [] for name in rates}
    for number in range(repeats):
        shift = number * 3 % len(alive)  # another order each round, so that no one always follows the same neighbour
        for child, count in [*alive[shift:], *alive[:shift]]:
            amount = 2 * MATRIX_SIDE["float32"] ** 3 / 1e9 if child.contender in MACHINE else job.batch
            rates[child.contender.name].append(count * amount / child.train(count, net=True))
            processor[child.contender.name].append(1e3 * child.processor / (count * amount))
        say(f"{name}: round {number + 1} of {repeats}")
    for child, _ in alive:
        child.close()

    machine = [max(pair) for pair in zip(*(rates[m.name] for m in MACHINE if m.name in rates), strict=True)]
    for child, count in alive:
        who = child.contender.name
        row = {"job": name, "contender": who, "steps": count}
        if child.contender in MACHINE:
            rows.append(row | results.Timing.of(rates[who], "GFLOP/s").to_json())
            continue
        shares = [rate * job.train_flop / 1e9 / limit for rate, limit in zip(rates[who], machine, strict=True)]
        row["share_of_matrix_product"] = round(statistics.median(shares), 4)
        row["processor_ms_per_image"] = round(statistics.median(processor[who]), 2)
        rows.append(row | results.Timing.of(rates[who]).to_json())
    return rows + ratios(name, rates)


def ratios(job: str, rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Each of ours over each peer, round by round."""
    our_names = [name for name in rates if name.startswith("ours")]
    peer_names = [name for name in rates if not name.startswith(("ours", "matrix"))]
    return [
        {"job": job, "ours": mine, "over": peer}
        | results.Timing.of([a / b for a, b in zip(rates[mine], rates[peer], strict=True)], "x").to_json()
        for mine in our_names
        for peer in peer_names
    ]


def first_step(repeats: int) -> list[dict[str, Any]]:
    """Seconds from the start of a process to the end of its first step of ResNet-50, 64x64, batch 32."""
    spent: dict[str, list[dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    for number in range(repeats):
        for contender in [*OURS, *KERAS_PEERS[:1], *native_peers(JOBS["resnet50-64-b32"])[:1]]:
            say(f"first-step: round {number + 1}, {contender.name}")
            try:
                child = Child(contender, JOBS["resnet50-64-b32"])
                child.train(1)
                steady = child.train(2) / 2
                child.close()
            except Failed as failure:
                if not number:
                    rows.append({"job": "first-step", "contender": contender.name, "failed": str(failure)})
                continue
            at = child.marks
            parts = {"import": at["import"], "build": at["build"] - at["import"], "total": at["step"]}
            parts["trace_and_compile"] = max(0.0, at["step"] - at["build"] - steady)
            spent.setdefault(contender.name, []).append(parts)
    for name, runs in spent.items():
        parts = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0] if key != "total"}
        total = results.Timing.of([run["total"] for run in runs], "s").to_json()
        rows.append({"job": "first-step", "contender": name, "parts": parts} | total)
    return rows


def help_time(repeats: int) -> list[dict[str, Any]]:
    """Seconds that `resnetlab --help` takes."""
    script = Path(sys.executable).with_name("resnetlab")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "resnetlab.cli"]
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        environ = os.environ | {"PYTHONPATH": str(SOURCE)}
        subprocess.run([*command, "--help"], check=True, stdout=subprocess.DEVNULL, env=environ)
        seconds.append(time.perf_counter() - began)
    return [{"job": "help", "contender": "ours"} | results.Timing.of(seconds[1:], "s").to_json()]  # the first is cold


# --------------------------------------------------------------------------------------------------- telling


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A short table, ratios first: the fastest of ours against each peer."""
    for job in dict.fromkeys(row["job"] for row in rows):
        mine = [row for row in rows if row["job"] == job]
        timed = [row for row in mine if "contender" in row and "median" in row]
        fastest = max((r for r in timed if r["contender"].startswith("ours")), key=lambda r: r["median"], default=None)
        print(f"\n{job}")
        for row in mine:
            if "over" in row and fastest and row["ours"] == fastest["contender"]:
                low, high = row["minimum"], row["maximum"]
                print(f"  {row['median']:6.2f} x  {row['ours']} over {row['over']}  ({low:.2f} - {high:.2f})")
        for row in sorted(timed, key=lambda r: -r["median"]):
            share = row.get("share_of_matrix_product")
            more = f"  {share:.0%} of the matrix-product rate" if share else f"  {row.get('parts', '')}"
            if "processor_ms_per_image" in row:
                more += f", {row['processor_ms_per_image']:.1f} ms of processor time an image"
            print(f"  {row['median']:8.2f} {row['unit']:9} ± {row['deviation']:.2f}  {row['contender']}{more}")
        for row in mine:
            if "failed" in row:
                print(f"    failed  {row['contender']}: {row['failed']}")


def machine_name() -> str:
    """A short name of this machine, for a file's name."""
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", "", environment.cpu_name().lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + f"-{environment.usable_cores()}-cores"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=[*JOBS, *STARTS], help="default: all")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one contender in one round, about")
    parser.add_argument("--steps", type=int, help="instead: a fixed number of steps")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 seconds")
    parser.add_argument("--variants", action="store_true", help="ours with one setting changed, instead of the peers")
    parser.add_argument("--preload", action="append", default=[], help="an allocator's library to try as a variant")
    parser.add_argument("--only", help="contenders whose name matches this regular expression")
    parser.add_argument("--machine", default=machine_name(), help="what to call this machine")
    parser.add_argument("--out", type=Path, help="default: results/throughput-MACHINE.json")
    options = parser.parse_args()
    repeats, seconds = (3, 2.0) if options.quick else (options.repeats, options.seconds)
    jobs = options.job or [*JOBS, *STARTS]

    onednn = "on" if tensorflow_turns_onednn_on() else "off"
    kind = "variants" if options.variants else "throughput"
    out = options.out or SOURCE.parent / "results" / f"{kind}-{options.machine}.json"
    rows: list[dict[str, Any]] = []
    for name in jobs:
        if name in STARTS:
            rows += first_step(min(repeats, 3)) if name == "first-step" else help_time(max(repeats, 10))
        else:
            job = JOBS[name]
            peers = [*(KERAS_PEERS if job.model == "resnet50" else ()), *native_peers(job)]
            contenders = variants([*allocators(), *options.preload]) if options.variants else [*OURS, *peers]
            contenders = [each for each in contenders if not options.only or re.search(options.only, each.name)]
            rows += rounds(name, job, contenders, repeats=repeats, seconds=seconds, steps=options.steps)
        configuration = {
            "precision": "float32",
            "optimizer": "SGD, momentum 0.9, Nesterov",
            "threads": f"each contender's own default on {environment.usable_cores()} cores",
            "as installed": f"TensorFlow's own rule turns oneDNN {onednn} on this processor",
            "repeats": repeats,
            "load at the end": [round(load, 2) for load in os.getloadavg()],
        }
        # After each job, so that what was measured stays if a later one is cut short.
        results.write(
            out, results.result("Training throughput, us and the peers", configuration=configuration, rows=rows)
        )
    show(rows)
    print(f"\n'as installed' here: oneDNN {onednn}. Written to {out}")


if __name__ == "__main__":
    main()
