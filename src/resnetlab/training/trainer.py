"""Training: an explicit loop over epochs around `keras.Model.fit`, which runs the steps of one epoch.

The state of a run is its weights, its optimizer's slots and the step number (see `data/stream.py` and
`checkpoint.py`), so an interrupted run that is resumed sees the same batches as one that never stopped. On a CPU the
results are bitwise equal; on a GPU only with deterministic kernels. Which layers are frozen is also a function of the
step (`transfer.py`).
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from resnetlab import backend
from resnetlab.data.augment import Augment
from resnetlab.data.augmentation import Augmentation
from resnetlab.data.pack import Pack
from resnetlab.data.stream import Stream, balanced_weights
from resnetlab.errors import ResnetlabError
from resnetlab.evaluation.logits import predict_logits
from resnetlab.evaluation.metrics import evaluate_logits
from resnetlab.models.from_recipe import build_network, resolve_architecture
from resnetlab.models.layers import SupplyMasks
from resnetlab.progress import Progress
from resnetlab.recipes import Recipe
from resnetlab.run_folder import RunFolder, Status
from resnetlab.training import checkpoint, transfer
from resnetlab.training.averages import Averages
from resnetlab.training.optimizers import make_optimizer
from resnetlab.training.whitening import initialize_whitening

Record = dict[str, Any]


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
        augmented = Averages(network, recipe.ema, name="averages")(augmented)
    trainer = keras.Model(inputs, network(augmented), name="trainer")
    optimizer = make_optimizer(
        recipe, stream.steps_per_epoch, start=start, factors=transfer.learning_rate_factors(network, recipe)
    )
    if recipe.precision == "float16":  # small gradients would underflow; steps that overflow are skipped
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(trainer.trainable_variables)
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    trainer.compile(optimizer, make_loss(recipe), metrics=metrics, jit_compile=jit_compile)
    empty = np.zeros((1, stream.num_classes), np.float32)
    trainer.compute_metrics(None, empty, empty)  # Keras makes a metric's variables at its first use
    trainer.reset_metrics()
    return trainer


def require_validation(recipe: Recipe, pack: Pack) -> None:
    """Raise ResnetlabError where early stopping has no validation images to watch."""
    if recipe.early_stopping and not len(pack.indices("validation")):
        raise ResnetlabError(
            "Early stopping watches the validation loss, and the validation set is empty. Raise its fraction with "
            "--set validation=0.3, or turn early stopping off with --set early_stopping=0."
        )


@dataclass
class TrainState:
    """The state of a run besides its variables: what a checkpoint stores as `progress`, and the finished epochs."""

    step: int = 0
    best_epoch: int = 0  # from 1; 0 before the first
    best_loss: float | None = None  # validation loss; without validation -step, so that the last epoch is the best
    records: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, progress: Mapping[str, Any], records: list[Record]) -> TrainState:
        return cls(progress["step"], progress["best_epoch"], progress["best_loss"], records)

    def progress(self) -> dict[str, Any]:
        return {"step": self.step, "best_epoch": self.best_epoch, "best_loss": self.best_loss}


def train(
    pack: Pack,
    recipe: Recipe,
    run: RunFolder,
    *,
    progress: Progress,
    resume: bool = False,
    network: keras.Model | None = None,
) -> Status:
    """Train until all epochs are finished, early stopping triggers, or the process receives a stop signal.

    `network` is one of `build_network`, with its initial weights (`transfer.load_backbone`); by default it is new.

    Returns:
        "finished", or "interrupted" after SIGINT or SIGTERM: then the step in progress is finished and the state is
        saved, and a call with `resume=True` continues with the very next step.

    Raises:
        ResnetlabError: the loss is no longer finite (the weights of the best epoch stay), or nothing to resume.
        UsageError: the recipe freezes stages that the network lacks, or weights that are not given.
    """
    require_validation(recipe, pack)
    if network is None:
        if not resume:
            transfer.require_weights(recipe)
        network = build_network(recipe, len(pack.class_names))
        if not resume:
            initialize_whitening(network, pack.images, pack.indices("train"))
    training = _Training(pack, recipe, run, network, progress, resume=resume)
    run.update(status="started")
    progress.start(recipe.epochs, training.steps, recipe.batch_size, training.state.step)
    try:
        with _stop_requests() as stop:
            while not training.is_over():
                if not training.run_epoch(stop):
                    return "interrupted"
    finally:
        progress.stop()
    run.update(status="finished")
    return "finished"


class _Training:
    """A run during training: the compiled model of the current phase, the batches, and the state."""

    def __init__(
        self, pack: Pack, recipe: Recipe, run: RunFolder, network: keras.Model, progress: Progress, *, resume: bool
    ) -> None:
        self.pack, self.recipe, self.run, self.network, self.progress = pack, recipe, run, network, progress
        self.stream = make_stream(recipe, pack)
        self.steps = self.stream.steps_per_epoch
        self.validation = pack.indices("validation")
        self.state = TrainState()
        if resume:
            saved, arrays = checkpoint.read(run.checkpoint)
            self.state = TrainState.of(saved, run.metrics()[: saved["step"] // self.steps])
        self.trainer = make_trainer(network, recipe, self.stream, step=self.state.step)
        if resume:
            checkpoint.restore(self.trainer, arrays)
        # Metrics of the interrupted epoch, to be restored: Keras resets its metrics at the start of an epoch.
        self.partial = _metric_values(self.trainer) if self.state.step % self.steps else None

    def is_over(self) -> bool:
        """Whether all epochs are finished, or early stopping ends the run."""
        state, patience = self.state, self.recipe.early_stopping
        exhausted = bool(patience) and len(state.records) - state.best_epoch >= patience
        return state.step >= self.recipe.epochs * self.steps or exhausted

    def run_epoch(self, stop: threading.Event) -> bool:
        """Train one epoch, or the rest of it, evaluate and save. Returns False if a stop was requested meanwhile."""
        state, recipe = self.state, self.recipe
        epoch = state.step // self.steps + 1
        if state.step and state.step == recipe.frozen_epochs * self.steps:
            self.progress.info(f"All stages are trained from epoch {epoch} on")
        record = self._train_steps(epoch, stop)
        if record is None:
            checkpoint.save(self.run.checkpoint, self.trainer, state.progress())
            self.run.update(status="interrupted", step=state.step)
            named = shlex.quote(str(self.run.path))
            self.progress.info(f"Stopped at step {state.step}. Resume with: `resnetlab train --resume {named}`")
            return False
        began = time.perf_counter()
        with self.trainer.get_layer("averages").applied() if recipe.ema else nullcontext():
            record |= self._validate(epoch)
            best = self._keep_weights(record)
        record["validation_seconds"] = time.perf_counter() - began
        state.records.append(record)
        self.run.write_metrics(state.records)
        if epoch == recipe.frozen_epochs:  # before the checkpoint, which is of the phase that its step is in
            self.trainer = make_trainer(self.network, recipe, self.stream, step=state.step)
        checkpoint.save(self.run.checkpoint, self.trainer, state.progress())
        if not self.is_over() and recipe.training_side(epoch + 1) != recipe.training_side(epoch):
            self.trainer = make_trainer(self.network, recipe, self.stream, step=state.step)
            checkpoint.restore(self.trainer, checkpoint.read(self.run.checkpoint)[1])
        self.run.update(status="started", step=state.step, epoch=epoch, best_epoch=state.best_epoch)
        self.progress.epoch(record, best=best and bool(len(self.validation)))
        return True

    def _train_steps(self, epoch: int, stop: threading.Event) -> Record | None:
        """Run the remaining steps of an epoch; returns its record, or None if a stop was requested meanwhile."""
        began, first = time.perf_counter(), self.state.step
        left = epoch * self.steps - first
        watch = _StepCallback(self.trainer, first, self.progress, stop, self.partial)
        spent: list[float] = []
        batches = backend.prefetch_to_device(self.stream.batches(first, spent=spent))
        history = self.trainer.fit(batches, steps_per_epoch=left, shuffle=False, verbose=0, callbacks=[watch]).history
        batches.close()  # type: ignore[attr-defined]
        self.state.step, self.partial = first + watch.steps, None
        if watch.steps < left:
            return None
        seconds = time.perf_counter() - began
        record: Record = {
            "epoch": epoch,
            "step": self.state.step,
            "loss": history["loss"][-1],
            "accuracy": history["accuracy"][-1],
            "learning_rate": float(self.trainer.optimizer.learning_rate),
            "images_per_second": left * self.recipe.batch_size / seconds,
            "seconds": seconds,
            "loading_seconds": sum(spent),
        }
        if not np.isfinite(record["loss"]):
            raise self._diverged(f"The loss of epoch {epoch} is {record['loss']}")
        return record

    def _validate(self, epoch: int) -> Record:
        """Loss and accuracy on the validation images; nothing where there are none."""
        if not len(self.validation):
            return {}
        pack = self.pack
        logits = predict_logits(self.network, pack.images, self.validation, size=self.recipe.test_size)
        if not np.isfinite(logits).all():
            raise self._diverged(f"After epoch {epoch} the logits are not finite")
        found = evaluate_logits(logits, pack.labels[self.validation], pack.class_names)
        return {"val_loss": found.loss, "val_top1": found.top1}

    def _keep_weights(self, record: Record) -> bool:
        """Save the weights of an epoch; true where they are the best so far."""
        state = self.state
        loss = record.get("val_loss", -state.step)
        best = state.best_loss is None or loss < state.best_loss
        if best:
            state.best_epoch, state.best_loss = record["epoch"], loss
            self.run.save_weights("best.weights.h5", self.network)
        self.run.save_weights("last.weights.h5", self.network)
        return best

    def _diverged(self, found: str) -> ResnetlabError:
        self.run.update(status="diverged", step=self.state.step)
        lower = f"{self.recipe.learning_rate / 10:g}"
        advice = (
            f"{found}: training diverged. --resume would repeat these steps. Start a new run, by the same command with "
            f"another --run and with --set learning_rate={lower} or --set warmup=5"
        )
        if self.run.best_weights.exists():
            named = shlex.quote(str(self.run.path))
            advice += (
                f"; or from the last good weights: resnetlab train DATA --weights {named} --set learning_rate={lower}"
            )
        return ResnetlabError(f"{advice}.")


class _StepCallback(keras.callbacks.Callback):
    """Reports each step, and ends the epoch after the current step when a stop was requested."""

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
        # Not `self.model`: on JAX this property writes the state back, while the main thread donates it to a step.
        self.trainer = trainer
        self.start, self.progress, self.stop, self.partial = start, progress, stop, partial
        self.steps = 0  # steps done; the optimizer does not count those whose gradients overflow in float16

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.partial is not None:  # an epoch that is resumed: Keras has just reset its metrics
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
    """An event that is set by the first SIGINT or SIGTERM; a later signal interrupts immediately.

    Signals within a second of the first are ignored: `timeout` and other supervisors signal both process and group.
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
