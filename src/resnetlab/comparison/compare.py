"""Devices, backends, precisions and batch sizes in one run.

This process does not import Keras: it starts one child process per configuration, in which only one device is visible,
and reads the measurements from it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from resnetlab import doctor, results
from resnetlab.atomic import atomic_file, make_folder
from resnetlab.child_process import Child, ChildFailed
from resnetlab.errors import UsageError, unknown_name
from resnetlab.keras_hook import BACKENDS
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import architecture
from resnetlab.progress import Progress, format_duration
from resnetlab.recipes import Recipe
from resnetlab.report.comparison import chart, problems, table

Row = dict[str, Any]
CHILD = ("-m", "resnetlab.comparison.measure")  # Python's arguments
CHILD_LIMIT = 900.0  # seconds: a child that hangs is killed, and its measurements so far are kept


@dataclass(frozen=True)
class Configuration:
    """The configuration that one child process measures."""

    device: str
    backend: str
    precision: str = "float32"
    xla: bool | None = None  # None: the backend's default
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
    """The configurations to measure, and the reasons why backends are not measured on a GPU."""

    configurations: tuple[Configuration, ...]
    no_gpu: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.device for each in self.configurations))


def plan(report: doctor.Report, *, devices: Sequence[str] | None = None, backends: Sequence[str] | None = None) -> Plan:
    """Choose the configurations: on a CPU oneDNN on and off; on a GPU XLA on and off; the precisions that it computes.

    GPUs before Ampere have neither TF32 nor bfloat16, so float16 is measured there.

    Args:
        report: of this machine; the frameworks need not have been probed.
        devices: any of "cpu" and "gpu"; by default both. An explicitly requested GPU is tried with every backend,
            otherwise only with those that no finding blocks.
        backends: by default those that are installed.
    """
    for device in devices or ():
        if device not in ("cpu", "gpu"):
            raise unknown_name("device", device, ("cpu", "gpu"))
    for backend in backends or ():
        if backend not in BACKENDS:
            raise unknown_name("backend", backend, BACKENDS)
    installed = {framework.name for framework in report.facts.frameworks if framework.packages}
    backends = backends or [name for name in BACKENDS if name in installed]
    on_gpu = list(backends) if devices and "gpu" in devices else doctor.gpu_backends(report, backends)
    reasons = dict.fromkeys(doctor.why_no_gpu(report, backend=name) for name in backends if name not in on_gpu)
    gpu = doctor.first_visible_gpu(report.facts)
    precisions = ("float32", "float16") if gpu and not gpu.has_bfloat16 else ("float32", "tf32", "bfloat16")
    on_cpu = ("float32", "bfloat16") if report.facts.cpu.may_have_bfloat16 else ("float32",)
    found: list[Configuration] = []
    for device in devices or ("cpu", "gpu"):
        for backend in on_gpu if device == "gpu" else backends:
            found += _configurations(device, backend, precisions if device == "gpu" else on_cpu)
    return Plan(tuple(found), tuple(filter(None, reasons)))


def _configurations(device: str, backend: str, precisions: Sequence[str]) -> Iterator[Configuration]:
    if device == "cpu":
        for precision in precisions:
            yield Configuration("cpu", backend, precision)
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
        interrupted: whether SIGINT ended it before all configurations were measured.
    """

    path: Path
    rows: list[Row]
    summary: list[str]
    result: dict[str, Any]
    interrupted: bool = False

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
        data, recipe: as in `train`.
        images: number of training images, which are one epoch.
        devices, backends: by default all that are available.
        batch_sizes: by default a quarter of the recipe's, the recipe's and four times it (16 times on a GPU).
        repeats, budget: number of repeats of each throughput measurement, and seconds for each of them.
        output: a folder.

    compare.json is written after each configuration, so that nothing is lost if a later one hangs.
    """
    if repeats < 1 or budget <= 0:
        raise UsageError(f"Received repeats={repeats} and budget={budget}, expected at least 1, and more than 0.")
    planned = plan(doctor.examine(frameworks=()), devices=devices, backends=backends)
    sizes = _batch_sizes(recipe, planned.devices, batch_sizes)
    output = make_folder(output or Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}")
    progress.info(
        f"{recipe.model} on {source_name}: {images:,} training images at {recipe.image_size}x{recipe.image_size}"
    )
    began = time.perf_counter()
    job = {"data": data, "recipe": recipe.model_dump(mode="json"), "repeats": repeats, "budget": budget}
    configuration = {"data": source_name, "model": recipe.model, "image_size": recipe.image_size}
    configuration |= {"training_images": images, "recipe": recipe.name, "repeats": repeats}
    rows: list[Row] = []
    total = sum(len(sizes[each.device]) for each in planned.configurations)
    try:
        for each in planned.configurations:
            before = len(rows)
            _measure_in_child(each, job, sizes[each.device], rows, partial(_count, progress, total))
            _write(output, rows, recipe, configuration, began, planned)
            for row in rows[before:]:
                progress.info(_line(row))
    except KeyboardInterrupt:
        if not rows:
            raise
        configuration["interrupted"] = f"after {len(rows)} of {total} measurements"
        progress.info(f"Interrupted {configuration['interrupted']}, which follow.")
    found = _write(output, rows, recipe, configuration, began, planned)
    interrupted = "interrupted" in configuration
    comparison = Comparison(output, rows, [*problems(rows), *found["summary"]], found, interrupted)
    if any(not row.get("problem") for row in rows):
        chart(found, output / "compare.png")
    with atomic_file(output / "compare.txt") as temporary:
        temporary.write_text("\n".join([comparison.table, "", *comparison.summary, ""]), encoding="utf-8")
    return comparison


def _count(progress: Progress, total: int, done: int) -> None:
    progress.count("measuring", done, total)


def _write(
    output: Path, rows: list[Row], recipe: Recipe, configuration: dict[str, Any], began: float, planned: Plan
) -> dict[str, Any]:
    _add_derived(rows, recipe, configuration["training_images"])
    found = results.result(
        "CPU against GPU: training and inference throughput by device, backend, precision and batch size",
        configuration=configuration | {"seconds": round(time.perf_counter() - began, 1)},
        rows=rows,
        gpu=next((row["gpu"] for row in rows if row.get("gpu")), None),
    )
    stopped = configuration.get("interrupted")
    found["summary"] = [f"Interrupted {stopped}: this is not the whole comparison."] if stopped else []
    found["summary"] += summarize_rows(rows, recipe.batch_size, planned.no_gpu)
    if recipe.progressive:
        side = recipe.image_size
        found["summary"].append(f"Measured at {side}x{side} pixels; the epochs of smaller images take less.")
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
    configuration: Configuration,
    job: dict[str, Any],
    sizes: list[int],
    rows: list[Row],
    report: Callable[[int], None],
) -> None:
    """Run one child to its end. Its rows are added to `rows` as they come, so that an interrupt loses none.

    At the end, a row with the reason is added for each batch size that the child did not reach.
    """
    facts: Row = asdict(configuration) | {"configuration": configuration.label}
    reason = "a smaller batch size was out of memory"
    began, before = time.perf_counter(), len(rows)
    report(before)
    with Child(*CHILD, environment={"TF_ENABLE_ONEDNN_OPTS": str(int(configuration.onednn))}) as child:
        try:
            for answer in child.ask(job | asdict(configuration) | {"batch_sizes": sizes}, limit=CHILD_LIMIT):
                if device := answer.pop("device", None):
                    facts |= device | {"start_seconds": time.perf_counter() - began}
                    continue
                rows.append(facts | answer)
                report(len(rows))
        except ChildFailed as failure:
            reason = str(failure)
    rows += [facts | {"batch_size": size, "problem": reason} for size in sizes[len(rows) - before :]]


def _add_derived(rows: list[Row], recipe: Recipe, images: int) -> None:
    """Add quantities derived from the throughputs: epoch time, bottleneck, fraction of the device's matmul rate."""
    step_flop = summarize(architecture(recipe.model), recipe.image_size).training_operations
    for row in rows:
        if row.get("problem"):
            continue
        row["epoch_seconds"] = images / row["end_to_end"]["median"]
        row["matmul_share"] = step_flop * row["train"]["median"] / (row["matmul_gflops"] * 1e9)
        row["bottleneck"] = "input" if row["loader"] < 1.1 * row["train"]["median"] else "compute"


