"""What must be set before Keras is imported can only be set if nothing imports Keras too early."""

import json
import subprocess
import sys

import pytest

HEAVY = ("jax", "keras", "tensorflow", "torch")
LIGHT = (
    "resnetlab",
    "resnetlab.cli",
    "resnetlab.comparison.compare",
    "resnetlab.data.sources",
    "resnetlab.doctor",
    "resnetlab.environment",
    "resnetlab.errors",
    "resnetlab.inference.export",
    "resnetlab.inference.predictor",
    "resnetlab.models.resnet",
    "resnetlab.models.shapes",
    "resnetlab.models.variants",
    "resnetlab.recipes",
    "resnetlab.progress",
    "resnetlab.run",
    "resnetlab.run_folder",
    "resnetlab.server.app",
    "resnetlab.server.serve",
    "resnetlab.tasks",
    "resnetlab.weights.importing",
    "resnetlab.weights.mapping",
)


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_imports_no_backend(module: str) -> None:
    program = (
        f"import importlib, json, sys; importlib.import_module({module!r}); "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1]) == []
