"""Runs are logged to the tools that were asked for, and go on there when they are resumed."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

import resnetlab as rl
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.report import loggers
from tests.data import make_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    return make_images.write_classes(tmp_path / "photos", {"cat": 16, "dog": 16})


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By tag and step, from TensorBoard's event files: records with a length, two checksums, and a protobuf."""
    loggers._import_tensorboardx()
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += length + 16
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_has_every_epoch_the_evaluation_and_the_plots(photos: Path) -> None:
    run = rl.train(
        photos, model="resnet-tiny", image_size=16, batch_size=8, epochs=2, early_stopping=0, class_weights=False,
        run="run", log=["tensorboard", "csv"],
    )  # fmt: skip
    assert "torch" not in sys.modules  # which must not be loaded beside TensorFlow
    found = run.evaluate()
    rl.train(resume=run, epochs=3)
    logged = scalars(Path("run/tensorboard"))
    records = rl.load("run").history
    assert len(records) == 3
    for key, tag in (("val_top1", "validation/top1"), ("loss", "train/loss"), ("learning_rate", "learning_rate")):
        assert logged[tag] == pytest.approx({record["step"]: record[key] for record in records}, rel=1e-5)
    assert logged["evaluation/test_top1"] == pytest.approx({records[1]["step"]: found.top1})
    assert len(Path("run/history.csv").read_text("utf-8").splitlines()) == 4


def test_what_cannot_be_logged_to_is_named_at_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"Unknown logger 'tensorbord'.*'tensorboard'"):
        rl.train(photos, run="run", log=["tensorbord"])
    monkeypatch.setitem(loggers.PACKAGES, "wandb", "a_package_that_is_not_installed")
    with pytest.raises(ResnetlabError, match=r"pip install 'resnetlab\[wandb\]'"):
        rl.train(photos, run="run", log=["wandb"])
    assert not Path("run").exists()


def test_a_service_that_fails_does_not_end_training(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("the server is down")

    monkeypatch.setattr(loggers.CsvLogger, "scalars", down)
    monkeypatch.setattr(loggers.CsvLogger, "close", down)
    run = rl.train(
        photos, model="resnet-tiny", image_size=16, batch_size=8, epochs=2, early_stopping=0, run="run", log="csv"
    )
    assert (run.status, len(run.history)) == ("finished", 2)
    assert 0 <= run.evaluate().top1 <= 1
    assert "Nothing more is logged to csv: the server is down" in caplog.text


def test_a_log_that_cannot_be_written_does_not_cost_the_evaluation(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = rl.train(
        photos, model="resnet-tiny", image_size=16, batch_size=8, epochs=1, early_stopping=0, run="run", log="csv"
    )
    run.folder.update(log=("wandb",))
    loggers.PACKAGES["wandb"], kept = "a_package_that_is_not_installed", loggers.PACKAGES["wandb"]
    try:
        assert 0 <= run.evaluate().top1 <= 1
    finally:
        loggers.PACKAGES["wandb"] = kept
    assert "The evaluation is not logged" in caplog.text