def summarize_rows(rows: Sequence[Row], batch_size: int, no_gpu: Sequence[str] = ()) -> list[str]:
    """Summarise the rows in sentences, including the reasons (`no_gpu`) why backends were not measured on a GPU."""
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
        f"An epoch of your data takes {format_duration(row['epoch_seconds'])} on the {device.upper()}"
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
    for device, backend, key, values, text in SETTINGS:
        chosen = [row for row in done if row["device"] == device and row["backend"] == backend]
        if ratio := _median_speedup(chosen, key, *values):
            sentences.append(f"{text} {ratio:.2f} times as fast.")
    return [*sentences, *filter(None, [_fastest_options(done, batch_size)]), *no_gpu]


def _fastest_options(rows: Sequence[Row], batch_size: int) -> str:
    """A sentence with the options of `train` that were fastest: without what it does not set, such as oneDNN off."""
    with_tf32 = {(row["device"], row["backend"]) for row in rows if row["precision"] == "tf32"}
    rows = [
        row
        for row in rows
        if row["onednn"]
        and row["xla"] is not False
        and (row["precision"] != "float32" or (row["device"], row["backend"]) not in with_tf32)
    ]
    if not rows:
        return ""
    row = min(rows, key=lambda row: row["epoch_seconds"])
    precision = "float32" if row["precision"] == "tf32" else row["precision"]
    options = f"--device {row['device']} --backend {row['backend']} --batch-size {row['batch_size']}"
    other = "" if row["batch_size"] == batch_size else "; another batch size may need another learning rate"
    return f"The fastest options of `resnetlab train`: `{options} --precision {precision}`{other}."


