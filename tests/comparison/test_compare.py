"""The comparison: what it measures, what it says of it, and what it does with what fails."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab import doctor, environment
from resnetlab.comparison import compare
from resnetlab.comparison.compare import Configuration, Plan, plan, summarize_rows
from resnetlab.comparison.timing import seconds_per_step, steps_to_time
from resnetlab.doctor import Facts, machine
from resnetlab.errors import UsageError
from resnetlab.progress import LogProgress
from resnetlab.recipes import RECIPES
from resnetlab.report.comparison import problems, table

Row = dict[str, Any]


def row(device: str, batch_size: int, rate: float, **changes: Any) -> Row:
    """A measurement as `run` hands it on."""
    timing = {"n": 3, "median": rate, "mean": rate, "deviation": 0.1, "minimum": rate, "maximum": rate}
    configuration = Configuration(device, "tensorflow")
    facts: Row = {
        "configuration": configuration.label,
        "device": device,
        "backend": "tensorflow",
        "precision": "float32",
        "xla": None,
        "onednn": True,
        "gpu": "NVIDIA H200" if device == "gpu" else None,
        "batch_size": batch_size,
        "train": timing,
        "end_to_end": timing,
        "inference": timing,
        "loader": 20_000.0,
        "import_seconds": 3.0,
        "build_seconds": 1.0,
        "first_step_seconds": 5.5,
        "peak_memory": 2_000_000_000,
        "epoch_seconds": 6_000 / rate,
        "matmul_share": 0.5,
        "bottleneck": "compute",
    }
    return facts | changes


def failed(device: str, batch_size: int, problem: str) -> Row:
    keep = ("configuration", "device", "backend", "precision", "xla", "onednn", "batch_size")
    whole = row(device, batch_size, 1.0)
    return {key: whole[key] for key in keep} | {"problem": problem}


RECORDED = Path(__file__).parents[1] / "doctor_findings"
MACHINES = sorted(path.stem for path in RECORDED.glob("*.json"))


def quick_report(machine: str, *, installed: Sequence[str] = ()) -> doctor.Report:
    """What the doctor sees of a recorded machine without probing a framework, as `compare` and `train` ask it."""
    facts = Facts.from_json(json.loads((RECORDED / f"{machine}.json").read_text()))
    frameworks = tuple(
        replace(f, probe=None, packages=f.packages or ({f.name: "1.0"} if f.name in installed else {}))
        for f in facts.frameworks
    )
    return doctor.diagnose(replace(facts, frameworks=frameworks))


def labels(planned: Plan) -> list[str]:
    return [each.label for each in planned.configurations]


def test_what_is_worth_measuring() -> None:
    on_cpu = plan(quick_report("healthy_h200"), devices=["cpu"], backends=["tensorflow", "jax", "torch"])
    assert labels(on_cpu) == [
        "CPU · tensorflow · float32 · oneDNN",
        "CPU · tensorflow · bfloat16 · oneDNN",
        "CPU · tensorflow · float32 · no oneDNN",
        "CPU · jax · float32",
        "CPU · jax · bfloat16",
        "CPU · torch · float32",
        "CPU · torch · bfloat16",
    ]
    older = plan(quick_report("card_without_driver"), devices=["cpu"], backends=["tensorflow"])
    assert {each.precision for each in older.configurations} == {"float32"}  # a CPU without bfloat16
    on_gpu = plan(quick_report("healthy_h200"), devices=["gpu"], backends=["tensorflow", "jax"]).configurations
    assert {(c.precision, c.xla) for c in on_gpu if c.backend == "tensorflow"} == {
        (precision, xla) for precision in ("float32", "tf32", "bfloat16") for xla in (True, False)
    }
    assert [(c.precision, c.xla) for c in on_gpu if c.backend == "jax"] == [
        ("float32", None),
        ("tf32", None),
        ("bfloat16", None),
    ]
    asked = plan(quick_report("card_without_driver"), devices=["cpu", "gpu"], backends=["tensorflow", "jax", "torch"])
    assert len(labels(asked)) == len(set(labels(asked))) == 4 + 6 + 3 + 3  # a GPU that is asked for is tried
    assert asked.no_gpu == ()


ON_GPU = {  # the installed backends that have nothing in their way
    "broken_tensorflow": set(),
    "card_without_driver": set(),
    "cpu_build_on_gpu_machine": set(),
    "cudnn_missing": set(),
    "cupti_not_permitted": {"tensorflow"},
    "driver_too_old": {"tensorflow", "torch"},  # that PyTorch was built for a newer CUDA, only PyTorch itself says
    "gpu_hidden": set(),
    "healthy_h200": {"jax", "torch"},
    "macos": {"torch"},
    "windows": set(),
    "wsl2_healthy": {"tensorflow"},
    "wsl2_without_driver": set(),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_gpu_is_measured_where_nothing_is_in_its_way(machine: str) -> None:
    report = quick_report(machine)
    planned = plan(report)
    installed = {f.name for f in report.facts.frameworks if f.packages}
    assert {c.backend for c in planned.configurations if c.device == "cpu"} == installed
    on_gpu = {c.backend for c in planned.configurations if c.device == "gpu"}
    assert on_gpu == ON_GPU[machine]
    assert bool(planned.no_gpu) == (on_gpu != installed)  # whoever is left out is told why
    assert all(reason.startswith("No GPU: ") for reason in planned.no_gpu)
    for backend in installed:
        assert bool(doctor.why_no_gpu(report, backend=backend)) == (backend not in on_gpu)
    assert bool(doctor.why_no_gpu(report)) == (not on_gpu)


def test_every_installed_backend_is_measured_on_a_healthy_gpu() -> None:
    for name in ("healthy_h200", "wsl2_healthy", "cupti_not_permitted"):
        report = quick_report(name)
        installed = [f.name for f in report.facts.frameworks if f.packages]
        assert {c.backend for c in plan(report).configurations if c.device == "gpu"} == set(installed)


def test_the_summary_says_why_a_gpu_that_was_tried_has_no_figures() -> None:
    sentences = summarize_rows([row("cpu", 32, 50.0), failed("gpu", 32, "jax sees no GPU")], 32)
    assert any("jax sees no GPU" in sentence and "could not be measured" in sentence for sentence in sentences)


@pytest.mark.parametrize("step", [0.001, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_the_time_of_a_step_is_estimated_within_five_percent(step: float) -> None:
    """`fit` itself costs 0.13 s a call, and 15 ms more or less; a step varies by 3 %; the first one compiles."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        timed: list[int] = []

        def seconds_of(steps: int, rng: Any = rng, timed: list[int] = timed) -> float:
            timed.append(steps)
            return max(0.13 + 0.015 * rng.standard_normal(), 0.05) + float((step * rng.normal(1, 0.03, steps)).sum())

        steps = steps_to_time(seconds_of, 2.0)
        assert steps >= 50
        found = [seconds_per_step(seconds_of, steps) for _ in range(3)]
        assert sorted(found)[1] == pytest.approx(step, rel=0.05)
        assert sum(timed) * step < 12 * 2.0  # in reasonable time


