"""What a power cut leaves: each file is the old one or the new one, whichever calls had reached the disk.

A file system may write a rename to the disk before the content of the file that is renamed, and neither is there for
certain before it is flushed. So the content must be flushed before the rename, and the folder after it. The calls of a
training run are recorded, and this order is checked for every rename.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnetlab.atomic import atomic_file, atomic_folder
from resnetlab.training.interval import Interval
from resnetlab.training.trainer import train
from tests.training.test_trainer import BASE, Quiet, digits, new_run

Version = tuple[int, int, int]  # of a file: its inode, size and time of modification


class Recorder:
    """Records what is flushed and renamed, and the version of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Version]]] = []

    def flushed(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.calls.append(("flush", path, versions(path)))

    def renamed(self, source: str, target: str) -> None:
        self.calls.append(("rename", os.path.abspath(target), versions(source)))


def versions(path: str) -> dict[str, Version]:
    """Of the file, or of each file in the folder, by its name in it."""
    if os.path.isfile(path):
        stat = os.stat(path)
        return {"": (stat.st_ino, stat.st_size, stat.st_mtime_ns)}
    return {
        str(each.relative_to(path)): next(iter(versions(str(each)).values()))
        for each in Path(path).rglob("*")
        if each.is_file()
    }


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc: it cannot be told which file a descriptor is of")
    recorder = Recorder()

    def wrapped(name: str, record: Callable[..., None]) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            record(*arguments)
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(os, "fsync", wrapped("fsync", recorder.flushed))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, wrapped(name, recorder.renamed))
    return recorder


def unsafe_renames(calls: list[tuple[str, str, dict[str, Version]]]) -> tuple[int, list[str]]:
    """The number of renames, and what a power cut could do to them."""
    flushed: set[Version] = set()
    problems, count = [], 0
    for number, (kind, path, found) in enumerate(calls):
        if kind == "flush":
            flushed |= set(found.values()) if "" in found else set()
            continue
        count += 1
        problems += [
            f"{path}/{name} was renamed before it was flushed" for name, v in found.items() if v not in flushed
        ]
        parent = os.path.dirname(path)
        if not any(k == "flush" and p == parent for k, p, _ in calls[number + 1 :]):
            problems.append(f"the folder of {path} was not flushed after the rename")
    return count, problems


def test_a_file_and_a_folder(recorder: Recorder, tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text(text)
        with atomic_folder(tmp_path / "folder", replace=True) as building:
            (building / "deep").mkdir()
            (building / "deep" / "file").write_text(text)
    assert unsafe_renames(recorder.calls) == (5, [])  # the second folder took two


def test_every_file_of_a_training_run(recorder: Recorder, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", BASE)
    train(digits(), BASE, run, progress=Quiet(), every=Interval(steps=2))
    assert unsafe_renames(recorder.calls)[1] == []
    targets = {os.path.basename(path) for kind, path, _ in recorder.calls if kind == "rename"}
    assert targets >= {"run.json", "recipe.json", "metrics.jsonl", "best.weights.h5", "step-000000004.npz"}


@pytest.mark.parametrize("forgotten", ["the file", "the folder"])
def test_what_is_forgotten_is_found(recorder: Recorder, tmp_path: Path, forgotten: str) -> None:
    (tmp_path / "temporary").write_text("new")
    if forgotten == "the folder":
        with (tmp_path / "temporary").open("rb") as file:
            os.fsync(file.fileno())
    os.replace(tmp_path / "temporary", tmp_path / "file")
    if forgotten == "the file":
        descriptor = os.open(tmp_path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    assert len(unsafe_renames(recorder.calls)[1]) == 1
