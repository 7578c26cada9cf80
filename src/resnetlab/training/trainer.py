"""Training: an explicit loop over epochs around `keras.Model.fit`, which runs the steps of one epoch.

The state of a run is its weights, its optimizer's slots and the step number (see `data/stream.py` and
`checkpoint.py`), so an interrupted run that is resumed sees the same batches as one that never stopped. On a CPU the
results are bitwise equal (but for the stated loss of several devices on TensorFlow); on a GPU only with deterministic
kernels. Which layers are frozen is also a function of the step (`transfer.py`).
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np

from resnetlab import backend
from resnetlab.checksums import verify_checksum
from resnetlab.data.pack import Pack
from resnetlab.data.stream import as_item
from resnetlab.errors import ProcessLost, ResnetlabError, WriteError, first_informative_line, is_out_of_memory
from resnetlab.evaluation.metrics import evaluate_logits
from resnetlab.models.from_recipe import build_network
from resnetlab.progress import Progress
from resnetlab.recipes import Recipe
from resnetlab.run_folder import RunFolder, Status
from resnetlab.training import checkpoint, transfer
from resnetlab.training.build import make_stream, make_trainer
from resnetlab.training.checkpoint import Checkpoints
from resnetlab.training.divergence import first_nonfinite_weight, locate
from resnetlab.training.interval import EVERY_FIVE_MINUTES, Interval
from resnetlab.training.memory import out_of_memory, release_tensors, rows_that_fit
from resnetlab.training.optimizers import Schedule
from resnetlab.training.processes import ProcessGroup, require_whole_parts
from resnetlab.training.resume import fingerprint, require_same_origin
from resnetlab.training.steps import StepCallback, metric_values, stop_requests
from resnetlab.training.whitening import initialize_whitening

Record = dict[str, Any]


def require_validation(recipe: Recipe, pack: Pack) -> None:
    """Raise ResnetlabError where early stopping has no validation images to watch."""
    if recipe.early_stopping and not len(pack.indices("validation")):
        raise ResnetlabError(
            "Early stopping watches the validation loss, and the validation set is empty. Raise its fraction with "
            "--set validation=0.3 (a class needs three images to be in each subset, two with --set test=0), or turn "
            "early stopping off with --set early_stopping=0."
        )


@dataclass
class TrainState:
    """The state of a run besides its variables, as a checkpoint stores it."""

    step: int = 0
    best_epoch: int = 0  # from 1; 0 before the first
    best_loss: float | None = None  # validation loss; without validation -step, so that the last epoch is the best
    records: list[Record] = field(default_factory=list)  # of the finished epochs

    @classmethod
    def of(cls, progress: Mapping[str, Any], run: RunFolder, steps_per_epoch: int) -> TrainState:
        """The state in a checkpoint; one of version 0.1 has no records, which are then those of metrics.jsonl."""
        records = progress.get("records")
        if records is None:
            records = run.metrics()[: progress["step"] // steps_per_epoch]
        return cls(progress["step"], progress["best_epoch"], progress["best_loss"], records)


def train(
    pack: Pack,
    recipe: Recipe,
    run: RunFolder,
    *,
    progress: Progress,
    resume: bool = False,
    force: bool = False,
    network: keras.Model | None = None,
    every: Interval = EVERY_FIVE_MINUTES,
) -> Status:
    """Train until all epochs are finished, early stopping triggers, or the process receives a stop signal.

    Args:
        resume: from the newest checkpoint that is whole.
        force: resume although the recipe or the data are not those of the checkpoint.
        network: one of `build_network`, with its initial weights (`transfer.load_backbone`); by default it is new.
        every: how often a checkpoint is written within an epoch; there is one after each epoch too.

    Returns:
        "finished", or "interrupted" after SIGINT or SIGTERM: then the step in progress is finished and the state is
        saved, and a call with `resume=True` continues with the very next step.

    Raises:
        ResnetlabError: the loss is no longer finite (the weights of the best epoch stay), nothing to resume, no space
            on the disk, not enough memory.
        UsageError: the recipe freezes stages that the network lacks, or weights that are not given; another process
            trains the run; the recipe or the data are not those of the checkpoint.
    """
    require_validation(recipe, pack)
    require_whole_parts(recipe)
    if network is None:
        if not resume:
            transfer.require_weights(recipe)
        network = build_network(recipe, len(pack.class_names))
        if not resume:
            initialize_whitening(network, pack.images, pack.indices("train"))
    with run.training_lock():
        training = _Training(pack, recipe, run, network, progress, every, resume=resume, force=force)
        run.update(status="started")
        if resume:  # its number of epochs may have been changed
            run.write_json("recipe.json", recipe.model_dump(mode="json"))
        progress.start(recipe.epochs, training.steps, recipe.batch_size, training.state.step)
        try:
            with stop_requests() as stop, training.explained_failures():
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
        self,
        pack: Pack,
        recipe: Recipe,
        run: RunFolder,
        network: keras.Model,
        progress: Progress,
        every: Interval,
        *,
        resume: bool,
        force: bool,
    ) -> None:
        self.pack, self.recipe, self.run, self.network, self.progress = pack, recipe, run, network, progress
        self.every = every
        self.stream = make_stream(recipe, pack)
        self.steps = self.stream.steps_per_epoch
        self.schedule = Schedule.of(recipe, self.steps)
        self.feed = backend.feed(as_item(self.stream.batch(0)))
        self.validation = pack.indices("validation")
        self.processes = ProcessGroup()
        self.checkpoints = Checkpoints(run)
        self.origin = fingerprint(recipe, pack)
        self.state = TrainState()
        self.saved = time.monotonic()  # when the last checkpoint was written
        if resume:
            saved, arrays = self.checkpoints.newest(progress.warning)
            require_same_origin(saved.get("origin"), self.origin, force=force)
            self.state = TrainState.of(saved, run, self.steps)
            if other_images := saved.get("origin", self.origin)["data"] != self.origin["data"]:
                self.state.step = len(self.state.records) * self.steps  # an epoch may have another number of steps
                self.state.best_loss = None  # of other validation images
        self.trainer = make_trainer(network, recipe, self.stream, step=self.state.step)
        if resume:
            checkpoint.restore(self.trainer, arrays)
            if other_images:
                self._count_steps_anew()
            self._restore_files()
        else:
            self._save()  # so that a run that is killed early can be resumed, and divergence be traced
        # Metrics of the interrupted epoch, to be restored: Keras resets its metrics at the start of an epoch.
        self.partial = metric_values(self.trainer) if self.state.step % self.steps else None

    def _restore_files(self) -> None:
        """Make the other files of the run those of the checkpoint; a later epoch may have been recorded before."""
        state = self.state
        self.run.write_metrics(state.records)
        self.run.update(step=state.step, epoch=len(state.records), best_epoch=state.best_epoch)
        if not state.best_epoch:
            return
        try:
            verify_checksum(self.run.weights())
        except ResnetlabError as error:
            self.progress.warning(f"The weights of the best epoch, {state.best_epoch}, are lost. {error}")

    def _count_steps_anew(self) -> None:
        """Give the optimizer, and so its schedule, the number of steps that the finished epochs have now."""
        optimizer = getattr(self.trainer.optimizer, "inner_optimizer", self.trainer.optimizer)
        done = self.state.step - transfer.phase_start(self.recipe, self.state.step, self.steps)
        optimizer._iterations.assign(done * self.recipe.parts)  # of parts: `iterations` counts whole batches

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
            self._save()
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
        self._save()
        if not self.is_over() and recipe.training_side(epoch + 1) != recipe.training_side(epoch):
            kept = checkpoint.current_state(self.trainer)
            self.trainer = make_trainer(self.network, recipe, self.stream, step=state.step)
            checkpoint.restore(self.trainer, kept)
        self.run.update(status="started", step=state.step, epoch=epoch, best_epoch=state.best_epoch)
        self.progress.epoch(record, best=best and bool(len(self.validation)))
        return True

    def _save(self, *, background: bool = False) -> None:
        progress = asdict(self.state) | {"origin": self.origin}
        self.checkpoints.save(self.trainer, progress, background=background)
        self.saved = time.monotonic()

    def _train_steps(self, epoch: int, stop: threading.Event) -> Record | None:
        """Run the remaining steps of an epoch; returns its record, or None if a stop was requested meanwhile."""
        began, first, last = time.perf_counter(), self.state.step, epoch * self.steps
        spent: list[float] = []
        saving = 0.0
        history = self._run_steps(last, stop, spent)
        while self.state.step < last:
            self.partial = metric_values(self.trainer)
            if self.processes.any(stop.is_set()):
                return None
            paused = time.perf_counter()
            self._save(background=True)
            saving += time.perf_counter() - paused
            history = self._run_steps(last, stop, spent)
        seconds = time.perf_counter() - began
        return {
            "epoch": epoch,
            "step": self.state.step,
            "loss": history["loss"][-1],
            "accuracy": history["accuracy"][-1],
            "learning_rate": self.schedule.at(last),
            "images_per_second": (last - first) * self.recipe.batch_size / seconds,
            "seconds": seconds,
            "loading_seconds": sum(spent),
            "checkpoint_seconds": saving,
        }

    def _run_steps(self, last: int, stop: threading.Event, spent: list[float]) -> dict[str, list[float]]:
        """Run steps up to number `last`, the next checkpoint, or a stop request; Keras's history of them."""
        first = self.state.step

        def pause(steps: int) -> bool:
            wanted = stop.is_set() or self.every.passed(steps, time.monotonic() - self.saved)
            return self.processes.should_pause(wanted, steps)

        parts = self.stream.accumulate
        watch = StepCallback(self.trainer, first, self.progress, pause, self.partial, parts)
        watch.async_safe = self.processes.is_single and parts == 1  # otherwise `fit` must end after a certain batch
        over = threading.Event()
        try:
            batches = self.feed(lambda: self.stream.batches(first, spent=spent, until=over))
            read = {"x": batches, "steps_per_epoch": (last - first) * parts, "shuffle": False}
            history = self.trainer.fit(**read, verbose=0, callbacks=[watch]).history
        finally:
            over.set()
        self.state.step, self.partial = first + watch.steps, None
        if watch.diverged is not None:
            raise self._diverged_at(first + watch.diverged)
        return history

    def _validate(self, epoch: int) -> Record:
        """Loss and accuracy on the validation images; nothing where there are none."""
        if not len(self.validation):
            return {}
        pack = self.pack
        logits = self.processes.logits(self.network, self.recipe, pack, self.validation)
        if not np.isfinite(logits).all():
            raise self._diverged(f"After epoch {epoch} the logits are not finite")
        found = evaluate_logits(logits, pack.labels[self.validation], pack.class_names)
        return {"val_loss": found.loss, "val_top1": found.top1}

    def _keep_weights(self, record: Record) -> bool:
        """Save the weights of an epoch; true where they are the best so far."""
        state = self.state
        if weight := first_nonfinite_weight(self.network):
            raise self._diverged(f"After epoch {record['epoch']} the weight {weight} is not finite")
        loss = record.get("val_loss", -state.step)
        best = state.best_loss is None or loss < state.best_loss
        if best:
            self.run.forget_evaluation()
            state.best_epoch, state.best_loss = record["epoch"], loss
            self.run.save_weights("best.weights.h5", self.network)
        self.run.save_weights("last.weights.h5", self.network)
        return best

    def _diverged_at(self, step: int) -> ResnetlabError:
        """The error for a loss that is not finite at step number `step`, from 1."""
        epoch, batch = (step - 1) // self.steps + 1, (step - 1) % self.steps + 1
        rate = self.schedule.at(step)
        self.checkpoints.wait()
        saved, arrays = self.checkpoints.newest(self.progress.warning)
        self.trainer = make_trainer(self.network, self.recipe, self.stream, step=saved["step"])
        checkpoint.restore(self.trainer, arrays)
        found = locate(self.trainer, self.network, self.stream, start=saved["step"], step=step)
        return self._diverged(
            f"The loss is not finite at step {step} (epoch {epoch}, batch {batch} of {self.steps}, learning rate "
            f"{rate:.3g}): {found}"
        )

    def _diverged(self, found: str) -> ResnetlabError:
        self.run.update(status="diverged", step=self.state.step)
        lower = f"{self.recipe.learning_rate / 10:g}"
        advice = (
            f"{found}. Training diverged; --resume would repeat these steps. Start a new run, by the same command with "
            f"another --run and with --set learning_rate={lower} or --set warmup=5"
        )
        if self.run.best_weights.exists():
            named = shlex.quote(str(self.run.path))
            advice += (
                f"; or from the last good weights: resnetlab train DATA --weights {named} --set learning_rate={lower}"
            )
        return ResnetlabError(f"{advice}.")

    @contextmanager
    def explained_failures(self) -> Iterator[None]:
        """Say what to do when the disk is full or memory does not suffice; checkpoints are whole in both cases."""
        named = shlex.quote(str(self.run.path))
        try:
            yield
            self.checkpoints.wait()
        except WriteError as error:
            raise ResnetlabError(
                f"{error} Training has stopped; earlier checkpoints are intact. Make room, then: "
                f"`resnetlab train --resume {named}`."
            ) from error
        except ResnetlabError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                release_tensors(error)
                fits = rows_that_fit(self.trainer, self.stream, self.state.step) if self.processes.is_single else None
                raise ResnetlabError(out_of_memory(self.recipe, error, fits)) from error
            if self.processes.is_single:
                raise
            raise ProcessLost(
                f"Process {self.processes.rank} of {self.processes.size} stops, as another one has ended or cannot be "
                f"reached ({first_informative_line(error)}). Start all again with `--resume RUN`."
            ) from error