def test_slow_steps_are_not_timed_for_minutes() -> None:
    assert steps_to_time(lambda steps: 0.13 + 3.0 * steps, 2.0) <= 2
    assert steps_to_time(lambda steps: 0.13 + 0.5 * steps, 2.0) == 8


def test_a_time_that_is_not_positive_is_measured_again_with_more_steps_or_reported() -> None:
    overheads = iter([1.0, 2.0, 1.0, 1.0])  # of T(n + 1), T(1), twice: the first difference is negative
    timed: list[int] = []

    def seconds_of(steps: int) -> float:
        timed.append(steps)
        return next(overheads) + 0.05 * steps

    assert seconds_per_step(seconds_of, 10) == pytest.approx(0.05)
    assert timed == [11, 1, 41, 1]
    with pytest.raises(RuntimeError, match="could not be timed"):
        seconds_per_step(lambda steps: 1.0, 10)


def test_batch_sizes() -> None:
    recipe = RECIPES["animals"]
    assert compare._batch_sizes(recipe, ["cpu", "gpu"], None) == {"cpu": [8, 32, 128], "gpu": [8, 32, 128, 512]}
    assert compare._batch_sizes(recipe, ["cpu"], [64, 8, 64]) == {"cpu": [8, 64]}
    assert compare._batch_sizes(recipe.changed(batch_size=2), ["cpu"], None) == {"cpu": [1, 2, 8]}
    with pytest.raises(UsageError, match="at least 1"):
        compare._batch_sizes(recipe, ["cpu"], [0, 8])


