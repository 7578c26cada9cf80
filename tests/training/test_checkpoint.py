"""Checkpoints: what a kill, a damaged file, a second process and a changed recipe do to a run."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import resnetlab as rl
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.inference.predictor import Predictor
from resnetlab.run_folder import RunFolder
from resnetlab.training import checkpoint
from resnetlab.training.checkpoint import Checkpoints
from resnetlab.training.interval import Interval
from resnetlab.training.trainer import train
from tests.training.test_trainer import BASE, Quiet, digits, new_run, records, state
from tests.workers import ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = BASE.changed(epochs=1)
    run = new_run(tmp_path_factory.mktemp("runs") / "finished", recipe)
    train(digits(), recipe, run, progress=Quiet())
    return run


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"optimizer": "adamw"}, {"model": "resnet20"}])
def test_the_checkpoint_of_another_recipe_is_told(finished: RunFolder, changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(UsageError, match=f"{key} .*{changes[key]}"):
        train(digits(), BASE.changed(**changes), finished, progress=Quiet(), resume=True)
    with pytest.raises(ResnetlabError, match="state of another model"):
        train(digits(), BASE.changed(**changes), finished, progress=Quiet(), resume=True, force=True)


def test_other_images_are_told(finished: RunFolder) -> None:
    pack = digits()
    others = replace(pack, hashes=(*pack.hashes[1:], "new"))
    with pytest.raises(UsageError, match="the training images"):
        train(others, BASE.changed(epochs=1), finished, progress=Quiet(), resume=True)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "noise": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    "bits": lambda whole: _flipped(whole, len(whole) // 2),
    "directory": lambda whole: _flipped(whole, len(whole) - 60),
    "encrypted": lambda whole: _flipped(whole, whole.rindex(b"PK\x01\x02") + 8),
    "text": lambda whole: b"once upon a time",
}


def _flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken(finished: RunFolder, tmp_path: Path, damage: str) -> None:
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    newest, before = Checkpoints(run).files()
    harmed = DAMAGES[damage](newest.read_bytes())
    newest.write_bytes(harmed)
    warnings: list[str] = []
    progress, arrays = Checkpoints(run).newest(warnings.append)
    (told,) = warnings
    assert f"{newest} is damaged" in told
    assert not newest.exists()
    expected = checkpoint.read(before)
    assert progress == expected[0]
    assert progress["step"] == 0
    for array, other in zip(arrays, expected[1], strict=True):
        np.testing.assert_array_equal(array, other)
    newest.write_bytes(harmed)
    before.write_bytes(DAMAGES[damage](before.read_bytes()))
    with pytest.raises(ResnetlabError, match=r"nothing to resume.*damaged.*damaged"):
        Checkpoints(run).newest(warnings.append)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    newest, before = Checkpoints(run).files()
    newest.write_bytes(DAMAGES["bits"](newest.read_bytes()))
    progress = Quiet()
    assert train(digits(), BASE.changed(epochs=1), run, progress=progress, resume=True) == "finished"
    assert any(f"{newest} is damaged" in message for message in progress.warnings)
    assert progress.steps == list(range(1, 7))
    for name, array in state(finished).items():
        np.testing.assert_array_equal(state(run)[name], array, err_msg=name)
    assert records(run) == records(finished)
    for file in (newest, before):
        file.write_bytes(DAMAGES["bits"](file.read_bytes()))
    with pytest.raises(ResnetlabError, match=r"nothing to resume.*damaged.*damaged"):
        train(digits(), BASE.changed(epochs=1), run, progress=Quiet(), resume=True)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ResnetlabError, match=r"nothing to resume.*has no checkpoint"):
        train(digits(), BASE.changed(epochs=1), run, progress=Quiet(), resume=True)
    assert run.weights().exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "bits", "text", "lost"])
def test_lost_weights_are_told_when_resumed_and_when_used(finished: RunFolder, tmp_path: Path, damage: str) -> None:
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    if damage == "lost":
        run.best_weights.unlink()
    else:
        run.best_weights.write_bytes(DAMAGES[damage](run.best_weights.read_bytes()))
    progress = Quiet()
    train(digits(), BASE.changed(epochs=1), run, progress=progress, resume=True)
    assert any("best epoch, 1, are lost" in message for message in progress.warnings)
    with pytest.raises(ResnetlabError, match=r"best\.weights\.h5 is (damaged|missing)"):
        Predictor(run)


@pytest.fixture(scope="module")
def whole_and_stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """A run of three epochs, and one that was stopped in the third."""
    recipe, folder = BASE.changed(epochs=3), tmp_path_factory.mktemp("runs")
    whole, stopped = (new_run(folder / name, recipe) for name in ("whole", "stopped"))
    train(digits(), recipe, whole, progress=Quiet())
    assert train(digits(), recipe, stopped, progress=Quiet(stop_at=14)) == "interrupted"
    return whole, stopped


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1, "loss"'])
def test_a_lost_or_damaged_log_changes_nothing(
    whole_and_stopped: tuple[RunFolder, RunFolder], tmp_path: Path, content: str | None
) -> None:
    whole, stopped = whole_and_stopped
    parts = RunFolder(shutil.copytree(stopped.path, tmp_path / "parts"))
    parts.metrics_file.unlink()
    if content is not None:
        parts.metrics_file.write_text(content, "utf-8")
    train(digits(), whole.recipe(), parts, progress=Quiet(), resume=True)
    assert records(parts) == records(whole)


@pytest.mark.parametrize("every", [Interval(steps=1), Interval(steps=4), Interval(seconds=1e-9)])
def test_checkpoints_within_an_epoch_change_nothing(finished: RunFolder, tmp_path: Path, every: Interval) -> None:
    recipe = BASE.changed(epochs=1)
    run, progress = new_run(tmp_path / "run", recipe), Quiet()
    train(digits(), recipe, run, progress=progress, every=every)
    for name, array in state(finished).items():
        np.testing.assert_array_equal(state(run)[name], array, err_msg=name)
    assert records(run) == records(finished)
    assert progress.steps == list(range(1, 7))
    steps = [int(file.stem[-9:]) for file in Checkpoints(run).files()]
    assert steps == ([6, 4, 0] if every.steps == 4 else [6, 5, 4])
    assert {path.name for path in run.path.iterdir()} == {path.name for path in finished.path.iterdir()}


def die(folder: str, every: int) -> None:
    """A process that dies in step 8, with checkpoints every few steps."""

    class Deadly(Quiet):
        def step(self, step: int, logs: Mapping[str, float]) -> None:
            if step == 8:
                os.kill(os.getpid(), signal.SIGKILL)

    train(digits(), BASE, new_run(Path(folder), BASE), progress=Deadly(), every=Interval(steps=every))


def test_a_killed_run_loses_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    whole = new_run(tmp_path / "whole", BASE)
    train(digits(), BASE, whole, progress=Quiet())
    code = f"""
