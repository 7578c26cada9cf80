"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resnetlab.errors import ResnetlabError, UsageError

ABANDONED = 24 * 3600  # seconds after which an unfinished temporary folder is removed


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success the file replaces `target`; on an exception it is deleted."""
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ResnetlabError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`. On success it is renamed to `folder`; on an exception it is deleted.

    An existing `folder` is replaced if it is empty or `replace` is true; otherwise OSError is raised when the block
    ends, as it is where `folder` cannot be written. Pass "." through `without_dots`, since the folder is replaced by
    another one.
    """
    folder = folder.resolve()  # beside what a link points to
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    token = uuid.uuid4().hex[:8]
    building = folder.with_name(f".resnetlab-new-{token}")
    replaced = folder.with_name(f".resnetlab-old-{token}")
    building.mkdir()
    try:
        yield building
        if replace and folder.exists():
            folder.rename(replaced)
        building.rename(folder)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        for rest in (building, replaced):
            shutil.rmtree(rest, ignore_errors=True)


def make_folder(path: Path) -> Path:
    """An output folder, made before anything is computed: what cannot be written would be lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Output {path} cannot be a folder: {error.strerror}.") from None
    return path


def without_dots(folder: Path) -> Path:
    """`folder` as an absolute path if it is "." or ends in "..", otherwise unchanged."""
    return folder.resolve() if folder.name in ("", "..") else folder


def _sweep(parent: Path) -> None:
    """Remove unfinished folders of killed processes, but not the folders they replaced, which may be the only copy."""
    for building in parent.glob(".resnetlab-new-*"):
        try:
            abandoned = time.time() - building.stat().st_mtime > ABANDONED
        except OSError:  # it has just been finished
            continue
        if abandoned:
            shutil.rmtree(building, ignore_errors=True)
