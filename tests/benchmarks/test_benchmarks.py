"""The benchmarks compare like with like, run where there is no GPU, and the README's tables are theirs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
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
    peers: Any = importlib.import_module("peers")
    module = getattr(peers, network)(peers.Job(model))
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
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_tables_are_filled_from_results_and_checked(tables: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"job": "small", "contender": "ours, jax", "share_of_matrix_product": 0.5},
        {"job": "small", "contender": "theirs"},
        {"job": "small", "ours": "ours, jax", "over": "theirs"},
    ]
    for row, values, unit in zip(rows, ([30, 32], [10, 12], [2, 3]), ("images/s", "images/s", "x"), strict=True):
        row |= results.Timing.of(values, unit).to_json()
    results.write(tmp_path / "throughput-here.json", results.result("a test", configuration={}, rows=rows))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: throughput -->\nold\n<!-- /table -->\nafter <!-- table: not closed\n")
    arguments = ["--readme", str(readme), "--results", str(tmp_path)]

    assert tables.main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()  # a check changes nothing
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    filled = readme.read_text()
    assert "| theirs | 11.0 (**2.50 x**) |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n<!-- table: throughput -->\n")
    assert filled.endswith("<!-- /table -->\nafter <!-- table: not closed\n")


def test_readme_tables_are_up_to_date(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0


@pytest.mark.long
def test_everything_that_needs_a_gpu_has_a_smoke_run(tmp_path: Path) -> None:
    """All parts on the CPU; it ends with 0 only if every correctness check passed."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr

    rows = json.loads((tmp_path / "gpu-smoke.json").read_text())["rows"]
    checked = {row["contender"] for row in rows if "check" in row and row["passed"]}
    assert checked == {backend for backend in ("tensorflow", "jax", "torch") if installed(backend)}
    assert {"machine", "correctness", "throughput", "compare", "original", "sweep"} <= {
        row["part"].partition(",")[0] for row in rows
    }
    unexpected = [
        row for row in rows if "failed" in row and not ("by hand" in row["contender"] and not installed("torch"))
    ]
    assert not unexpected


def test_children_end_with_a_killed_parent_and_with_their_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    processes = importlib.import_module("processes")
    child = tmp_path / "child.py"
    child.write_text(
        "import os, subprocess, sys, time, pathlib\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import processes\n"
        "processes.end_with_parent(every=0.05)\n"
        "grandchild = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {grandchild.pid}')\n"
        "time.sleep(60)\n"
    )

    def gone(file: Path) -> list[bool]:
        return [
            not Path(f"/proc/{pid}/stat").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
            for pid in file.read_text().split()
        ]

    def wait_for(condition: Callable[[], bool]) -> None:
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("ten seconds have passed")

    first, second = tmp_path / "first", tmp_path / "second"
    started = processes.start([sys.executable, str(child), str(first)])
    wait_for(lambda: first.exists() and len(first.read_text().split()) == 2)
    processes.end(started)
    wait_for(lambda: all(gone(first)))

    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import processes, time; "
        f"processes.start([sys.executable, {str(child)!r}, {str(second)!r}]); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: second.exists() and len(second.read_text().split()) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: all(gone(second)))


@pytest.mark.long
def test_the_gpu_benchmark_keeps_its_time(tmp_path: Path) -> None:
    """With a sixtieth of its time nothing can be measured: each part says so, and all of it ends soon."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--minutes", "0.15", "--out", str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert time.monotonic() - began < 60
    rows = json.loads((tmp_path / "gpu-smoke.json").read_text())["rows"]
    assert any("not done within" in row.get("failed", "") or "no time left" in row.get("failed", "") for row in rows)


@pytest.mark.long
def test_the_gpu_checklist_has_a_smoke_run(tmp_path: Path) -> None:
    checks = [argument for name in ("xla", "timing", "cpu") for argument in ("--check", name)]
    command = ["sh", str(BENCHMARKS / "gpu.sh"), "--checklist", "--smoke", "--out", str(tmp_path), *checks]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHON": sys.executable}
    )
    rows = {row["check"]: row for row in json.loads((tmp_path / "gpu-checklist-smoke.json").read_text())["rows"]}
    assert done.returncode == 0, done.stdout + done.stderr
    assert [rows[name]["status"] for name in ("xla", "timing", "cpu")] == ["PASS", "PASS", "SKIPPED"]
