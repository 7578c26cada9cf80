"""The benchmarks compare like with like, run where there is no GPU, and the README's tables are theirs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
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
