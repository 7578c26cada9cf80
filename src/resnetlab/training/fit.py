"""Training: an explicit loop over epochs around `keras.Model.fit`, which compiles and runs the steps of one.

The state of a run is its weights, its optimizer's slots and the step number (see `data/stream.py` and
`checkpoint.py`), so an interrupted run that is resumed sees the same batches as one that never stopped. On a CPU it
equals it to the bit; on a GPU only with deterministic kernels. What is frozen is a function of the step too
(`transfer.py`).
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import keras
import numpy as np

from resnetlab import kernels
from resnetlab.data.augment import Augment
from resnetlab.data.draws import Augmentation
from resnetlab.data.pack import Pack
from resnetlab.data.stream import Stream, balanced_weights
from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.logits import predict_logits
from resnetlab.evaluation.metrics import evaluate_logits
from resnetlab.models.layers import BatchNorm, SupplyMasks
from resnetlab.models.resnet import build
from resnetlab.models.variants import Architecture, architecture
from resnetlab.recipes import Recipe
from resnetlab.run import Run
from resnetlab.training import checkpoint, transfer
from resnetlab.training.averages import Averages
from resnetlab.training.optimizers import optimizer_for

Record = dict[str, Any]


class Progress(Protocol):
    """Who is told how training goes; `training/progress.py` shows it in a terminal."""

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None: ...
    def step(self, step: int, logs: dict[str, float]) -> None: ...
    def epoch(self, record: Record, *, best: bool) -> None: ...
    def say(self, text: str) -> None: ...


def architecture_of(recipe: Recipe) -> Architecture:
    """The row that a recipe names, with the recipe's own preprocessing where it has one."""
    row = architecture(recipe.model)
    return row if recipe.preprocessing is None else replace(row, preprocessing=recipe.preprocessing)


def network_for(recipe: Recipe, num_classes: int) -> keras.Model:
    """The network of a recipe, with its weights in float32 and its arithmetic in the recipe's precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if recipe.precision == "float32" else f"mixed_{recipe.precision}")
    try:
        network = build(
            architecture_of(recipe),
            num_classes=num_classes,
            stochastic_depth=recipe.stochastic_depth,
            seed=recipe.seed,
        )
    finally:
        keras.config.set_dtype_policy(before)
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            layer.frozen_statistics = recipe.frozen_batch_norm
    return network


def augmentation_for(recipe: Recipe) -> Augmentation:
    return Augmentation(
        source_size=recipe.pack_size,
        size=recipe.image_size,
        crop=recipe.crop,
        crop_padding=recipe.crop_padding,
        crop_scale=recipe.crop_scale,
        flip=recipe.flip,
        rand_augment=recipe.rand_augment,
        color_jitter=recipe.color_jitter,
        erase=recipe.erase,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        drop_rates=tuple(
            rate for position in architecture_of(recipe).block_positions if (rate := recipe.stochastic_depth * position)
        ),
    )


def stream_for(recipe: Recipe, pack: Pack) -> Stream:
    """The training batches of a recipe."""
    indices, num_classes = pack.indices("train"), len(pack.class_names)
    return Stream(
        images=pack.images if pack.whole is None else pack.whole,
        aspect=pack.aspect,
        labels=pack.labels,
        indices=indices,
        batch_size=recipe.batch_size,
        num_classes=num_classes,
        augmentation=augmentation_for(recipe),
        label_smoothing=recipe.label_smoothing,
        class_weights=balanced_weights(pack.labels[indices], num_classes) if recipe.class_weights else None,
        seed=recipe.seed,
    )


def loss_for(recipe: Recipe) -> keras.losses.Loss:
    """The loss of a recipe, of logits. The targets' threshold is part of it, so that accuracy has the soft targets."""
    if recipe.loss == "cross-entropy":
        return keras.losses.CategoricalCrossentropy(from_logits=True)
    return BinaryCrossEntropy(recipe.target_threshold)