def test_the_summary_on_both_devices() -> None:
    rows = [
        row("cpu", 8, 60.0),
        row("cpu", 32, 50.0),
        row("cpu", 8, 20.0, onednn=False),
        row("cpu", 32, 25.0, onednn=False),
        row("gpu", 8, 30.0, xla=True),
        row("gpu", 32, 400.0, xla=True),
        row("gpu", 128, 1200.0, xla=True, bottleneck="input"),
        row("gpu", 128, 600.0, xla=False),
        failed("gpu", 512, "out of memory"),
    ]
    assert summarize_rows(rows, 32) == [
        "An epoch of your data takes 1.7 min on the CPU: fastest with CPU · tensorflow · float32 · oneDNN, batch size 8"
        "; limited by compute.",
        "An epoch of your data takes 5.0 s on the GPU (NVIDIA H200): fastest with GPU · tensorflow · float32, "
        "batch size 128; limited by input.",
        "At their best settings the GPU is 20.0 times as fast as the CPU.",
        "At the recipe's batch size 32 it is 8.0 times as fast.",
        "The GPU is faster from batch size 32 on.",
        "oneDNN makes TensorFlow on this CPU 2.50 times as fast.",
        "XLA makes TensorFlow on this GPU 2.00 times as fast.",
        "The fastest options of `resnetlab train`: `--device gpu --backend tensorflow --batch-size 128 "
        "--precision float32`; another batch size may need another learning rate.",
    ]


def test_the_summary_compares_the_precisions_of_a_cpu_and_names_the_fastest() -> None:
    rows = [
        *(row("cpu", 32, rate, precision=precision) for precision, rate in (("float32", 50.0), ("bfloat16", 75.0))),
        *(
            row("cpu", 32, rate, precision=precision, backend="torch")
            for precision, rate in (("float32", 40.0), ("bfloat16", 80.0))
        ),
    ]
    assert summarize_rows(rows, 32)[-3:] == [
        "bfloat16 makes TensorFlow on this CPU 1.50 times as fast.",
        "bfloat16 makes PyTorch on this CPU 2.00 times as fast.",
        "The fastest options of `resnetlab train`: `--device cpu --backend torch --batch-size 32 "
        "--precision bfloat16`.",
    ]


def test_the_fastest_options_are_those_that_train_sets() -> None:
    rows = [
        row("cpu", 32, 10.0),
        row("cpu", 32, 90.0, onednn=False),
        row("gpu", 32, 50.0, xla=False),
        row("gpu", 32, 60.0, xla=True),  # float32 without TF32, which is on by default
        row("gpu", 32, 40.0, xla=True, precision="tf32"),
    ]
    assert "`--device gpu --backend tensorflow --batch-size 32 --precision float32`" in summarize_rows(rows, 32)[-1]
    assert "--device cpu" in summarize_rows(rows[:2], 32)[-1]
    assert not any("fastest options" in sentence for sentence in summarize_rows(rows[1:2], 32))


def test_the_summary_on_a_cpu_alone_says_why_there_is_no_gpu() -> None:
    sentences = summarize_rows([row("cpu", 32, 50.0), failed("cpu", 128, "left out")], 32, ["No GPU: none was found."])
    assert len(sentences) == 3
    assert sentences[-1] == "No GPU: none was found."


def test_the_summary_where_all_failed() -> None:
    assert summarize_rows([failed("cpu", 8, "it broke")], 8, ["No GPU."]) == [
        "Nothing could be measured: see the reasons above.",
        "No GPU.",
    ]
    assert summarize_rows([], 8) == ["Nothing could be measured: see the reasons above."]


def test_the_summary_without_the_recipes_batch_size() -> None:
    sentences = summarize_rows([row("cpu", 8, 10.0), row("gpu", 128, 100.0)], 32)
    assert not any("recipe's batch size" in sentence for sentence in sentences)
    assert len(sentences) == 4  # and nothing of who wins where: no size was measured on both


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        ([20.0, 200.0, 900.0], "The GPU is faster from the smallest measured batch size (8) on."),
        ([5.0, 200.0, 900.0], "The GPU is faster from batch size 32 on."),
        ([50.0, 5.0, 900.0], "The GPU is faster from batch size 128 on."),
        ([5.0, 5.0, 5.0], "The GPU is not faster at any batch size that both were measured at."),
        ([50.0, 50.0, 5.0], "The GPU is not faster at the largest batch sizes that both were measured at."),
    ],
)
def test_from_which_batch_size_on_the_gpu_wins(gpu: list[float], told: str) -> None:
    sizes = (8, 32, 128)
    rows = [row("cpu", size, 10.0) for size in sizes]
    rows += [row("gpu", size, rate) for size, rate in zip(sizes, gpu, strict=True)]
    rows += [row("gpu", size, 1.0, precision="tf32") for size in sizes]  # a slower setting hides nothing
    assert compare._crossover(rows) == told