def _rate(row: Row) -> float:
    return float(row["end_to_end"]["median"])


def _crossover(rows: Sequence[Row]) -> str:
    """A sentence on the smallest batch size from which the GPU is faster."""
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
            return "The GPU is not faster at the largest batch sizes that both were measured at."
        return "The GPU is not faster at any batch size that both were measured at." if sizes else ""
    if from_here[0] == sizes[0]:
        return f"The GPU is faster from the smallest measured batch size ({sizes[0]}) on."
    return f"The GPU is faster from batch size {from_here[0]} on."


# Device, backend, and what two values of a setting are compared for, in the summary.
SETTINGS = (
    ("cpu", "tensorflow", "onednn", (True, False), "oneDNN makes TensorFlow on this CPU"),
    ("gpu", "tensorflow", "xla", (True, False), "XLA makes TensorFlow on this GPU"),
    *(
        (device, backend, "precision", ("bfloat16", other), f"bfloat16 makes {name} on this {device.upper()}")
        for device, other in (("cpu", "float32"), ("gpu", "tf32"))  # as `train` computes in float32
        for backend, name in (("tensorflow", "TensorFlow"), ("jax", "JAX"), ("torch", "PyTorch"))
    ),
)


def _median_speedup(rows: Sequence[Row], key: str, value: Any, other: Any) -> float | None:
    """Median ratio of training throughput with two values of `key`, over rows that are equal otherwise."""
    same = [k for k in ("batch_size", "precision", "device", "backend", "onednn", "xla") if k != key]
    rates = {(*(row[k] for k in same), row[key]): row["train"]["median"] for row in rows}
    ratios = [rates[k] / rates[(*k[:-1], other)] for k in rates if k[-1] == value and (*k[:-1], other) in rates]
    return statistics.median(ratios) if ratios else None


def _line(row: Row) -> str:
    if row.get("problem"):
        return f"  {row['configuration']}, batch {row['batch_size']}: {row['problem']}"
    return f"  {row['configuration']}, batch {row['batch_size']}: {row['train']['median']:,.0f} images/s"
