"""A GPU computes what the CPU computes, on each backend, and every command works on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab import environment
from resnetlab.keras_hook import BACKENDS
from tests.gpu.conftest import GPUS, REHEARSAL
from tests.workers import ENVIRONMENT, HERE, Workers

pytestmark = pytest.mark.gpu
if not GPUS and not REHEARSAL:
    pytest.skip("no GPU here", allow_module_level=True)

FAMILIES = ["resnet-tiny", "resnet20"]
if not REHEARSAL:
    FAMILIES = [
        *("resnet18", "resnet50", "keras-resnet50", "keras-resnet50v2", "preresnet50", "resnet50d", "resnext50-32x4d"),
        *("se-resnet50", "wide-resnet50-2", "resnet20", "wrn-16-8", "plain20", "preresnet164"),
    ]
SIZE = 32 if REHEARSAL else 64
# float32 without TF32; bfloat16 against float32 on the CPU.
LOGITS_BOUND, BFLOAT16_BOUND, LOSSES_BOUND = 1e-3, 0.1, 1e-2


def logits(family: str, precision: str, size: int) -> np.ndarray:
    """Of eight random images; batch norms and biases are random too, so that no branch is multiplied by zero."""
    from resnetlab import backend
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import BASE

    backend.allow_tf32(False)
    rng = np.random.default_rng(1)
    network = build_network(BASE.changed(model=family, image_size=size, precision=precision), 10)
    for variable in network.variables:
        if len(variable.shape) == 1:
            centre = 1.0 if variable.name in ("gamma", "moving_variance") else 0.0
            variable.assign((centre + rng.uniform(-0.3, 0.3, variable.shape)).astype(np.float32))
    return np.asarray(network.predict_on_batch(rng.integers(0, 256, (8, size, size, 3), np.uint8)), np.float64)


def losses(family: str, size: int) -> np.ndarray:
    """Of 20 training steps with every augmentation there is."""
    from resnetlab import backend
    from resnetlab.recipes import RECIPES

    backend.allow_tf32(False)
    recipe = RECIPES["animals"].changed(
        model=family,
        image_size=size,
        batch_size=32,
        learning_rate=0.003,
        warmup=0,
        color_jitter=0.4,
        mixup=0.2,
        cutmix=1.0,
    )
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, 256)
    images = rng.integers(0, 256, (256, recipe.pack_size, recipe.pack_size, 3)) // 2 + 12 * labels[:, None, None, None]
    trainer, stream = trainer_of(recipe, images.astype(np.uint8), labels)
    found = []
    for step in range(20):
        inputs, targets, _ = stream.batch(step)
        trainer.reset_metrics()
        found.append(trainer.train_on_batch(inputs, targets, return_dict=True)["loss"])
    return np.array(found, np.float64)


def trainer_of(recipe: Any, images: np.ndarray, labels: np.ndarray, **settings: Any) -> tuple[Any, Any]:
    from resnetlab.data.stream import Stream
    from resnetlab.models.from_recipe import build_network
    from resnetlab.training.build import make_augmentation, make_trainer

    stream = Stream(
        images=images,
        labels=labels,
        indices=np.arange(len(images)),
        batch_size=recipe.batch_size,
        num_classes=10,
        augmentation=make_augmentation(recipe),
    )
    return make_trainer(build_network(recipe, 10), recipe, stream, **settings), stream


def random_trainer(model: str, size: int, batch: int, **settings: Any) -> tuple[Any, Any]:
    """A trainer, and a stream of one batch of random images."""
    from resnetlab.recipes import BASE

    recipe = BASE.changed(model=model, image_size=size, batch_size=batch, validation=0.0, test=0.0)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    return trainer_of(recipe, images, np.arange(batch) % 10, **settings)


def resnetlab(*arguments: object, limit: float = 300) -> str:
    command = [sys.executable, "-m", "resnetlab.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_cpus(on: Workers, on_gpu: Workers, backend: str, family: str) -> None:
    expected = on(HERE)(logits, family=family, precision="float32", size=SIZE)
    found = on_gpu(backend)(logits, family=family, precision="float32", size=SIZE)
    assert relative(found, expected) <= LOGITS_BOUND
    assert np.array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in ("resnet-tiny", "resnet20", "resnet50")])
def test_bfloat16_logits_are_near_the_cpus(on: Workers, on_gpu: Workers, backend: str, family: str) -> None:
    expected = on(HERE)(logits, family=family, precision="float32", size=SIZE)
    assert relative(on_gpu(backend)(logits, family=family, precision="bfloat16", size=SIZE), expected) <= BFLOAT16_BOUND


def test_losses_of_20_steps_are_the_cpus(on: Workers, on_gpu: Workers, backend: str) -> None:
    size = 16 if REHEARSAL else SIZE
    expected = on(HERE)(losses, family=FAMILIES[0], size=size)
    assert relative(on_gpu(backend)(losses, family=FAMILIES[0], size=size), expected) <= LOSSES_BOUND


def test_the_doctor_computes_on_each_backend(device: str) -> None:
    report = json.loads(resnetlab("doctor", "--json"))
    expected = [name for name in BACKENDS if environment.installed(name)]
    assert [name for name in expected if device.upper() in report["runs_on"].get(name, ())] == expected


def xla_losses(model: str) -> list[float]:
    trainer, stream = random_trainer(model, 64, 32, jit_compile=True)
    return [float(trainer.train_on_batch(*stream.batch(step)[:2], return_dict=True)["loss"]) for step in range(5)]


def test_tensorflow_trains_compiled_by_xla(on_gpu: Workers) -> None:
    found = on_gpu("tensorflow")(xla_losses, model=FAMILIES[0])
    assert all(0 < loss < 100 for loss in found)


def test_compare_has_rows_of_the_device(device: str, tmp_path: Path) -> None:
    options = ["--devices", device, "--batch-sizes", "64", "--repeats", "1", "--budget", "0.3", "--output", tmp_path]
    resnetlab("compare", "digits", *options)
    rows = json.loads((tmp_path / "compare.json").read_text("utf-8"))["rows"]
    assert {row["device"] for row in rows} == {device}
    assert not [row for row in rows if row.get("problem")]


def test_exports_and_imports_are_verified(device: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    resnetlab("train", "digits", "--set", "epochs=1", "--run", tmp_path / "run")
    resnetlab("export", tmp_path / "run", "--format", "onnx", "--output", tmp_path / "export")
    make = f"import keras; keras.applications.ResNet50(weights=None).save({str(tmp_path / 'net.keras')!r})"
    own = ENVIRONMENT | {"KERAS_BACKEND": HERE}
    subprocess.run([sys.executable, "-c", make], check=True, capture_output=True, timeout=300, env=own)
    resnetlab("import", tmp_path / "net.keras", "--run", tmp_path / "imported")
    assert json.loads((tmp_path / "imported" / "import.json").read_text("utf-8"))["check"]["against"]


def layout_kernels() -> list[str]:
    """Kernels of a training step of ResNet-50 that convert between memory layouts."""
    import torch

    trainer, stream = random_trainer("resnet50", 64, 64)
    for step in range(3):
        trainer.train_on_batch(*stream.batch(step)[:2])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        trainer.train_on_batch(*stream.batch(3)[:2])
    names = [event.key.lower() for event in profile.key_averages()]
    assert names
    return [name for name in names if any(word in name for word in ("nchwtonhwc", "nhwctonchw", "converttensor"))]


def test_pytorch_converts_no_memory_layouts(real_gpu: None, on_gpu: Workers) -> None:
    assert on_gpu("torch")(layout_kernels) == []


def timing_error(model: str, size: int) -> float:
    """Of the method of `compare`, against 200 steps by hand: the median of three, relative."""
    from resnetlab.comparison.measure import repeat_batch
    from resnetlab.comparison.timing import FitTimer, seconds_per_step, steps_to_time

    trainer, stream = random_trainer(model, size, 32)
    timer, batch = FitTimer(trainer, "gpu"), stream.batch(0)[:2]

    def seconds_of(steps: int) -> float:
        return timer.call(repeat_batch(batch), steps).seconds

    seconds_of(2)
    measured = sorted(seconds_per_step(seconds_of, steps_to_time(seconds_of, 2.0)) for _ in range(3))[1]
    by_hand = sorted((seconds_of(201) - seconds_of(1)) / 200 for _ in range(3))[1]
    return measured / by_hand - 1


def test_compare_times_as_200_steps_by_hand(on_gpu: Workers, backend: str) -> None:
    error = on_gpu(backend)(timing_error, model=FAMILIES[0], size=16 if REHEARSAL else 64)
    assert abs(error) < (1.0 if REHEARSAL else 0.05)  # a CPU that others use too says nothing about the method


def test_device_cpu_leaves_the_gpu_empty(real_gpu: None, tmp_path: Path) -> None:
    nvml = pytest.importorskip("pynvml")
    nvml.nvmlInit()
    handle, most = nvml.nvmlDeviceGetHandleByIndex(0), 0
    command = [sys.executable, "-m", "resnetlab.cli", "train", "digits", "--set", "epochs=3", "--device", "cpu"]
    before = nvml.nvmlDeviceGetMemoryInfo(handle).used
    process = subprocess.Popen([*command, "--run", str(tmp_path / "run")], stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    while process.poll() is None:
        most = max(most, nvml.nvmlDeviceGetMemoryInfo(handle).used - before)
        time.sleep(0.1)
    assert process.returncode == 0
    assert most < 2**20


def out_of_memory() -> tuple[bool, str]:
    from resnetlab.errors import first_informative_line, is_out_of_memory

    trainer, stream = random_trainer("resnet50", 224, 8192)
    try:
        trainer.train_on_batch(*stream.batch(0)[:2])
    except Exception as error:
        return is_out_of_memory(error), first_informative_line(error)
    return False, "8,192 images of 224x224 fitted"


def test_running_out_of_memory_is_recognised(real_gpu: None, backend: str) -> None:
    workers = Workers("gpu")  # its own: what is left of it is of no use
    try:
        recognised, text = workers(backend)(out_of_memory)
    finally:
        workers.close()
    assert recognised, text


def idle_gpus() -> int:
    return len(environment.idle_gpus())


def test_of_several_gpus_one_is_used(real_gpu: None, on_gpu: Workers, backend: str) -> None:
    count = len(GPUS)
    if count < 2 or os.environ.get("CUDA_VISIBLE_DEVICES"):
        pytest.skip("one GPU here")
    assert on_gpu(backend)(idle_gpus) == count - 1
