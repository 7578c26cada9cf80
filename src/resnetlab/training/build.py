"""What a recipe trains with: the batches, the loss, and augmentation and network compiled as one model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from resnetlab import backend
from resnetlab.data.augment import Augment
from resnetlab.data.augmentation import Augmentation
from resnetlab.data.pack import Pack
from resnetlab.data.stream import Stream, balanced_weights
from resnetlab.models.from_recipe import resolve_architecture
from resnetlab.models.layers import SupplyMasks
from resnetlab.recipes import Recipe
from resnetlab.training import transfer
from resnetlab.training.averages import Averages
from resnetlab.training.optimizers import make_optimizer


def make_augmentation(recipe: Recipe) -> Augmentation:
    positions = resolve_architecture(recipe).block_positions
    rates = (recipe.stochastic_depth * position for position in positions)
    return Augmentation.of(recipe, drop_rates=tuple(rate for rate in rates if rate))


def make_stream(recipe: Recipe, pack: Pack) -> Stream:
    """The training batches of a recipe."""
    indices, num_classes = pack.indices("train"), len(pack.class_names)
    return Stream(
        images=pack.images if pack.whole is None else pack.whole,
        aspect=pack.aspect,
        labels=pack.labels,
        indices=indices,
        batch_size=recipe.batch_size,
        num_classes=num_classes,
        augmentation=make_augmentation(recipe),
        label_smoothing=recipe.label_smoothing,
        class_weights=balanced_weights(pack.labels[indices], num_classes) if recipe.class_weights else None,
        accumulate=recipe.parts,
        groups=backend.mixing_groups(),
        process=backend.process(),
        seed=recipe.seed,
    )


def make_loss(recipe: Recipe) -> keras.losses.Loss:
    """The loss of a recipe, on logits. It applies the target threshold, so that accuracy still sees soft targets."""
    if recipe.loss == "cross-entropy":
        return keras.losses.CategoricalCrossentropy(from_logits=True)
    return BinaryCrossEntropy(recipe.target_threshold)


class BinaryCrossEntropy(keras.losses.BinaryCrossentropy):
    """Binary cross-entropy of logits, averaged over classes; with a `threshold`, targets are 1 above it and else 0.

    So both classes of a mixed image are separate targets (Wightman 2021, arXiv:2110.00476, section 3.2).
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(from_logits=True)
        self.threshold = threshold

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if self.threshold is not None:
            y_true = keras.ops.cast(y_true > self.threshold, y_pred.dtype)
        return super().call(y_true, y_pred)


def first_step_of_all(recipe: Recipe, stream: Stream) -> int:
    """The step from which all layers that the recipe trains are trained; 0 where some stay frozen to the end."""
    return recipe.frozen_epochs * stream.steps_per_epoch if recipe.frozen_epochs < recipe.epochs else 0


def make_trainer(
    network: keras.Model, recipe: Recipe, stream: Stream, *, step: int = 0, jit_compile: bool | str = "auto"
) -> keras.Model:
    """Augmentation and network as one compiled model, from a stream's batches to logits.

    It is built for the phase of the run that `step` is in: frozen layers have neither gradients nor optimizer slots.
    Each phase has its own optimizer, whose moments, averages and step counter start with the phase, as the bias
    correction of the moments depends on the counter.
    `jit_compile` is Keras's argument: by default XLA for JAX everywhere, and for TensorFlow on a GPU.
    The optimizer is built here, as variables created during the first step would cause a second trace. The variables
    of the metrics are created here too, so that a checkpoint can be restored into them.
    """
    start = transfer.freeze(network, recipe, step, stream.steps_per_epoch)
    side = recipe.pack_size
    inputs = {"image": keras.Input((side, side, 3), name="image")}
    for name, shape in stream.augmentation.shapes().items():
        inputs[name] = keras.Input(shape, name=name)
    reduced = recipe.training_side(step // stream.steps_per_epoch + 1)
    augmented = Augment(stream.augmentation, reduced, name="augment")(inputs)
    if "keep" in inputs:
        augmented = SupplyMasks(network, name="masks")(augmented, inputs["keep"])
    if recipe.ema:
        augmented = Averages(network, recipe.ema, parts=recipe.parts, name="averages")(augmented)
    trainer = keras.Model(inputs, network(augmented), name="trainer")
    optimizer = make_optimizer(
        recipe, stream.steps_per_epoch, start=start, factors=transfer.learning_rate_factors(network, recipe)
    )
    if recipe.precision == "float16":  # small gradients would underflow; steps that overflow are skipped
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(trainer.trainable_variables)
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    xla = False if backend.mirrored() else jit_compile
    trainer.compile(optimizer, make_loss(recipe), metrics=metrics, jit_compile=xla)
    empty = np.zeros((1, stream.num_classes), np.float32)
    trainer.compute_metrics(None, empty, empty)  # Keras makes a metric's variables at its first use
    trainer.reset_metrics()
    return trainer
