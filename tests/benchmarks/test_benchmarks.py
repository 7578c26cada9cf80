"""The benchmarks compare like with like, run where there is no GPU, and the README's tables are theirs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from resnetlab import results
from resnetlab.environment import installed
from resnetlab.models import architecture, summarize

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def parameters(network: str, model: str) -> int:
    """Of a PyTorch peer. Runs in the PyTorch process."""
    sys.path.insert(0, str(BENCHMARKS))
    contenders: Any = importlib.import_module("contenders")
    module = getattr(contenders, network)(contenders.Job(model))
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("network", "model"), [("by_hand", "resnet20"), ("by_hand", "resnet56"), ("transformers", "resnet50")]
)
def test_a_pytorch_peer_has_our_parameters(on: Any, network: str, model: str) -> None:
    assert (
        on("torch")(parameters, network=network, model=model)
        == summarize(architecture(model), num_classes=10).parameters
    )


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("tables")


def test_tables_are_filled_from_results_and_checked(tables: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"job": "small", "contender": "ours, jax", "share_of_matrix_product": 0.5},
        {"job": "small", "contender": "theirs", "share_of_matrix_product": 0.2},
        {"job": "small", "ours": "ours, jax", "over": "theirs"},
    ]
    for row, values, unit in zip(rows, ([30, 32], [10, 12], [2, 3]), ("images/s", "images/s", "x"), strict=True):
        row |= results.Timing.of(values, unit).to_json()
    results.write(tmp_path / "throughput-here.json", results.result("a test", configuration={}, rows=rows))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: throughput -->\nold\n<!-- /table -->\nafter <!-- table: not closed\n")
    arguments = ["--page", str(readme), "--results", str(tmp_path)]

    assert tables.main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()  # a check changes nothing
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    filled = readme.read_text()
    assert "| small | images/s | fraction of matmul rate | ours, jax ÷ this |" in filled
    assert "| theirs | 11.0 | 20% | **2.50 x** (2.00 - 3.00) |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n<!-- table: throughput -->\n")
    assert filled.endswith("<!-- /table -->\nafter <!-- table: not closed\n")


def test_the_table_of_precisions(tables: ModuleType) -> None:
    rates = {"ours, tensorflow": (10, 16), "theirs": (10, 8)}
    rows: list[dict[str, object]] = [
        {"job": "small", "contender": f"{name}, {precision}", "precision": precision, "unit": "images/s",
         "median": rate, "share_of_matrix_product": 0.5}
        for name, pair in rates.items() for precision, rate in zip(("float32", "bfloat16"), pair, strict=True)
    ]  # fmt: skip
    over = {"ours, tensorflow, float32": 1.6, "theirs, float32": 1.6, "theirs, bfloat16": 2.0}
    rows += [
        {"job": "small", "ours": "ours, tensorflow, bfloat16", "over": name, "median": ratio}
        for name, ratio in over.items()
    ]
    made = tables.precision(results.result("a test", configuration={}, rows=rows))
    assert "| ours, tensorflow | 10.0 (50%) | 16.0 (50%) | **1.60 x** (float32) |" in made
    assert "| theirs | 10.0 (50%) | 8.0 (50%) | **1.60 x** (float32) |" in made


def test_the_tables_of_the_pages_are_up_to_date(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0


@pytest.mark.benchmark
@pytest.mark.long
def test_the_gpu_benchmark_has_a_smoke_run(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu-smoke.json").read_text())["rows"]
    assert not [row for row in rows if "failed" in row]
    backends = {backend for backend in ("tensorflow", "jax", "torch") if installed(backend)}
    timed = {row["contender"] for row in rows if row["part"] == "throughput" and row.get("unit") == "images/s"}
    assert timed >= {f"ours, {backend}{how}" for backend in backends for how in ("", ", packed")}
    assert {row["contender"] for row in rows if row["part"] == "original"} == {
        f"ours, {backend}, cpu, batch 32, float32" for backend in backends
    }


@pytest.mark.benchmark
@pytest.mark.long
def test_the_gpu_benchmark_keeps_its_time(tmp_path: Path) -> None:
    """With a sixtieth of its time nothing can be measured: each part says so, and all of it ends soon."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--minutes", "0.1", "--out", str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert time.monotonic() - began < 60
    rows = json.loads((tmp_path / "gpu-smoke.json").read_text())["rows"]
    assert any("no answer within" in row.get("failed", "") or "no time left" in row.get("failed", "") for row in rows)


@pytest.mark.benchmark
@pytest.mark.long
def test_the_training_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), "--job", "resnet20-32-b128", "--only", "tensorflow"]
    options = ["--repeats", "2", "--seconds", "0.1", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["contender"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    ours = rows["ours, tensorflow"]
    assert ours["n"] == 2
    assert 0 < ours["share_of_matrix_product"] < 1
    assert ours["processor_ms_per_image"] > 0
    assert rows["matrix product, tensorflow"]["unit"] == "GFLOP/s"


@pytest.mark.benchmark
@pytest.mark.long
def test_the_training_benchmark_compares_precisions(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), "--job", "resnet20-32-b128", "--only", "tensorflow"]
    command += ["--precision", "float32", "--precision", "bfloat16"]
    options = ["--repeats", "2", "--seconds", "0.1", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["precision"] for row in rows if row.get("unit") == "images/s"} == {"float32", "bfloat16"}
    assert ("ours, tensorflow, bfloat16", "ours, tensorflow, float32") in {
        (row["ours"], row["over"]) for row in rows if "over" in row
    }


@pytest.mark.benchmark
@pytest.mark.long
def test_the_input_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "input_pipeline.py"), "--part", "stream", "--repeats", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.json")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["contender"].split(", ", 1)[1] for row in rows] == [
        f"batch {batch}, {what}" for batch in (32, 256) for what in ("recipe", "all options")
    ]
    assert all(row["median"] > 100 for row in rows)


@pytest.mark.benchmark
@pytest.mark.long
def test_the_shards_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "shards.py"), "--images", "600", "--batches", "20", "--rounds", "2"]
    command += ["--shard-megabytes", "1", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["part"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert rows["packing"]["shards"] == 2
    assert rows["ratio"]["median"] == pytest.approx(rows["shards"]["median"] / rows["one file"]["median"], rel=0.3)


@pytest.mark.benchmark
@pytest.mark.long
def test_the_gpu_tests_have_a_rehearsal() -> None:
    """On the CPU in place of the GPU: what needs a real one is skipped, the rest passes."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    chosen = ["-k", "resnet-tiny or losses or xla or doctor"]
    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=os.environ | {"RESNETLAB_GPU_REHEARSAL": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
