"""The contenders of the benchmarks: one network, one batch, one optimizer, by us and by the peers.

Every maker below has one shape: given a job it builds network and optimizer, and returns `run(steps) -> loss`, which
trains for so many steps and returns when the last is done. All train the same architecture on one constant batch of
random images with cross-entropy and SGD (momentum .9, Nesterov); ours and PyTorch's have L2 regularisation too, which
`keras.optimizers.SGD` does not offer. Ours starts from bytes and normalises them, the peers get floats.

`Child` keeps one contender alive in a process of its own, and speaks JSON lines with it.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import processes

SOURCE = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCE))

Run = Callable[[int], float]
Mark = Callable[[str], None]

LEARNING_RATE, MOMENTUM, L2 = 0.01, 0.9, 5e-4
MATRIX_SIDE = {"float32": 2048, "bfloat16": 8192}  # of the product that stands for what a machine can do


@dataclass(frozen=True)
class Job:
    """What is trained."""

    model: str = "resnet50"
    size: int = 64
    batch: int = 32
    classes: int = 10
    device: str = "cpu"  # or "gpu"
    precision: str = "float32"  # or "bfloat16"
    packed: bool = False  # ours only: fed by a Stream over a pack, with the imagenet recipe's augmentation

    @property
    def train_flop(self) -> float:
        """Of one image: a multiply-add is two operations; each of the two gradients costs as much as a forward pass."""
        from resnetlab.models import architecture, summarize

        return 3 * 2 * summarize(architecture(self.model), self.size, self.classes).multiply_adds


@dataclass(frozen=True)
class Contender:
    """Who trains: a maker with its options, in a process with this environment."""

    name: str
    maker: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------- Keras


def ours(
    job: Job,
    mark: Mark,
    *,
    backend: str,
    threads: int | None = None,
    compiled: bool | None = None,
) -> Run:
    """What `resnetlab train` runs, `fit` included; None stands for its own choice."""
    from resnetlab import environment

    environment.configure(backend=backend, device=job.device, threads=threads)
    import keras
    import numpy as np

    from resnetlab import backend as kernels
    from resnetlab.data.stream import Stream
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import RECIPES
    from resnetlab.training.trainer import make_augmentation, make_trainer

    mark("import")
    if job.device == "gpu" and not kernels.gpus():
        raise RuntimeError(f"{backend} sees no GPU")
    recipe = RECIPES["imagenet" if job.packed else "animals"].changed(
        name="benchmark",
        model=job.model,
        image_size=job.size,
        batch_size=job.batch,
        precision=job.precision,
        learning_rate=LEARNING_RATE,
        nesterov=True,
        weight_decay=L2,
        label_smoothing=0.0,
        class_weights=False,
        **({} if job.packed else {"crop": "none", "flip": False}),
    )
    count = max(2048, 2 * job.batch) if job.packed else job.batch
    rng = np.random.default_rng(0)
    stream = Stream(
        images=rng.integers(0, 256, (count, recipe.pack_size, recipe.pack_size, 3), np.uint8),
        labels=rng.integers(0, job.classes, count),
        indices=np.arange(count),
        batch_size=job.batch,
        num_classes=job.classes,
        augmentation=make_augmentation(recipe),
    )
    trainer = make_trainer(build_network(recipe, job.classes), recipe, stream)
    if compiled is not None:
        trainer.jit_compile = compiled
    mark("build")
    inputs, targets, _ = stream.batch(0)
    if job.device == "gpu":  # resident there; TensorFlow's generators take it back to the host
        inputs, targets = keras.tree.map_structure(keras.ops.convert_to_tensor, (inputs, targets))

    def run(steps: int) -> float:
        batches: Any = stream.batches(0) if job.packed else _forever((inputs, targets))
        history = trainer.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=clock(job)).history
        batches.close()
        return float(history["loss"][-1])

    return run


ENDS: list[tuple[float, float]] = []  # of the steps of one `fit`: wall clock, processor time


def clock(job: Job) -> list[Any]:
    """A callback that reads the clock at each step's end: entering and leaving `fit` takes up to a second, and varies.

    On a GPU it would keep the device waiting; there T(n + 1) - T(1) is taken, over many steps.
    """
    import keras

    def read(batch: int, logs: Any = None) -> None:
        ENDS.append((time.perf_counter(), sum(os.times()[:4])))

    return [keras.callbacks.LambdaCallback(on_train_batch_end=read)] if job.device == "cpu" else []


def keras_applications(job: Job, mark: Mark, *, backend: str) -> Run:
    """keras.applications' ResNet50, used as its documentation does."""
    if job.model != "resnet50":
        raise ValueError(f"keras.applications has no {job.model}")
    os.environ["KERAS_BACKEND"] = backend
    if job.device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    import keras
    import numpy as np

    mark("import")
    if job.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.applications.ResNet50(weights=None, classes=job.classes, input_shape=(job.size, job.size, 3))
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    mark("build")
    rng = np.random.default_rng(0)
    images = rng.normal(0, 60, (job.batch, job.size, job.size, 3)).astype(np.float32)
    labels = rng.integers(0, job.classes, job.batch)

    def run(steps: int) -> float:
        batches = _forever((images, labels))
        fitted = model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=clock(job))
        return float(fitted.history["loss"][-1])

    return run


