"""CPU against GPU in one run.

This process has no Keras: it starts one child per configuration, each with its own device in sight, and reads what
they measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from resnetlab import doctor, environment, results
from resnetlab.atomic import atomic_file
from resnetlab.errors import UsageError, unknown
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import architecture
from resnetlab.progress import Progress
from resnetlab.recipes import Recipe
from resnetlab.report.comparison import chart, problems, table

Row = dict[str, Any]
CHILD = ("-m", "resnetlab.comparison.measure")  # Python's arguments
CHILD_LIMIT = 900.0  # seconds: a child that hangs is ended, and what it has measured is kept


@dataclass(frozen=True)
class Configuration:
    """What one child measures."""

    device: str
    backend: str
    precision: str = "float32"
    xla: bool | None = None  # None: as the backend has it
    onednn: bool = True

    @property
    def label(self) -> str:
        parts = [self.device.upper(), self.backend, self.precision]
        if self.xla is not None:
            parts.append("XLA" if self.xla else "no XLA")
        if self.device == "cpu" and self.backend == "tensorflow":
            parts.append("oneDNN" if self.onednn else "no oneDNN")
        return " · ".join(parts)


@dataclass(frozen=True)
class Plan:
    """What a comparison measures, and why a backend is not measured on a GPU."""

    configurations: tuple[Configuration, ...]
    no_gpu: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.device for each in self.configurations))


def plan(report: doctor.Report, *, devices: Sequence[str] | None = None, backends: Sequence[str] | None = None) -> Plan:
    """What is worth measuring: oneDNN on and off on a CPU; precisions, and XLA on and off, on a GPU.

    GPUs before Ampere have neither TF32 nor bfloat16: there it is float16.

    Args:
        report: of this machine; the frameworks need not have been probed.
        devices: of "cpu" and "gpu"; by default both. A GPU that is asked for by name is tried with every backend, and
            otherwise with those that have nothing in their way.
        backends: by default those that are installed.
    """
    for device in devices or ():
        if device not in ("cpu", "gpu"):
            raise unknown("device", device, ("cpu", "gpu"))
    for backend in backends or ():
        if backend not in environment.BACKENDS:
            raise unknown("backend", backend, environment.BACKENDS)
    installed = {framework.name for framework in report.facts.frameworks if framework.packages}
    backends = backends or [name for name in environment.BACKENDS if name in installed]
    on_gpu = list(backends) if devices and "gpu" in devices else doctor.gpu_backends(report, backends)
    reasons = dict.fromkeys(doctor.why_no_gpu(report, backend=name) for name in backends if name not in on_gpu)
    gpus = report.facts.nvidia.gpus
    precisions = ("float32", "float16") if gpus and not gpus[0].has_bfloat16 else ("float32", "tf32", "bfloat16")
    found: list[Configuration] = []
    for device in devices or ("cpu", "gpu"):
        for backend in on_gpu if device == "gpu" else backends:
            found += _configurations(device, backend, precisions)
    return Plan(tuple(found), tuple(filter(None, reasons)))


def _configurations(device: str, backend: str, precisions: Sequence[str]) -> Iterator[Configuration]:
    if device == "cpu":
        yield Configuration("cpu", backend)
        if backend == "tensorflow":
            yield Configuration("cpu", backend, onednn=False)
        return
    for precision in precisions:
        # JAX is XLA; on PyTorch Keras's jit_compile is torch.compile, which is not XLA.
        for xla in (True, False) if backend == "tensorflow" else (None,):
            yield Configuration("gpu", backend, precision, xla)


@dataclass(frozen=True)
class Comparison:
    """What was measured, in the schema of `resnetlab.results`, and its summary.

    Attributes:
        path: folder of compare.json, compare.txt and compare.png.
        rows: one for each configuration and batch size; with a `problem` where it could not be measured.
        summary: sentences: the fastest configurations, their ratio, what limits them, why there is no GPU.
        result: all of it with its conditions, as in compare.json.
    """

    path: Path
    rows: list[Row]
    summary: list[str]
    result: dict[str, Any]

    @property
    def table(self) -> str:
        return table(self.rows)


def run(
    data: str,
    recipe: Recipe,
    *,
    images: int,
    source_name: str,
    devices: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    repeats: int = 3,
    budget: float = 2.0,
    output: Path | None = None,
    progress: Progress,
) -> Comparison:
    """Measure every configuration, and write table, chart and JSON.

    Args:
        data, recipe: as of `train`.
        images: training images: what an epoch is.
        devices, backends: by default all there are.
        batch_sizes: by default a quarter of the recipe's, the recipe's and four times it (16 times on a GPU).
        repeats, budget: of each measurement of a rate, and seconds for one of them.
        output: a folder.

    After each configuration compare.json has what was measured so far, so that nothing is lost if a later one hangs.
    """
    if repeats < 1 or budget <= 0:
        raise UsageError(f"Received repeats={repeats} and budget={budget}, expected at least 1, and more than 0.")
    planned = plan(doctor.examine(frameworks=()), devices=devices, backends=backends)
    sizes = _batch_sizes(recipe, planned.devices, batch_sizes)
    output = output or Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    progress.info(
        f"{recipe.model} on {source_name}: {images:,} training images at {recipe.image_size}x{recipe.image_size}"
    )
    began = time.perf_counter()
    job = {"data": data, "recipe": recipe.model_dump(mode="json"), "repeats": repeats, "budget": budget}
    configuration = {
        "data": source_name,
        "model": recipe.model,
        "image_size": recipe.image_size,
        "training_images": images,
        "recipe": recipe.name,
        "repeats": repeats,
    }
    rows: list[Row] = []
    total = sum(len(sizes[each.device]) for each in planned.configurations)
    try:
        for each in planned.configurations:
            measured = _measure_in_child(each, job, sizes, partial(_count, progress, len(rows), total))
            rows += measured
            _write(output, rows, recipe, configuration, began, planned)
            for row in measured:
                progress.info(_line(row))
    except KeyboardInterrupt:
        if not rows:
            raise
        progress.info("Interrupted: what was measured until then follows.")
    found = _write(output, rows, recipe, configuration, began, planned)
    comparison = Comparison(output, rows, [*problems(rows), *found["verdict"]], found)
    if any(not row.get("problem") for row in rows):
        chart(found, output / "compare.png")
    with atomic_file(output / "compare.txt") as temporary:
        temporary.write_text("\n".join([comparison.table, "", *comparison.summary, ""]), encoding="utf-8")
    return comparison


def _count(progress: Progress, before: int, total: int, done: int) -> None:
    progress.count("measuring", before + done, total)


def _write(
    output: Path, rows: list[Row], recipe: Recipe, configuration: dict[str, Any], began: float, planned: Plan
) -> dict[str, Any]:
    _add_derived(rows, recipe, configuration["training_images"])
    found = results.result(
        "CPU against GPU: rates of training and inference by device, backend, precision and batch size",
        configuration=configuration | {"seconds": round(time.perf_counter() - began, 1)},
        rows=rows,
        gpu=next((row["gpu"] for row in rows if row.get("gpu")), None),
    )
    found["verdict"] = summarize_rows(rows, recipe.batch_size, planned.no_gpu)
    results.write(output / "compare.json", found)
    return found


def _batch_sizes(recipe: Recipe, devices: Sequence[str], asked: Sequence[int] | None) -> dict[str, list[int]]:
    if asked:
        if min(asked) < 1:
            raise UsageError(f"Received batch sizes {list(asked)}, expected each to be at least 1.")
        return {device: sorted(set(asked)) for device in devices}
    base = recipe.batch_size
    common = [max(base // 4, 1), base, base * 4]
    return {device: sorted({*common, *([base * 16] if device == "gpu" else [])}) for device in devices}


def _measure_in_child(
    configuration: Configuration, job: dict[str, Any], sizes: dict[str, list[int]], report: Callable[[int], None]
) -> list[Row]:
    """Run one child to its end, reporting the number of rows so far.

    Returns its rows, and a row with the reason for each batch size that it did not reach.
    """
    wanted = sizes[configuration.device]
    job = job | {
        "device": configuration.device,
        "backend": configuration.backend,
        "precision": configuration.precision,
        "xla": configuration.xla,
        "batch_sizes": wanted,
    }
    settings = dict(os.environ, TF_ENABLE_ONEDNN_OPTS="1" if configuration.onednn else "0", PYTHONUNBUFFERED="1")
    facts: Row = {
        "configuration": configuration.label,
        "device": configuration.device,
        "backend": configuration.backend,
    }
    facts |= {"precision": configuration.precision, "xla": configuration.xla, "onednn": configuration.onednn}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=settings,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    rows: list[Row] = []
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    killer = threading.Timer(CHILD_LIMIT, process.kill)
    try:
        drain.start()
        killer.start()
        with suppress(BrokenPipeError):  # it died at once: its exit code shows how
            process.stdin.write(json.dumps(job))
            process.stdin.close()
        report(0)
        for line in process.stdout:
            if not line.startswith("@row "):
                continue
            row = json.loads(line.removeprefix("@row "))
            if row.pop("event") == "device":
                facts |= row | {"start_seconds": time.perf_counter() - began}
                continue
            rows.append(facts | row)
            report(len(rows))
        code = process.wait()
        drain.join(timeout=5)
    finally:
        killer.cancel()  # or an interrupted comparison would wait for it
        process.kill()
        process.wait()
        drain.join(timeout=5)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with suppress(BrokenPipeError):
                pipe.close()
    reason = _reason(code, errors, time.perf_counter() - began)
    rows += [facts | {"batch_size": size, "problem": reason} for size in wanted[len(rows) :]]
    return rows


def _reason(code: int, errors: list[str], seconds: float) -> str:
    """Why a child ended early, in one line."""
    if seconds >= CHILD_LIMIT:
        return f"ended after {CHILD_LIMIT:.0f} s"
    if code < 0:
        return "killed, as the system does when memory is used up" if code == -9 else f"killed by signal {-code}"
    last = next((line.strip() for line in reversed(errors) if line.strip()), "no output")
    return last.split(": ", 1)[-1][:200] if code else "a smaller batch size was out of memory"


def _add_derived(rows: list[Row], recipe: Recipe, images: int) -> None:
    """What follows from the rates: epoch time, bottleneck, fraction of the device's own matrix-product rate."""
    for row in rows:
        if row.get("problem"):
            continue
        step_flop = (
            6 * summarize(architecture(recipe.model), recipe.image_size).multiply_adds
        )  # forward once, backward twice
        row["epoch_seconds"] = images / row["end_to_end"]["median"]
        row["matmul_share"] = step_flop * row["train"]["median"] / (row["matmul_gflops"] * 1e9)
        row["bottleneck"] = "input" if row["loader"] < 1.1 * row["train"]["median"] else "compute"


