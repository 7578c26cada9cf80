"""The server: its throughput beside its engine's and a bare handler's, and 10,000 hostile requests.

Claims: 16 clients get at least 0.85 of the engine's own batch throughput, without an error; every hostile request is
answered with a 4xx or a closed connection, in bounded memory, and the next good one is answered as before.

    python benchmarks/serving.py                 ResNet-50 at 224 with random weights: ten minutes; needs hey
    python benchmarks/serving.py --export EXPORT of `resnetlab export --format onnx`
    python benchmarks/serving.py --smoke         a tiny network, in half a minute

hey (Debian: apt install hey) sends one JPEG of 300 x 225 pixels again and again. The bare handler is bare_server.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import harness  # puts src/ on the path
import hostile
from harness import Contender, Elapsed, Job, Row, RunningContender, say
from inference import exported, jpeg_files, untrained

from resnetlab import environment, results

CLIENTS = 16
ENGINE_BATCHES = (8, 32)
SERVER, BARE = "resnetlab serve", "bare FastAPI and ONNX Runtime, one image a request"
TIMEOUT = 5.0  # --timeout of the server under attack: how long a slow sender is borne with
SIDE_BY_SIDE = 32  # attacks at one time
Process = subprocess.Popen[str]


@contextmanager
def serving(command: list[str], port: int) -> Iterator[Process]:
    """A server in a process of its own, once it answers."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"The server did not start: {command}") from None
                time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def ours(folder: Path, port: int, *options: object) -> list[str]:
    return ["-m", "resnetlab.cli", "serve", str(folder), "--port", str(port), *map(str, options)]


def post(port: int, content: bytes) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", content, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def loads(folder: Path, job: Job, photo: Path, rounds: int, seconds: float) -> list[Row]:
    """The engine alone, the server and the bare handler in turns; nothing else of ours computes meanwhile."""
    ports = {SERVER: harness.free_port(), BARE: harness.free_port()}
    engines: dict[str, list[Elapsed]] = {}
    turns: dict[str, list[Row]] = {SERVER: [], BARE: []}
    with ExitStack() as stack:
        command = {SERVER: ours(folder, ports[SERVER]), BARE: bare(folder, ports[BARE])}
        servers = {name: stack.enter_context(serving(command[name], port)) for name, port in ports.items()}
        for port in ports.values():
            post(port, photo.read_bytes())
        alive = {f"engine, batch {batch}": engine(folder, job, batch) for batch in ENGINE_BATCHES}
        units = {name: each.units_in(seconds / 2) for name, each in alive.items()}
        for number in range(rounds):
            for name, each in alive.items():
                engines.setdefault(name, []).append(each.run(units[name]))
            for name, process in servers.items():
                turns[name].append(turn(process, ports[name], photo, seconds))
                say(f"round {number + 1}, {name}: {turns[name][-1]}")
        for each in alive.values():
            each.close()
    rates = {n: [units[n] * alive[n].job.batch / one.seconds for one in spent] for n, spent in engines.items()}
    rows = []
    for name, spent in engines.items():
        processor = statistics.median(1e3 * one.processor / (units[name] * alive[name].job.batch) for one in spent)
        row = {"part": "engine", "contender": name, "processor_ms_per_image": round(processor, 2)}
        rows.append(row | results.Timing.of(rates[name]).to_json())
    for name, taken in turns.items():
        best = [max(of_a_round) for of_a_round in zip(*rates.values(), strict=True)]
        ratios = [one["images_per_second"] / most for one, most in zip(taken, best, strict=True)]
        rows.append({"part": "load", "contender": name} | summary(taken))
        rows.append(
            {"part": "ratio", "ours": name, "over": "the engine's better batch"}
            | results.Timing.of(ratios, "x").to_json()
        )
    return rows


def engine(folder: Path, job: Job, batch: int) -> RunningContender:
    """The export by its engine alone."""
    contender = Contender("engine", "exported", {"folder": str(folder)})
    return RunningContender(contender, Job(job.model, job.size, batch, job.classes))


def turn(process: Process, port: int, photo: Path, seconds: float) -> Row:
    """What hey reports of so many seconds of `CLIENTS` clients, each of which waits for its answer."""
    before = processor_seconds(process)
    hey = ["hey", "-z", f"{seconds:g}s", "-c", str(CLIENTS), "-t", "60", "-m", "POST", "-T", "image/jpeg"]
    url = f"http://127.0.0.1:{port}/predict"
    shown = subprocess.run([*hey, "-D", str(photo), url], check=True, capture_output=True, text=True).stdout
    answered = {status: int(count) for status, count in re.findall(r"\[(\d+)\]\s+(\d+) responses", shown)}
    found = {
        "images_per_second": r"Requests/sec:\s+([\d.]+)",
        "p50_ms": r" 50%+ in ([\d.]+) secs",
        "p99_ms": r" 99%+ in ([\d.]+) secs",
        "slowest_ms": r"Slowest:\s+([\d.]+) secs",
    }
    row: Row = {
        key: float(match[1]) * (1e3 if key.endswith("ms") else 1)
        for key, pattern in found.items()
        if (match := re.search(pattern, shown))  # hey has no 99th percentile of fewer than 100
    }
    errors = sum(map(int, re.findall(r"\[(\d+)\]", shown.partition("Error distribution")[2])))
    row |= {"answered": answered.pop("200", 0), "errors": errors + sum(answered.values())}
    return row | {"processor_seconds": processor_seconds(process) - before}