def _forever(batch: Any) -> Generator[Any, None, None]:
    while True:
        yield batch


# ------------------------------------------------------------------------------------------------- PyTorch


def native(job: Job, mark: Mark, *, network: str, compiled: bool = False) -> Run:
    """A network of PyTorch's world, channels_last."""
    import torch

    module = {"transformers": transformers, "torchvision": torchvision, "timm": timm, "by hand": by_hand}[network](job)
    mark("import")
    device = "cuda" if job.device == "gpu" else "cpu"
    torch.backends.cudnn.benchmark = True
    module = module.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=L2, nesterov=True)
    if compiled:
        torch._dynamo.reset()
        module = torch.compile(module, dynamic=False)
    mark("build")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(job.batch, 3, job.size, job.size, generator=generator)
    images = images.to(device=device, memory_format=torch.channels_last)
    labels = torch.randint(job.classes, (job.batch,), generator=generator).to(device)

    def run(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=job.precision == "bfloat16"):
                logits = module(images)
                loss = torch.nn.functional.cross_entropy(getattr(logits, "logits", logits), labels)
            loss.backward()
            optimizer.step()
        return float(loss)  # waits for the device

    return run


def transformers(job: Job) -> Any:
    """ResNetForImageClassification with the stride on the 3x3 (v1.5), as torchvision has it."""
    if job.model != "resnet50":
        raise ValueError(f"no {job.model} here")
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[3, 4, 6, 3], downsample_in_bottleneck=False, num_labels=job.classes)
    return ResNetForImageClassification(config)


def torchvision(job: Job) -> Any:
    from torchvision.models import get_model

    return get_model(job.model, weights=None, num_classes=job.classes)


def timm(job: Job) -> Any:
    from timm import create_model

    return create_model(job.model, pretrained=False, num_classes=job.classes)


def by_hand(job: Job) -> Any:
    """He 2015, section 4.2: the CIFAR networks of 6n + 2 layers with shortcut A."""
    from torch import nn
    from torch.nn import functional as F

    def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        layers = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
        return nn.Sequential(*layers)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.stride, self.new = 1 if inputs == outputs else 2, outputs - inputs
            self.first, self.second = convolution(inputs, outputs, self.stride), convolution(outputs, outputs)

        def forward(self, x: Any) -> Any:
            y = self.second(F.relu(self.first(x), inplace=True))
            if self.new:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
            return F.relu(x + y, inplace=True)

    blocks = (int(job.model.removeprefix("resnet")) - 2) // 6
    widths = [16] + [16] * blocks + [32] * blocks + [64] * blocks
    return nn.Sequential(
        convolution(3, 16),
        nn.ReLU(inplace=True),
        *(Block(a, b) for a, b in itertools.pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, job.classes),
    )


# --------------------------------------------------------------------------------------- the machine itself


def matrix_product(job: Job, mark: Mark, *, framework: str) -> Run:
    """Products of two square matrices: what all else is a share of. `steps` of them."""
    side = MATRIX_SIDE[job.precision]
    if framework == "tensorflow":
        os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "1"} | ({"CUDA_VISIBLE_DEVICES": "-1"} if job.device == "cpu" else {})
        import tensorflow as tf

        a, b = (tf.cast(tf.random.normal((side, side)), job.precision) for _ in range(2))
        multiply = tf.matmul
    elif framework == "jax":
        import jax

        a, b = (jax.random.normal(jax.random.key(i), (side, side), job.precision) for i in range(2))
        multiply = jax.jit(jax.numpy.matmul)
    else:
        import torch

        device, dtype = "cuda" if job.device == "gpu" else "cpu", getattr(torch, job.precision)
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        multiply = torch.matmul

    def run(steps: int) -> float:
        for _ in range(steps):
            c = multiply(a, b)
        return float(c[0, 0])

    return run