def summarize_rows(rows: Sequence[Row], batch_size: int, no_gpu: Sequence[str] = ()) -> list[str]:
    """The summary of the rows, in sentences, and why a backend (`no_gpu`) or all of them were not measured on a GPU."""
    done = [row for row in rows if not row.get("problem")]
    if not done:
        return ["Nothing could be measured: see the reasons above.", *no_gpu]
    tried = [row for row in rows if row["device"] == "gpu"]
    if tried and not any(row["device"] == "gpu" for row in done):
        no_gpu = [f"The GPU could not be measured: {tried[0]['configuration']}: {tried[0]['problem']}.", *no_gpu]
    best = {
        device: min((r for r in done if r["device"] == device), key=lambda r: r["epoch_seconds"])
        for device in sorted({row["device"] for row in done})
    }
    sentences = [
        f"An epoch of your data takes {_duration(row['epoch_seconds'])} on the {device.upper()}"
        f"{' (' + row['gpu'] + ')' if row.get('gpu') else ''}: fastest with {row['configuration']}, "
        f"batch size {row['batch_size']}; limited by {row['bottleneck']}."
        for device, row in best.items()
    ]
    at_recipe = {
        device: max(
            (r for r in done if r["device"] == device and r["batch_size"] == batch_size), default=None, key=_rate
        )
        for device in best
    }
    if len(best) == 2:
        ratio = best["cpu"]["epoch_seconds"] / best["gpu"]["epoch_seconds"]
        sentences.append(f"At their best settings the GPU is {ratio:.1f} times as fast as the CPU.")
        if at_recipe["cpu"] and at_recipe["gpu"]:
            ratio = _rate(at_recipe["gpu"]) / _rate(at_recipe["cpu"])
            sentences.append(f"At the recipe's batch size {batch_size} it is {ratio:.1f} times as fast.")
        sentences += filter(None, [_crossover(done)])
    onednn = _pair(done, lambda r: r["device"] == "cpu" and r["backend"] == "tensorflow", "onednn")
    if onednn:
        sentences.append(f"oneDNN makes TensorFlow on this CPU {onednn:.2f} times as fast.")
    xla = _pair(done, lambda r: r["device"] == "gpu" and r["backend"] == "tensorflow", "xla")
    if xla:
        sentences.append(f"XLA makes TensorFlow on this GPU {xla:.2f} times as fast.")
    return [*sentences, *no_gpu]