def test_ratios_are_of_rows_that_agree_in_everything_else() -> None:
    rows = [
        row("cpu", 8, 30.0),
        row("cpu", 8, 10.0, onednn=False),
        row("cpu", 32, 40.0),
        row("cpu", 32, 20.0, onednn=False),
        row("cpu", 128, 500.0),  # with nothing to compare it to
        row("cpu", 64, 1.0, onednn=False),
        row("cpu", 8, 999.0, backend="jax"),
        row("cpu", 256, 80.0),
        row("cpu", 256, 20.0, onednn=False),
    ]
    assert compare._median_speedup(rows, "onednn", True, False) == 3.0  # of 2, 3 and 4
    assert compare._median_speedup(rows[:1], "onednn", True, False) is None
    assert compare._median_speedup([], "onednn", True, False) is None
    assert compare._median_speedup(rows[:4], "onednn", True, False) == 2.5  # of 3 and 2
    rows.append(row("cpu", 8, 45.0, precision="bfloat16"))
    assert compare._median_speedup(rows, "precision", "bfloat16", "float32") == 1.5


@pytest.mark.parametrize("rate", [0.123, 12.3, 24.4])
def test_the_table_fits_a_terminal(rate: float) -> None:
    rows = [row(device, size, rate * size) for device in ("cpu", "gpu") for size in (1, 32, 4096)]
    rows += [
        failed("gpu", 65_536, "out of memory: " + "x" * 180),
        row("gpu", 8, rate, xla=False, configuration="other"),
    ]
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.endswith(" *") for line in lines) == 1
    assert lines.count("CPU · tensorflow · float32 · oneDNN") == 1
    assert problems(rows) == [f"GPU · tensorflow · float32, batch size 65536: out of memory: {'x' * 180}"]
    assert table([failed("cpu", 8, "it broke")]).splitlines()[-1].split()[0] == "8"


class Messages(LogProgress):
    def __init__(self) -> None:
        self.text = ""

    def info(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.fixture(autouse=True)
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same configurations are planned on every machine."""
    here = machine.cpu()
    flags = tuple(flag for flag in here.flags if "bf16" not in flag)
    monkeypatch.setattr(machine, "cpu", lambda: replace(here, flags=flags))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The arguments of the smallest comparison."""
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    return {
        "data": "digits",
        "recipe": RECIPES["quick"],
        "images": 1290,
        "source_name": "digits",
        "devices": ["cpu"],
        "backends": ["tensorflow"],
        "batch_sizes": [16],
        "repeats": 1,
        "budget": 0.05,
        "output": tmp_path / "out put",
        "progress": Messages(),
    }


@pytest.mark.long
def test_a_comparison_is_measured_and_written(quick: dict[str, Any]) -> None:
    comparison = compare.run(**quick)
    found = comparison.result
    assert [r.get("problem") for r in found["rows"]] == [None, None]
    keys = {"what", "configuration", "measured_at", "commit", "environment", "device", "rows", "summary"}
    assert found.keys() == keys
    output = quick["output"]
    assert json.loads((output / "compare.json").read_text()) == json.loads(json.dumps(found))
    assert (output / "compare.png").read_bytes().startswith(b"\x89PNG")
    with_onednn, without = found["rows"]
    assert (with_onednn["onednn"], without["onednn"]) == (True, False)
    for measured in found["rows"]:
        assert measured["finite"]
        assert measured["batch_size"] == 16
        assert measured["epoch_seconds"] == pytest.approx(1290 / measured["end_to_end"]["median"])
        assert 0 < measured["matmul_share"] < 1
        assert measured["train"]["n"] == 1
        assert measured["peak_memory"] > 1e8
    text = (output / "compare.txt").read_text()
    assert text == "\n".join([comparison.table, "", *comparison.summary, ""])
    assert "An epoch of your data takes" in text
    assert "16: " in quick["progress"].text
    assert max(map(len, table(found["rows"]).splitlines())) <= 80
    assert found["summary"][-1].startswith("No GPU") or "gpu" in found["configuration"]


def test_a_backend_that_is_not_installed_is_a_row_with_its_reason(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "version = m.version\n"
        "def absent(name):\n"
        "    if name == 'jax': raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = absent\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hide))
    found = compare.run(**quick | {"backends": ["jax"], "batch_sizes": [8, 16]}).result
    reason = "Backend 'jax' is not installed. Install: pip install 'resnetlab[jax]'."
    assert [(r["batch_size"], r["problem"]) for r in found["rows"]] == [(8, reason), (16, reason)]
    assert not (quick["output"] / "compare.png").exists()
    assert found["summary"][0].startswith("Nothing could be measured")
    assert reason in quick["progress"].text


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "killed by SIGSEGV"),
        (
            f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})",
            "killed by SIGKILL, as the system does when it runs out of memory",
        ),
        ("raise RuntimeError('the card fell off [the bus]')", "the card fell off [the bus]"),
        ("import sys; sys.stdin.close(); import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_child_that_crashes_is_a_row_with_its_reason(
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    told: str,
) -> None:
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}"\n')
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert {r["problem"] for r in compare.run(**quick).rows} == {told}
    assert told in quick["progress"].text


