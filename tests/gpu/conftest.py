"""Tests of what a GPU computes: `pytest -m gpu`. Skipped where there is none.

RESNETLAB_GPU_REHEARSAL=1 runs them on the CPU with tiny networks, which shows that the tests themselves work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from resnetlab import doctor
from tests.workers import Workers

REHEARSAL = bool(os.environ.get("RESNETLAB_GPU_REHEARSAL"))


GPUS = doctor.examine(frameworks=()).facts.nvidia.gpus


@pytest.fixture(scope="session")
def device() -> str:
    """Where to compute: "cpu" in a rehearsal."""
    return "cpu" if REHEARSAL else "gpu"


@pytest.fixture
def real_gpu(device: str) -> None:
    if device == "cpu":
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def on_gpu(device: str) -> Iterator[Workers]:
    """Run a function on a backend, on the GPU."""
    workers = Workers(device)
    yield workers
    workers.close()
