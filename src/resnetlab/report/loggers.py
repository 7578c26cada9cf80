"""Training runs in the tools where people look at them: TensorBoard, Weights & Biases, MLflow, or a CSV file.

A logger gets the scalars of each epoch and, after the evaluation, its result and its plots. All four can be resumed: a
run that is resumed adds to the same TensorBoard folder, wandb run, MLflow run or file.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from resnetlab.atomic import atomic_file
from resnetlab.errors import ResnetlabError, first_informative_line, unknown_name
from resnetlab.progress import LogProgress, Progress
from resnetlab.run_folder import RunFolder

# How the scalars are called, by the name of a record of metrics.jsonl. "train/" and "validation/" group charts.
SCALARS = {
    "loss": "train/loss",
    "accuracy": "train/top1",
    "val_loss": "validation/loss",
    "val_top1": "validation/top1",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
    "seconds": "seconds_per_epoch",
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Logger(Protocol):
    """Where scalars and images go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Values after a training step."""

    def image(self, name: str, path: Path) -> None:
        """A PNG file."""

    def close(self) -> None:
        """Write what is not yet written."""


class CsvLogger:
    """RUN/history.csv: a row for each epoch. The file is rewritten, so it is right after a resume too."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        records = self.run.metrics()
        columns = list(dict.fromkeys(key for record in records for key in record))
        with (
            atomic_file(self.run.path / "history.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(records)

    def image(self, name: str, path: Path) -> None:
        """The run folder has it."""

    def close(self) -> None:
        """Each row is written when it comes."""


class TensorBoardLogger:
    """RUN/tensorboard: `tensorboard --logdir runs`. By tensorboardX, which imports neither TensorFlow nor PyTorch."""

    def __init__(self, run: RunFolder) -> None:
        done = max((record["step"] for record in run.metrics()), default=-1)
        self.writer = _import_tensorboardx().SummaryWriter(
            str(run.path / "tensorboard"),
            purge_step=done + 1,  # hides what a killed run logged after the checkpoint that training resumes from
            filename_suffix=f".{time.time_ns()}",  # files are named by the second: a second one would replace the first
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        self.writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """Weights & Biases, in the project `resnetlab` unless $WANDB_PROJECT says otherwise; $WANDB_MODE=offline works."""

    def __init__(self, run: RunFolder) -> None:
        self.wandb: Any = importlib.import_module("wandb")
        names = _remembered(run, "wandb", lambda: {"id": uuid.uuid4().hex})
        self.session = self.wandb.init(
            project=_environment("WANDB_PROJECT", "resnetlab"),
            name=run.path.name,
            id=names["id"],
            resume="allow",
            dir=str(run.path),
            config=run.recipe().model_dump(mode="json"),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.session.log(dict(values), step=step)

    def image(self, name: str, path: Path) -> None:
        self.session.log({name: self.wandb.Image(str(path))})

    def close(self) -> None:
        self.session.finish()


class MlflowLogger:
    """MLflow, in the experiment `resnetlab`, at $MLFLOW_TRACKING_URI or below the current folder."""

    def __init__(self, run: RunFolder) -> None:
        module: Any = importlib.import_module("mlflow")
        self.client = module.MlflowClient()
        name = _environment("MLFLOW_EXPERIMENT_NAME", "resnetlab")

        def create() -> dict[str, str]:
            experiment = self.client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self.client.create_experiment(name)
            made = self.client.create_run(place, run_name=run.path.name).info.run_id
            for key, value in run.recipe().model_dump(mode="json").items():
                self.client.log_param(made, key, str(value))
            return {"id": made}

        self.id = _remembered(run, "mlflow", create)["id"]
        self.client.update_run(self.id, status="RUNNING")  # a resumed run had ended

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def image(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def close(self) -> None:
        self.client.set_terminated(self.id)


LOGGERS: dict[str, Any] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
    "csv": CsvLogger,
}


def check_loggers(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names. Raises UsageError for an unknown logger, ResnetlabError for one whose package is missing."""
    names = (names,) if isinstance(names, str) else tuple(names or ())
    for name in names:
        if name not in LOGGERS:
            raise unknown_name("logger", name, LOGGERS)
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise ResnetlabError(f"To log to {name}: pip install 'resnetlab[{name}]'.")
    return names


def open_loggers(run: RunFolder) -> list[Logger]:
    """The loggers that the run was started with. Raises ResnetlabError where one cannot be opened."""
    names = run.info().log
    check_loggers(names)
    opened: list[Logger] = []
    for name in names:
        try:
            opened.append(LOGGERS[name](run))
        except Exception as error:  # a service that is not there, credentials that are missing
            for logger in opened:
                logger.close()
            raise ResnetlabError(f"Cannot log to {name}: {first_informative_line(error)}") from error
    return opened


class LoggedProgress(LogProgress):
    """Progress that also goes to loggers."""

    def __init__(self, progress: Progress, loggers: Sequence[Logger]) -> None:
        self.progress, self.loggers = progress, [*loggers]
        for name in ("info", "warning", "count", "start", "step", "stop"):
            setattr(self, name, getattr(progress, name))

    def epoch(self, record: Mapping[str, Any], *, best: bool) -> None:
        self.progress.epoch(record, best=best)
        values = {SCALARS[key]: float(value) for key, value in record.items() if key in SCALARS}
        for logger in [*self.loggers]:
            if not attempt(partial(logger.scalars, values, record["step"]), logger, self.progress):
                self.loggers.remove(logger)


def attempt(action: Callable[[], object], logger: Logger, progress: Progress) -> bool:
    """Whether it succeeded. A service that fails is reported; the run is worth more than its log."""
    try:
        action()
    except Exception as error:  # what their clients raise: a server that is down, a full disk
        name = next((name for name, kind in LOGGERS.items() if isinstance(logger, kind)), type(logger).__name__)
        progress.warning(f"Nothing more is logged to {name}: {first_informative_line(error)}")
        return False
    return True


def log_evaluation(
    run: RunFolder, top1: float, loss: float, subset: str, plots: Sequence[Path], progress: Progress
) -> None:
    """The evaluation of a run, and its plots, to the loggers that it was started with."""
    step = max((record["step"] for record in run.metrics()), default=0)

    def log(logger: Logger) -> None:
        logger.scalars({f"evaluation/{subset}_top1": top1, f"evaluation/{subset}_loss": loss}, step)
        for path in plots:
            logger.image(path.stem, path)

    for logger in open_loggers(run):
        attempt(partial(log, logger), logger, progress)
        attempt(logger.close, logger, progress)


def _import_tensorboardx() -> Any:
    """tensorboardX imports PyTorch where it is installed, and that must not be loaded beside TensorFlow."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # its import fails, which tensorboardX expects
    try:
        return importlib.import_module("tensorboardX")
    finally:
        if absent:
            del sys.modules["torch"]


def _remembered(run: RunFolder, name: str, create: Any) -> dict[str, str]:
    """What identifies the run at the service, kept in the run folder, so that a resumed run is the same one there."""
    path = run.path / f"{name}.json"
    if path.exists():
        kept: dict[str, str] = run.read_json(path.name)
        return kept
    made: dict[str, str] = create()
    run.write_json(path.name, made)
    return made


def _environment(variable: str, default: str) -> str:
    return os.environ.get(variable) or default
