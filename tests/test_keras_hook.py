"""A saved model is loaded by Keras alone, whichever of the two packages was imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnetlab.environment import BACKENDS, installed


def run(program: str, backend: str) -> str:
    environ = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.long
@pytest.mark.parametrize(
    "backend", ["tensorflow", *(pytest.param(b, marks=pytest.mark.benchmark) for b in BACKENDS[1:])]
)
def test_load_model_knows_the_layers_in_both_orders_of_import(backend: str, tmp_path: Path) -> None:
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    path = str(tmp_path / "m.keras")
    run(f"import resnetlab; resnetlab.build('resnet18d', num_classes=3, stochastic_depth=0.1).save({path!r})", backend)
    load = f"print(keras.saving.load_model({path!r}).output_shape)"
    assert run(f"import resnetlab, keras; {load}", backend) == "(None, 3)"
    assert run(f"import keras, resnetlab; {load}", backend) == "(None, 3)"


@pytest.mark.long
def test_neither_find_spec_nor_a_failed_import_loses_the_registration(tmp_path: Path) -> None:
    path = str(tmp_path / "m.keras")
    program = f"""
import importlib.util, os, resnetlab, sys
print(importlib.util.find_spec("keras").loader.is_package("keras"))
os.environ["KERAS_BACKEND"] = "nonsense"
try:
    import keras
except ValueError:
    print("failed")
for name in [name for name in sys.modules if name.partition(".")[0] == "keras"]:
    del sys.modules[name]
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
print(keras.saving.load_model({path!r}).output_shape)"""
    run(f"import resnetlab; resnetlab.build('resnet-tiny').save({path!r})", "tensorflow")
    assert run(program, "tensorflow").split("\n") == ["True", "failed", "(None, 10)"]


def test_importing_the_package_imports_no_keras_and_leaves_it_as_it_is() -> None:
    program = (
        "import sys, resnetlab; assert not {'keras', 'numpy', 'tensorflow'} & set(sys.modules), 'imported'; "
        "import keras; print(type(keras.__spec__.loader).__name__, 'resnetlab.models.layers' in sys.modules)"
    )
    assert run(program, "tensorflow") == "SourceFileLoader True"
