"""The contenders of the training benchmarks: one network, one batch, one optimizer, by us and by others.

Given a job, each maker builds network and optimizer and returns `run(steps)`. All train the same architecture (but for
keras.applications, whose ResNet50 has the stride on the 1x1, and 6 % fewer operations) on one constant batch of random
images with cross-entropy and SGD (momentum .9, Nesterov); ours and PyTorch's have L2 regularisation too, which
`keras.optimizers.SGD` does not offer. Ours starts from bytes and normalises them, the others get floats.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from harness import Contender, Elapsed, Job, Mark, Run, RunningContender

from resnetlab import environment
from resnetlab.comparison.measure import repeat_batch
from resnetlab.comparison.timing import FitTimer

LEARNING_RATE, MOMENTUM, L2 = 0.01, 0.9, 5e-4


def matrix_side(job: Job) -> int:
    """Of the square matrices whose product stands for what a machine can do."""
    return 8192 if job.device == "gpu" else 2048


class FitSteps:
    """The steps of a model that trains by `fit`."""

    def __init__(self, timer: FitTimer, make: Callable[[], Iterator[Any]]) -> None:
        self.timer, self.make = timer, make

    def first(self) -> None:
        self.timer.call(self.make(), 1)

    def __call__(self, steps: int) -> Elapsed:
        return self.timer.steps(self.make, steps)


def ours(job: Job, mark: Mark, *, backend: str, compiled: bool | None = None) -> Run:
    """What `resnetlab train` runs; `compiled` None stands for its own choice."""
    environment.configure(backend=backend, device=job.device)
    import keras
    import numpy as np

    from resnetlab import backend as kernels
    from resnetlab.data.stream import Stream, as_item
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import RECIPES
    from resnetlab.training.build import make_augmentation, make_trainer

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
    batch = as_item(stream.batch(0))
    if job.device == "gpu":  # resident there; TensorFlow's generators take it back to the host
        batch = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    timer = FitTimer(trainer, job.device, kernels.feed(batch))  # as in training
    return FitSteps(timer, partial(stream.batches, 0) if job.packed else partial(repeat_batch, batch))


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
    return FitSteps(FitTimer(model, job.device), partial(repeat_batch, (images, labels)))


def native(job: Job, mark: Mark, *, network: str, compiled: bool = False) -> Run:
    """A PyTorch network, channels_last."""
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


def matrix_product(job: Job, mark: Mark, *, framework: str) -> Run:
    """Products of two square matrices: what all else is a fraction of. `steps` of them."""
    side = matrix_side(job)
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


MAKERS = (ours, keras_applications, native, matrix_product)
OURS = [Contender(f"ours, {backend}", "ours", {"backend": backend}) for backend in environment.BACKENDS]


def matrix_products(*frameworks: str) -> list[Contender]:
    return [Contender(f"matrix product, {name}", "matrix_product", {"framework": name}) for name in frameworks]


def native_peers(*networks: str) -> list[Contender]:
    return [
        Contender(f"{network}, {how}", "native", {"network": network, "compiled": how == "torch.compile"})
        for network in networks
        for how in ("eager", "torch.compile")
    ]


def is_product(each: RunningContender) -> bool:
    return each.contender.maker == "matrix_product"


def work(each: RunningContender, flop: float) -> float:
    """Of one unit of a contender: images, or the operations of a matrix product in units of `flop`."""
    return 2 * matrix_side(each.job) ** 3 / flop if is_product(each) else each.job.batch
