"""Shared by all tests: the test process runs on TensorFlow, and `on` runs a function on any backend."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetlab.environment import BACKENDS, configure

if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core, so one thread in each
    os.environ |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
ROOT = Path(__file__).parents[1]
# What XLA compiles for JAX is kept, also between processes: a third of the time of the tests on JAX.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
sys.path.insert(0, str(ROOT))  # as `python -m pytest` does, and a bare `pytest` does not

from tests.workers import HERE, Workers  # noqa: E402

configure(backend=HERE, device="cpu")  # before a test module imports Keras


@pytest.fixture(scope="session")
def on() -> Iterator[Workers]:
    """Run a function on a backend: `on("jax")(function, **kwargs)`; see tests/workers.py."""
    workers = Workers()
    yield workers
    workers.close()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(params=[name for name in BACKENDS if name != HERE])
def other_backend(request: pytest.FixtureRequest) -> str:
    """Each backend but this process's own: for what is compared with what this process computes."""
    return str(request.param)


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    """Two or more real photographs: (n, 224, 224, 3) uint8."""
    folder = Path(os.environ.get("RESNETLAB_DATA", ""), "animals10-sample", "raw-img")
    files = [next(kind.glob("*.jpeg")) for kind in sorted(folder.glob("*"))[:2]]
    if files:
        images = [Image.open(file).convert("RGB") for file in files]
    else:  # those that scikit-learn brings along: a temple, a flower
        from sklearn.datasets import load_sample_images

        images = [Image.fromarray(array) for array in load_sample_images().images]
    return np.stack([np.asarray(image.resize((224, 224))) for image in images])
