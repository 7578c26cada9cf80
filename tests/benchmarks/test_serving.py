"""The benchmark of the server runs, and measures what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.benchmark
@pytest.mark.long
def test_the_benchmark_of_the_server_has_a_smoke_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if shutil.which("hey") is None:
        pytest.skip("no hey: on Debian, apt install hey")
    command = [sys.executable, str(BENCHMARK), "--smoke", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    engines = [row["contender"] for row in rows if row["part"] == "engine"]
    assert engines == ["engine, batch 8", "engine, batch 32"]
    loads = [row for row in rows if row["part"] == "load"]
    assert [row["contender"] for row in loads] == [
        "resnetlab serve",
        "bare FastAPI and ONNX Runtime, one image a request",
    ]
    for row in loads:
        assert row["errors"] == 0
        assert row["answered"] > 0
        assert row["processor_ms_per_image"] > 0
    assert [row["ours"] for row in rows if row["part"] == "ratio"] == [row["contender"] for row in loads]
    (attack,) = [row for row in rows if row["part"] == "hostile"]
    assert (attack["requests"], attack["neither_4xx_nor_closed"]) == (330, 0)
    assert attack["good_requests_answered_as_before"] == "10 of 10"