from resnetlab.environment import configure
configure(backend={keras.backend.backend()!r}, device="cpu")  # the same kernels as here
from tests.training.test_checkpoint import die
die({str(tmp_path / "killed")!r}, every=1)
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=False)
    assert child.returncode == -signal.SIGKILL
    run, progress = RunFolder.open(tmp_path / "killed"), Quiet()
    train(digits(), BASE, run, progress=progress, resume=True)
    assert progress.steps[0] in (7, 8)  # the checkpoint of step 7 may have been under way
    for name, array in state(whole).items():
        np.testing.assert_array_equal(state(run)[name], array, err_msg=name)
    assert records(run) == records(whole)
    assert {path.name for path in run.path.iterdir()} == {path.name for path in whole.path.iterdir()}


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", BASE)

    class Intruding(Quiet):
        def step(self, step: int, logs: Mapping[str, float]) -> None:
            if step == 1:
                with pytest.raises(UsageError, match="Another process is training"):
                    train(digits(), BASE, RunFolder(run.path), progress=Quiet(), resume=True)
                self.messages.append("refused")

    progress = Intruding()
    assert train(digits(), BASE, run, progress=progress) == "finished"
    assert progress.messages == ["refused"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500", Interval(steps=500)), ("90s", Interval(seconds=90)), ("2.5m", Interval(seconds=150))],
)
def test_intervals(text: str, expected: Interval) -> None:
    assert Interval.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0s", "-5m", "5h", "1.5", "m", "five", "5 m"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(UsageError, match="expected steps"):
        Interval.parse(text)


class Failing(Quiet):
    """Something goes wrong in step 8."""

    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__()
        self.fail = fail

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        super().step(step, logs)
        if step == 8:
            self.fail()


def test_too_little_memory_is_told_with_what_to_try(tmp_path: Path) -> None:
    def fail() -> None:
        np.empty((1 << 50,), np.uint8)

    run = new_run(tmp_path / "run", BASE)
    message = r"Out of memory: training resnet-tiny on 16 images of 16x16 at a time in float32 .*\. A step with 8 "
    message += r"images was tried, and fits\. Use --accumulate 2, .*--batch-size 8 "
    with pytest.raises(ResnetlabError, match=message + r"--learning-rate 0\.025"):
        train(digits(), BASE, run, progress=Failing(fail))
    train(digits(), BASE, run, progress=Quiet(), resume=True)
    assert run.info().status == "finished"


def test_a_checkpoint_that_cannot_be_written_stops_training_and_the_others_are_whole(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", BASE)
    kept = tmp_path / "kept"

    def fail() -> None:
        shutil.move(run.checkpoints, kept)
        run.checkpoints.write_text("in the way")

    with pytest.raises(ResnetlabError, match=r"Cannot write .*Make room, then: .*train --resume"):
        train(digits(), BASE, run, progress=Failing(fail), every=Interval(steps=4))
    run.checkpoints.unlink()
    shutil.move(kept, run.checkpoints)
    progress = Quiet()
    train(digits(), BASE, run, progress=progress, resume=True)
    assert progress.steps[0] == 7
    assert len(run.metrics()) == 2


def test_latest_is_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no run below runs/"):
        rl.train(resume="latest")
    for name, when in (("newer", 2e9), ("older", 1e9)):
        new_run(tmp_path / "runs" / name, BASE)
        os.utime(tmp_path / "runs" / name / "environment.json", (when, when))
    with pytest.raises(ResnetlabError, match="runs/newer"):
        rl.train(resume="latest")