def summary(taken: list[Row]) -> Row:
    """Of several turns: medians, and the sums of what is counted."""
    row: Row = {"clients": CLIENTS, **{key: sum(each[key] for each in taken) for key in ("answered", "errors")}}
    processor = sum(each["processor_seconds"] for each in taken) / max(1, row["answered"])
    row["processor_ms_per_image"] = round(1e3 * processor, 2)
    for key in ("images_per_second", "p50_ms", "p99_ms"):
        row[key] = round(statistics.median(each.get(key, each["slowest_ms"]) for each in taken), 2)
    return row


def processor_seconds(process: Process) -> float:
    """Of all threads of a process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_megabytes(process: Process) -> int:
    """The most memory that a process ever held."""
    found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


def attack(folder: Path, photo: bytes, count: int) -> Row:
    port = harness.free_port()
    with serving(ours(folder, port, "--timeout", TIMEOUT), port) as process:
        before, peak_before = post(port, photo), peak_megabytes(process)
        say(f"hostile: {count:,} requests")
        began, outcome = time.monotonic(), hostile.Outcome()
        part = max(1, count // 10)
        peaks, same = [], 0
        for number in range(10):
            found = asyncio.run(
                hostile.assault(port, photo, count=part, side_by_side=SIDE_BY_SIDE, patience=TIMEOUT + 30)
            )
            outcome.counts += found.counts
            outcome.wrong += found.wrong
            same += post(port, photo) == before
            peaks.append(peak_megabytes(process))
            say(f"hostile: {(number + 1) * part:,} done, {len(outcome.wrong)} wrong, peak {peaks[-1]} MB")
        endings: Counter[str] = Counter()
        for (_, ending), many in outcome.counts.items():
            endings[ending] += many
        return {
            "part": "hostile",
            "requests": outcome.counts.total(),
            "kinds": len({kind for kind, _ in outcome.counts}),
            "seconds": round(time.monotonic() - began, 1),
            "endings": dict(sorted(endings.items())),
            "neither_4xx_nor_closed": len(outcome.wrong),
            "examples": outcome.wrong[:5],
            "good_requests_answered_as_before": f"{same} of 10",
            "peak_mb_before": peak_before,
            "peak_mb_after_each_tenth": peaks,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, help="default: of an untrained ResNet-50")
    parser.add_argument("--rounds", type=int, default=6, help="of load, in which all take turns")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--hostile", type=int, default=10_000, help="requests")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, 2 s of load, 330 hostile requests")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results" / "serving.json")
    options = parser.parse_args()
    if shutil.which("hey") is None:
        raise SystemExit("The load generator hey is missing. On Debian and Ubuntu: apt install hey")
    environment.configure(backend="tensorflow", device="cpu")
    job = Job("resnet-tiny", 16, 8, 3) if options.smoke else Job("resnet50", 224, 8, 1000)
    rounds, seconds, count = (2, 1.0, 330) if options.smoke else (options.rounds, options.seconds, options.hostile)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.export
        if folder is None:
            from resnetlab.inference.export import export

            folder = export(untrained(job, Path(scratch) / "run"), "onnx")
        facts = json.loads((folder / "export.json").read_text("utf-8"))
        job = Job(facts["model"], facts["image_size"], 8, len(facts["class_names"]))
        photo = next(iter(jpeg_files(Path(scratch) / "files", 1).iterdir()))
        load_average = os.getloadavg()[0]
        say(f"load average before: {load_average:.1f}")
        rows += loads(folder, job, photo, rounds, seconds)
        rows.append(attack(folder, photo.read_bytes(), count))
    configuration = {
        "model": f"{job.model}, {job.size}x{job.size}, {job.classes} classes, onnx, float32",
        "weights": "random" if options.export is None else "of the export",
        "file": "JPEG, 300 x 225",
        "load": f"hey, {CLIENTS} clients, on the same machine, {rounds} turns of {seconds:g} s",
        "load_average_before": round(load_average, 1),
        "timeout_under_attack": TIMEOUT,
        "attacks_at_one_time": SIDE_BY_SIDE,
    }
    results.write(options.out, results.result("The server: load and attacks", configuration=configuration, rows=rows))
    print(f"Written to {options.out}")


def bare(folder: Path, port: int) -> list[str]:
    return [str(Path(__file__).parent / "bare_server.py"), str(folder), str(port)]


if __name__ == "__main__":
    harness.main((exported,), main)
