"""The benchmark of exports and engines runs, and measures what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "inference.py"


@pytest.mark.benchmark
@pytest.mark.long
def test_exports_and_engines_have_a_smoke_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    command = [sys.executable, str(BENCHMARK), "--smoke", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr

    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert not [row for row in rows if "failed" in row]
    kept = {row["export"]: row for row in rows if "export" in row}
    assert kept.keys() == {"onnx, float32", "onnx, float16", "onnx, int8"}
    assert all(row["images"] == 16 and row["largest_difference"] < 0.1 for row in kept.values())
    for batch in (1, 32):
        timed = {row["contender"] for row in rows if row.get("batch") == batch and "contender" in row}
        assert timed >= {"Keras, TensorFlow", "bare ONNX Runtime", *kept}
    ratios = {(row["ours"], row["over"]) for row in rows if "over" in row}
    assert ratios >= {("onnx, float32", "bare ONNX Runtime"), ("onnx, float32, from JPEG files", "onnx, float32")}
    assert [row["files"] for row in rows if "peak_mb" in row] == [400]
