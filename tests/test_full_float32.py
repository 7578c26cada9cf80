"""What is compared with a tolerance is computed in full float32, also where a GPU would round products to TF32."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnetlab import backend
from resnetlab.data.pack import Pack
from resnetlab.inference.export import export
from resnetlab.models import build
from resnetlab.models.variants import architecture
from resnetlab.run_folder import RunFolder
from resnetlab.weights import parity
from resnetlab.weights.convert import assign_weights, import_checkpoint
from resnetlab.weights.mapping import torchvision
from resnetlab.weights.readers import Checkpoint
from tests.inference.conftest import trained  # noqa: F401  (a fixture)
from tests.models.reference import as_torch, empty_weights
from tests.workers import Workers


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round their inputs to TF32's ten bits of mantissa unless that is off, as on an Ampere GPU."""
    exact = backend.convolution

    def rounded(x: tf.Tensor) -> tf.Tensor:
        bits = tf.bitcast(x, tf.uint32) + tf.constant(1 << 12, tf.uint32)
        return tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(0xFFFFE000, tf.uint32)), tf.float32)

    def convolution(x: Any, kernel: Any, **settings: Any) -> Any:
        if backend.tf32_setting():
            x, kernel = rounded(tf.convert_to_tensor(x)), rounded(tf.convert_to_tensor(kernel))
        return exact(x, kernel, **settings)

    monkeypatch.setattr(backend, "convolution", convolution)
    before = backend.tf32_setting()
    backend.allow_tf32(True)
    yield
    backend.set_tf32(before)


def random_weights(name: str) -> dict[str, np.ndarray]:
    """A state dict in torchvision's names, whose logits are of the order of one."""
    arch, rng = architecture(name), np.random.default_rng(0)
    arrays = as_torch(empty_weights(arch, 10), arch)
    for key, array in arrays.items():
        if array.ndim > 1:
            arrays[key] = rng.normal(0, (2 / np.prod(array.shape[1:])) ** 0.5, array.shape).astype(np.float32)
        else:
            arrays[key] = np.full(array.shape, 0.0 if key.endswith(("bias", "mean")) else 0.7, np.float32)
    return arrays


def test_the_simulation_rounds_more_than_the_tolerance(ampere: None) -> None:
    network = build("resnet18", num_classes=10)
    assign_weights(network, random_weights("resnet18"), torchvision(architecture("resnet18")))
    rounded = np.asarray(network(parity.images(64)))
    with backend.full_float32():
        exact = np.asarray(network(parity.images(64)))
    assert backend.tf32_setting()
    assert np.abs(rounded - exact).max() > 2e-4 * np.abs(exact).max()


def test_imported_weights_are_checked_in_full_float32(
    ampere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights("resnet18")
    network = build("resnet18", num_classes=10)
    assign_weights(network, weights, torchvision(architecture("resnet18")))
    with backend.full_float32():
        exact = np.asarray(network(parity.images(64)))
    monkeypatch.setattr(parity, "logits", lambda *_, **__: (exact, "torchvision"))
    run = import_checkpoint(Checkpoint("x.pth", weights), tmp_path / "run", settings={"image_size": 64})
    assert run.read_json("import.json")["check"]["difference"] < 1e-5


def test_an_export_is_verified_in_full_float32(
    ampere: None,
    trained: tuple[RunFolder, Path, Pack],  # noqa: F811
    tmp_path: Path,
) -> None:
    run, _, packed = trained
    folder = export(run, "onnx", output=tmp_path / "export", pack=packed)
    assert '"largest_difference"' in (folder / "export.json").read_text()
    assert backend.tf32_setting()  # as it was


def precision_of_a_trace() -> tuple[Any, Any, str]:
    """The setting inside and after, and on JAX the precision that a convolution is compiled with."""
    from resnetlab import backend

    backend.allow_tf32(True)
    with backend.full_float32():
        inside = backend.tf32_setting()
        text = ""
        if backend.NAME == "jax":
            import jax

            x, kernel = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 3, 2), np.float32)
            lowered = jax.jit(lambda a, b: backend.convolution(a, b, stride=1, groups=1)).lower(x, kernel)
            text = lowered.as_text()
    return inside, backend.tf32_setting(), text


def test_the_setting_of_each_backend_is_restored(on: Workers, backend: str) -> None:
    inside, after, text = on(backend)(precision_of_a_trace)
    off, allowed = {
        "tensorflow": (False, True),
        "torch": ((False, False), (True, True)),
        "jax": ("float32", "tensorfloat32"),
    }[backend]
    assert (inside, after) == (off, allowed)
    if backend == "jax":
        assert "HIGHEST" in text  # and not the default, which a GPU takes as TF32
    keras.backend.clear_session()
