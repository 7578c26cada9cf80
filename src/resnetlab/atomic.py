"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resnetlab.errors import ResnetlabError

ABANDONED = 24 * 3600  # seconds after which a folder that was never finished is swept up


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to: what was written replaces `target` if the block ends well, and vanishes if it does not."""
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
    """A folder beside `folder` to fill: it takes its place if the block ends well, and vanishes if it does not.

    What stands in that place is replaced if it is an empty folder or `replace` is true; otherwise the block ends with
    OSError, as it does where the place cannot be written. Give "." by `without_dots`: it is another folder afterwards.
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


def without_dots(folder: Path) -> Path:
    """The same folder by a name that does not depend on where one is, if it was "." or ends in ".."."""
    return folder.resolve() if folder.name in ("", "..") else folder


def _sweep(parent: Path) -> None:
    """Remove what was being made when its process was killed; not what it replaced, which may be all there is."""
    for building in parent.glob(".resnetlab-new-*"):
        try:
            abandoned = time.time() - building.stat().st_mtime > ABANDONED
        except OSError:  # it has just been finished
            continue
        if abandoned:
            shutil.rmtree(building, ignore_errors=True)
