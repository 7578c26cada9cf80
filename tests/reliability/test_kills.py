"""Runs that are killed at random moments end like one that never was; `kills.py` has the long version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers import ENVIRONMENT


@pytest.mark.long
@pytest.mark.benchmark
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("kills.py"))]
    options = ["--kills", "2", "--epochs", "4", "--out", str(tmp_path)]
    done = subprocess.run([*program, *options], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "reliability-kills-tensorflow.json").read_text())["rows"]
    assert row["problems"] == []
    assert row["kills"] == 2
    assert row["steps_lost_at_most"] is not None
    assert row["steps_lost_at_most"] <= 2 * row["steps_between_checkpoints"]