class BinaryCrossEntropy(keras.losses.BinaryCrossentropy):
    """Of logits, the mean over the classes; targets are 1 above `threshold` and 0 elsewhere, where there is one.

    So both classes of a mixed image are targets of their own (Wightman 2021, arXiv:2110.00476, section 3.2).
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(from_logits=True)
        self.threshold = threshold

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if self.threshold is not None:
            y_true = keras.ops.cast(y_true > self.threshold, y_pred.dtype)
        return super().call(y_true, y_pred)


def trainer_for(
    network: keras.Model, recipe: Recipe, stream: Stream, *, step: int = 0, jit_compile: bool | str = "auto"
) -> keras.Model:
    """Augmentation and network as one compiled model, from a stream's batches to logits.

    It is for the phase of the run that `step` is in: of what is frozen then, it makes neither gradients nor slots. A
    phase has an optimizer of its own, whose moments and averages begin with it, and whose count of steps too: the
    moments' correction for their start goes by it.
    `jit_compile` is Keras's: by default XLA for JAX everywhere, and for TensorFlow on a GPU.
    The optimizer's variables are made here: made during the first step, they would have it traced twice. So are the
    metrics', for a checkpoint to be put into.
    """
    start = transfer.freeze(network, recipe, step, stream.steps_per_epoch)
    side = recipe.pack_size
    inputs = {"image": keras.Input((side, side, 3), name="image")}
    for name, shape in stream.augmentation.shapes().items():
        inputs[name] = keras.Input(shape, name=name)
    augmented = Augment(stream.augmentation, name="augment")(inputs)
    if "keep" in inputs:
        augmented = SupplyMasks(network, name="masks")(augmented, inputs["keep"])
    if recipe.ema:
        augmented = Averages(network, recipe.ema, name="averages")(augmented)
    trainer = keras.Model(inputs, network(augmented), name="trainer")
    optimizer = optimizer_for(recipe, stream.steps_per_epoch, start=start, shares=transfer.rate_shares(network, recipe))
    if recipe.precision == "float16":  # whose gradients are too small for it; steps that overflow are left out
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(trainer.trainable_variables)
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    trainer.compile(optimizer, loss_for(recipe), metrics=metrics, jit_compile=jit_compile)
    empty = np.zeros((1, stream.num_classes), np.float32)
    trainer.compute_metrics(None, empty, empty)  # Keras makes a metric's variables at its first use
    trainer.reset_metrics()
    return trainer


def require_validation(recipe: Recipe, pack: Pack) -> None:
    """Raise ResnetlabError where early stopping has no validation images to watch."""
    if recipe.early_stopping and not len(pack.indices("validation")):
        raise ResnetlabError(
            "Early stopping watches the validation loss, and the validation set is empty. Raise its share with "
            "--set validation=0.3, or turn early stopping off with --set early_stopping=0."
        )


def train(
    pack: Pack,
    recipe: Recipe,
    run: Run,
    *,
    progress: Progress,
    resume: bool = False,
    network: keras.Model | None = None,
) -> str:
    """Train until the epochs are over, early stopping says so, or the process is asked to stop.

    `network` is one of `network_for`, with the weights to begin with (`transfer.load_backbone`); by default it is new.

    Returns:
        "finished", or "interrupted" after SIGINT or SIGTERM: then the step in progress is finished and the state is
        saved, and a call with `resume=True` goes on from the very next step.

    Raises:
        ResnetlabError: the loss is no longer finite (the weights of the best epoch stay), or nothing to resume.
        UsageError: the recipe freezes stages that the network lacks, or weights that are not given.
    """
    if network is None:
        if not resume:
            transfer.require_weights(recipe)
        network = network_for(recipe, len(pack.class_names))
    stream = stream_for(recipe, pack)
    steps = stream.steps_per_epoch
    validation = pack.indices("validation")
    require_validation(recipe, pack)

    state: Record = {"step": 0, "best_epoch": 0, "best_loss": None}
    records: list[Record] = []
    if resume:
        state, arrays = checkpoint.read(run.checkpoint)
        trainer = trainer_for(network, recipe, stream, step=state["step"])
        checkpoint.restore(trainer, arrays)
        records = run.metrics()[: state["step"] // steps]
    else:
        trainer = trainer_for(network, recipe, stream)
    step: int = state["step"]
    partial = _metric_values(trainer) if step % steps else None  # of the epoch that was interrupted
    run.update(status="started")
    progress.start(recipe.epochs, steps, recipe.batch_size, step)

    with _stop_requests() as stop:
        while step < recipe.epochs * steps and not _exhausted(recipe, records, state):
            began = time.perf_counter()
            epoch, done = divmod(step, steps)
            if step and step == recipe.frozen_epochs * steps:
                progress.say(f"All stages learn from epoch {epoch + 1} on")
            watch = _Watch(trainer, step, progress, stop, partial)
            batches = kernels.upload(stream.batches(step))
            logs = trainer.fit(
                batches,
                steps_per_epoch=steps - done,
                shuffle=False,
                verbose=0,
                callbacks=[watch],
            ).history
            batches.close()  # type: ignore[attr-defined]
            step, partial = step + watch.steps, None
            state["step"] = step
            if step < (epoch + 1) * steps:
                checkpoint.save(run.checkpoint, trainer, state)
                run.update(status="interrupted", step=step)
                progress.say(
                    f"Stopped at step {step}. Go on with: resnetlab train --resume {shlex.quote(str(run.path))}"
                )
                return "interrupted"

            seconds = time.perf_counter() - began
            record: Record = {
                "epoch": epoch + 1,
                "step": step,
                "loss": logs["loss"][-1],
                "accuracy": logs["accuracy"][-1],
                "learning_rate": float(trainer.optimizer.learning_rate),
                "images_per_second": (steps - done) * recipe.batch_size / seconds,
                "seconds": seconds,
            }
            if not np.isfinite(record["loss"]):
                raise _diverged(run, recipe, step, f"The loss of epoch {epoch + 1} is {record['loss']}")
            with trainer.get_layer("averages").in_place() if recipe.ema else nullcontext():
                if len(validation):
                    logits = predict_logits(network, pack.images, validation, size=recipe.test_size)
                    if not np.isfinite(logits).all():
                        raise _diverged(run, recipe, step, f"After epoch {epoch + 1} the logits are not finite")
                    judged = evaluate_logits(logits, pack.labels[validation], pack.class_names)
                    record |= {"val_loss": judged.loss, "val_top1": judged.top1}
                best = state["best_loss"] is None or record.get("val_loss", -step) < state["best_loss"]
                if best:
                    state |= {"best_epoch": epoch + 1, "best_loss": record.get("val_loss", -step)}
                    run.save_weights("best.weights.h5", network)
                run.save_weights("last.weights.h5", network)
            records.append(record)
            run.write_metrics(records)
            if epoch + 1 == recipe.frozen_epochs:  # before the checkpoint, which is of the phase that its step is in
                trainer = trainer_for(network, recipe, stream, step=step)
            checkpoint.save(run.checkpoint, trainer, state)
            run.update(status="started", step=step, epoch=epoch + 1, best_epoch=state["best_epoch"])
            progress.epoch(record, best=best and bool(len(validation)))

    run.update(status="finished")
    return "finished"


def _diverged(run: Run, recipe: Recipe, step: int, found: str) -> ResnetlabError:
    run.update(status="diverged", step=step)
    return ResnetlabError(
        f"{found}: training diverged. --resume would repeat these steps. Begin a new run, by the same command with "
        f"another --run and with --set learning_rate={recipe.learning_rate / 10:g} or --set warmup=5"
        + (
            f"; or from the last good weights: resnetlab train DATA --weights {shlex.quote(str(run.path))} "
            f"--set learning_rate={recipe.learning_rate / 10:g}."
            if run.best_weights.exists()
            else "."
        )
    )


def _exhausted(recipe: Recipe, records: list[Record], state: Record) -> bool:
    """Whether early stopping has lost its patience."""
    return bool(recipe.early_stopping) and len(records) - state["best_epoch"] >= recipe.early_stopping


class _Watch(keras.callbacks.Callback):
    """Tells progress of each step, and ends the epoch after the current step when a stop was asked for."""

    async_safe = True  # keeps JAX and PyTorch from waiting for the device at every step

    def __init__(
        self,
        trainer: keras.Model,
        start: int,
        progress: Progress,
        stop: threading.Event,
        partial: list[np.ndarray] | None,
    ) -> None:
        super().__init__()
        # Not `self.model`: on JAX that property writes the state back, here while the main thread donates it to a step.
        self.trainer = trainer
        self.start, self.progress, self.stop, self.partial = start, progress, stop, partial
        self.steps = 0  # made; the optimizer's own count leaves out those whose gradients overflow in float16

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.partial is not None:  # an epoch that is gone on with: Keras has just reset its metrics
            for variable, value in zip(self.trainer.metrics_variables, self.partial, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.steps = max(self.steps, batch + 1)  # calls may overtake each other
        self.progress.step(self.start + batch + 1, logs or {})
        if self.stop.is_set():
            self.trainer.stop_training = True


def _metric_values(trainer: keras.Model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(v).copy() for v in trainer.metrics_variables]


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a later one interrupts at once.

    Not one within a second: `timeout` and other supervisors signal the process and then its group.
    """
    requested = threading.Event()
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before: dict[signal.Signals, Any] = {}

    def request(number: int, frame: Any) -> None:
        nonlocal first
        if requested.is_set() and time.monotonic() - first > 1:
            raise KeyboardInterrupt
        if not requested.is_set():
            first = time.monotonic()
        requested.set()

    handler: Callable[[int, Any], None] = request
    for name in (signal.SIGINT, signal.SIGTERM):
        before[name] = signal.signal(name, handler)
    try:
        yield requested
    finally:
        for name, previous in before.items():
            signal.signal(name, previous)
