"""What makes the PyTorch backend as fast as native PyTorch, counted: memory layouts, operations, copies."""

from typing import Any

import numpy as np
import pytest

from resnetlab.recipes import BASE, Recipe
from tests.workers import Workers

AUGMENTED = BASE.changed(
    image_size=64,
    crop="resized",
    color_jitter=0.2,
    mixup=0.2,
    cutmix=1.0,
    erase=0.2,
    batch_size=2,
    validation=0.0,
    test=0.0,
)


def trainer_and_batch(recipe: Recipe) -> tuple[Any, Any]:
    from resnetlab.data.stream import Stream
    from resnetlab.models.from_recipe import build_network
    from resnetlab.training.build import make_augmentation, make_trainer

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, recipe.pack_size, recipe.pack_size, 3), np.uint8)
    stream = Stream(
        images=images,
        labels=np.arange(8) % 10,
        indices=np.arange(8),
        batch_size=recipe.batch_size,
        num_classes=10,
        augmentation=make_augmentation(recipe),
    )
    return make_trainer(build_network(recipe, 10), recipe, stream), stream.batch(0)


def layouts(recipe: Recipe) -> list[tuple[bool, bool]]:
    """For each convolution of a training step: whether its input and its output's gradient lie as channels_last."""
    import torch

    trainer, (inputs, targets, _) = trainer_and_batch(recipe)
    trainer.train_on_batch(inputs, targets)
    found: list[tuple[bool, bool]] = []
    original = torch.nn.functional.conv2d

    def channels_last(x: Any) -> bool:
        return bool(x.is_contiguous(memory_format=torch.channels_last))

    def conv2d(x: Any, *args: Any, **kwargs: Any) -> Any:
        place = len(found)
        found.append((channels_last(x), False))
        y = original(x, *args, **kwargs)
        y.register_hook(lambda gradient: found.__setitem__(place, (found[place][0], channels_last(gradient))))
        return y

    torch.nn.functional.conv2d = conv2d
    try:
        trainer.train_on_batch(inputs, targets)
    finally:
        torch.nn.functional.conv2d = original
    return found


@pytest.mark.parametrize(
    ("model", "convolutions"),
    [
        ("resnet50", 53),
        ("resnet18d", 22),
        ("se-resnet50", 53),
        ("preresnet18", 20),
        ("resnet20", 19),
        ("resnext50-32x4d", 53),
    ],
)
def test_every_convolution_sees_channels_last(on: Workers, model: str, convolutions: int) -> None:
    found = on("torch")(layouts, recipe=AUGMENTED.changed(model=model))
    assert len(found) == convolutions
    assert [forward for forward, _ in found] == [True] * convolutions
    assert [backward for _, backward in found] == [True] * convolutions


def operations(recipe: Recipe) -> tuple[int, int, int]:
    """Operations of an update, its variables, and how often a training step makes a tensor of host data."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    trainer, (inputs, targets, _) = trainer_and_batch(recipe)
    variables = trainer.trainable_variables
    gradients = [torch.full_like(variable.value, 0.01) for variable in variables]
    with Count() as update, torch.no_grad():
        trainer.optimizer.apply(gradients, variables)
    trainer.train_on_batch(inputs, targets)
    with Count() as step:
        trainer.train_on_batch(inputs, targets)
    made = sum("lift_fresh" in name for name in step.names)
    return len(update.names), len(variables), made


@pytest.mark.parametrize(
    "changes", [{}, {"layer_decay": 0.8}, {"optimizer": "adamw"}, {"optimizer": "lamb"}, {"momentum": 0.0}]
)
def test_an_update_is_a_few_operations_however_many_variables(on: Workers, changes: dict[str, Any]) -> None:
    counts = {}
    for model in ("resnet18", "resnet50"):
        recipe = AUGMENTED.changed(model=model, schedule="constant", **changes)
        counts[model] = on("torch")(operations, recipe=recipe)
    assert counts["resnet18"][1:2] == (62,)
    assert counts["resnet50"][1:2] == (161,)
    assert counts["resnet50"][0] < 110, counts
    assert counts["resnet50"][0] - counts["resnet18"][0] <= 2 * (161 - 62), counts
    assert counts["resnet50"][2] <= 20, counts  # of Keras's metrics, loss and counters; none of ours


def make(optimizers: Any, kind: str, factors: dict[int, float] | None) -> Any:
    settings: dict[str, Any] = {"learning_rate": 0.1, "factors": factors}
    if kind in ("adamw", "lamb"):
        return (optimizers.AdamW if kind == "adamw" else optimizers.Lamb)(decay=0.05, **settings)
    if kind != "plain":
        settings |= {"l2": 0.01, "momentum": 0.9, "nesterov": kind == "nesterov"}
    return optimizers.SGD(**settings)


def update(optimizer: str, fractions: bool) -> list[np.ndarray]:
    """Three updates of four variables by the whole list, or one by one."""
    import keras

    from resnetlab.training import optimizers

    rng = np.random.default_rng(0)
    shapes = [(3, 3, 2, 4), (4,), (4, 5), (5,)]
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    gradients = [[rng.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(3)]
    found = []
    for together in (True, False):
        variables = [keras.Variable(value) for value in values]
        factors = dict(zip(map(id, variables), (0.5, 0.5, 1.0, 1.0), strict=True)) if fractions else None
        made = make(optimizers, optimizer, factors)
        if not together:
            made.update_together = lambda *_: False
        made.build(variables)
        for step in gradients:
            made.apply([keras.ops.convert_to_tensor(gradient) for gradient in step], variables)
        found.append([keras.ops.convert_to_numpy(variable) for variable in variables])
    return found


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "plain", "adamw", "lamb"])
def test_an_update_of_all_variables_is_that_of_each(on: Workers, optimizer: str, fractions: bool) -> None:
    together, alone = on("torch")(update, optimizer=optimizer, fractions=fractions)
    for received, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(received, expected, rtol=2e-6, atol=2e-7)