def _rate(row: Row) -> float:
    return float(row["end_to_end"]["median"])


def _crossover(rows: Sequence[Row]) -> str:
    """From which batch size on the GPU wins."""
    sizes = sorted(
        {r["batch_size"] for r in rows if r["device"] == "cpu"}
        & {r["batch_size"] for r in rows if r["device"] == "gpu"}
    )
    wins = {
        size: max(_rate(r) for r in rows if r["device"] == "gpu" and r["batch_size"] == size)
        > max(_rate(r) for r in rows if r["device"] == "cpu" and r["batch_size"] == size)
        for size in sizes
    }
    from_here = [size for size in sizes if all(wins[later] for later in sizes if later >= size)]
    if not from_here:
        if any(wins.values()):
            return "The GPU does not win at the largest batch sizes that both were measured at."
        return "The GPU does not win at any batch size that both were measured at." if sizes else ""
    if from_here[0] == sizes[0]:
        return f"The GPU wins from the smallest batch size on ({sizes[0]})."
    return f"The GPU wins from batch size {from_here[0]} on."


def _pair(rows: Sequence[Row], among: Callable[[Row], bool], key: str) -> float | None:
    """Median ratio of training rates with `key` on to off, over rows that agree in everything else."""
    same = ("batch_size", "precision", "device", "backend", *({"onednn", "xla"} - {key}))
    by = {(*(r[k] for k in same), bool(r[key])): r["train"]["median"] for r in rows if among(r)}
    ratios = sorted(by[k] / by[(*k[:-1], False)] for k in by if k[-1] and (*k[:-1], False) in by)
    return ratios[len(ratios) // 2] if ratios else None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(row: Row) -> str:
    if row.get("problem"):
        return f"  {row['configuration']}, batch {row['batch_size']}: {row['problem']}"
    return f"  {row['configuration']}, batch {row['batch_size']}: {row['train']['median']:,.0f} images/s"