MAKERS: dict[str, Callable[..., Run]] = {
    "ours": ours,
    "keras.applications": keras_applications,
    "native": native,
    "matrix product": matrix_product,
}

# ------------------------------------------------------------------------------------------ one in a process


CHILD = "--child"  # the first argument of a process that is one


class Failed(Exception):
    """A contender could not run; the text is the reason."""


class Child:
    """A contender alive in its own process. Raises Failed, with the reason, wherever it does not answer."""

    def __init__(self, contender: Contender, job: Job, *, limit: float = 600, script: str = __file__) -> None:
        self.contender, self.job, self.limit = contender, job, limit
        dropped = ("TF_ENABLE_ONEDNN_OPTS", "KERAS_BACKEND", "OMP_NUM_THREADS")  # each contender begins as installed
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} | contender.environment
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in `close`)
        began = time.time()
        self.process = processes.start(
            [sys.executable, script, CHILD, json.dumps([asdict(contender), asdict(job)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment,
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        marks = self._answer(limit)["marks"]
        self.marks = {name: at - began for name, at in marks.items()}  # seconds from the start of the process

    def train(self, steps: int, *, net: bool = False, limit: float | None = None) -> float:
        """Seconds that so many steps take; `net` of what a call of `fit` costs, by running one step and then all."""
        answer = self._ask({"steps": steps, "net": net}, limit)
        self.processor = float(answer["processor"])  # seconds of processor time it took: says more on a busy machine
        return float(answer["seconds"])

    def value(self, steps: int, *, limit: float | None = None) -> float:
        """What so many steps return."""
        return float(self._ask({"steps": steps, "net": False}, limit)["value"])

    def change(self, limit: float | None = None, **changes: Any) -> None:
        """Build anew for another job, and take its first step."""
        self.job = replace(self.job, **changes)
        self._ask({"job": asdict(self.job)}, limit)

    def close(self) -> None:
        processes.end(self.process)
        self.said.close()

    def _ask(self, request: dict[str, Any], limit: float | None) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it died: the answer says so
        return self._answer(limit or self.limit)

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self.answers.get(timeout=max(limit, 1))
        except queue.Empty:
            processes.end(self.process)
            raise Failed(f"no answer within {limit:.0f} s") from None
        if not line:
            self.said.seek(0)
            tail = self.said.read().strip().splitlines()[-1:] or ["nothing said"]
            raise Failed(f"died with exit code {self.process.wait()}: {tail[0][:300]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")


def serve(makers: dict[str, Callable[..., Run]]) -> None:
    """The child: build, take the first step, then answer requests until the pipe closes."""
    processes.end_with_parent()
    who, what = json.loads(sys.argv[2])
    contender, job = Contender(**who), Job(**what)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints must not get among the answers
    marks: dict[str, float] = {}

    def begin(job: Job) -> Run:
        run = makers[contender.maker](job, lambda name: marks.update({name: time.time()}), **contender.options)
        run(1)
        marks["step"] = time.time()
        return run

    def timed(run: Run, steps: int) -> tuple[float, float]:
        began = time.perf_counter()
        value = run(steps)
        return time.perf_counter() - began, value

    def respond(request: dict[str, Any], run: Run | None) -> tuple[Run, dict[str, Any]]:
        if run is None or "job" in request:
            del run
            gc.collect()
            return begin(Job(**request["job"])), {"marks": marks}
        one = timed(run, 1)[0] if request["net"] else 0.0
        before = sum(os.times()[:4])  # with ended children, such as a DataLoader's workers
        ENDS.clear()
        seconds, value = timed(run, request["steps"] + request["net"])
        seconds, processor = seconds - one, sum(os.times()[:4]) - before
        if request["net"] and len(ENDS) > 1:
            seconds, processor = (last - first for first, last in zip(ENDS[0], ENDS[-1], strict=True))
        return run, {"seconds": seconds, "value": value, "processor": processor}

    run: Run | None = None
    request: dict[str, Any] = {"job": asdict(job)}
    while True:
        try:
            run, answer = respond(request, run)
        except Exception as error:
            text = next((line for line in str(error).splitlines() if line.strip()), "")
            answer = {"error": f"{type(error).__name__}: {text[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        line = sys.stdin.readline()
        if not line:
            return
        request = json.loads(line)


if __name__ == "__main__":
    serve(MAKERS)