class Interrupting(Messages):
    """SIGINT when the first batch size was measured."""

    def count(self, task: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_measured_and_says_so(quick: dict[str, Any]) -> None:
    found = compare.run(**quick | {"batch_sizes": [8, 16], "backends": ["tensorflow"], "progress": Interrupting()})
    assert found.interrupted
    assert [row["batch_size"] for row in found.rows] == [8]
    assert found.rows[0]["train"]["median"] > 0
    assert found.summary[0] == "Interrupted after 1 of 4 measurements: this is not the whole comparison."
    assert json.loads((quick["output"] / "compare.json").read_text("utf-8"))["rows"][0]["batch_size"] == 8


def test_where_the_output_cannot_be_is_said_before_anything_is_measured(quick: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(UsageError, match=r"a file cannot be a folder"):
        compare.run(**quick | {"output": tmp_path / "a file"})


def test_the_parent_imports_no_backend_and_leaves_the_environment_alone(quick: dict[str, Any]) -> None:
    before = dict(os.environ)
    with pytest.raises(UsageError, match="Unknown backend"):
        compare.run(**quick | {"backends": ["numpy"]})
    with pytest.raises(UsageError, match="Unknown device"):
        compare.run(**quick | {"devices": ["tpu"]})
    assert dict(os.environ) == before
    assert environment.installed("tensorflow")


@pytest.mark.long
@pytest.mark.benchmark
def test_the_gpu_branch_runs_end_to_end(quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the findings of a healthy machine; of the child only the device is replaced, by the CPU."""
    child = tmp_path / "child.py"
    child.write_text(
        "import os\n"
        "from resnetlab import environment\n"
        "start = environment.start\n"
        "def on_cpu(**settings):\n"
        "    start(**settings)\n"
        "    from resnetlab import backend as kernels\n"
        "    kernels.reset_gpu_memory_peak = lambda: None\n"
        "    kernels.gpus, kernels.gpu_memory_peak = lambda: ['a CPU in place of a GPU'], lambda: 10**9\n"
        "environment.start = on_cpu\n"
        "from resnetlab.child_process import serve\n"
        "from resnetlab.comparison import measure\n"
        "measure.MATMUL_SIDE['gpu'] = 256\n"
        "serve(measure.measure)\n"
    )
    monkeypatch.setattr(compare, "CHILD", (str(child),))
    monkeypatch.setattr(compare.doctor, "examine", lambda frameworks: quick_report("wsl2_healthy"))
    found = compare.run(**quick | {"devices": None, "backends": None, "budget": 0.05}).result
    assert [r.get("problem") for r in found["rows"]] == [None] * 8
    on_gpu = [r for r in found["rows"] if r["device"] == "gpu"]
    assert {(r["precision"], r["xla"]) for r in on_gpu} == {
        (precision, xla) for precision in ("float32", "tf32", "bfloat16") for xla in (True, False)
    }
    for measured in on_gpu:
        assert measured["gpu"] == "a CPU in place of a GPU"
        assert 0 < measured["train"]["median"] < 1e5
        assert measured["finite"]
    assert any("on the GPU (a CPU in place of a GPU)" in sentence for sentence in found["summary"])
    assert not any("No GPU" in sentence for sentence in found["summary"])
    assert "GPU · tensorflow · bfloat16 · XLA" in quick["progress"].text
