"""Files and folders that appear whole or not at all, and locks that a dead process does not hold.

After a power cut, a file or folder is the old one or the new one: its content is flushed to the disk before it is
renamed, and its parent folder after that.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from resnetlab.errors import UsageError, WriteError

_BUILDING, _REPLACED, _LOCK = ".resnetlab-new-", ".resnetlab-old-", ".lock"
_UNFINISHED = ".unfinished-"
_ABANDONED = 7 * 24 * 3600  # seconds after which an unfinished folder that nobody went on with is removed
_UNUSED = 3600  # seconds after which a lock file without a folder is removed: its folder was about to be made


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success the file replaces `target`; on an exception it is deleted.

    Raises:
        WriteError: the file cannot be written.
    """
    suffix = "".join(target.suffixes)[-32:]  # kept, as writers may look at it
    temporary = target.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}{suffix}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)
    except OSError as error:
        raise WriteError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in `folder`, which no other process may write to."""
    for file in folder.glob(".tmp-*-*"):
        process = file.name.split("-")[1]
        if process.isdecimal() and not _runs(int(process)):
            file.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether another process with this number runs on this machine."""
    if process == os.getpid():  # numbers are used again, in containers at once
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True


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
    building = folder.with_name(_BUILDING + token)
    replaced = folder.with_name(_REPLACED + token)
    with locked(_lock_of(building)):
        building.mkdir()
        try:
            yield building
            for path in building.rglob("*"):
                flush(path)
            flush(building)
            if replace and folder.exists():
                folder.rename(replaced)
            building.rename(folder)
            flush(folder.parent)
        finally:
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            for rest in (building, replaced):
                shutil.rmtree(rest, ignore_errors=True)
            _lock_of(building).unlink(missing_ok=True)


@contextmanager
def resumable_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`, with what an interrupted or killed process has left in it.

    On success it is renamed to `folder`; on an exception it is deleted. The caller holds a lock, so that there is one
    at a time, and removes an existing `folder`.
    """
    _remove_abandoned(folder.parent)
    building = folder.with_name(_UNFINISHED + folder.name)
    building.mkdir(parents=True, exist_ok=True)
    try:
        yield building
        for path in building.iterdir():
            flush(path)
        flush(building)
        building.rename(folder)
        flush(folder.parent)
    except Exception:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _remove_abandoned(parent: Path) -> None:
    for building in parent.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (building, *building.iterdir()))
            if time.time() - newest > _ABANDONED:
                shutil.rmtree(building, ignore_errors=True)


@contextmanager
def locked(file: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `file`, which the system releases when the process ends, however it ends.

    Args:
        waiting: called once where another process holds it, before waiting for it; by default TimeoutError is raised.
    """
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if waiting is None:
            raise TimeoutError(f"{file} is held by another process") from None
        waiting()
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


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


def _lock_of(building: Path) -> Path:
    return building.with_name(building.name + _LOCK)


def flush(path: Path) -> None:
    """Write a file's content, or a folder's entries, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and writes their entries itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove unfinished folders of killed processes, but not the folders they replaced, which may be the only copy."""
    for building in parent.glob(f"{_BUILDING}*"):
        if building.name.endswith(_LOCK):
            _remove_unused_lock(building)
            continue
        try:
            with locked(_lock_of(building)):
                shutil.rmtree(building, ignore_errors=True)
                _lock_of(building).unlink(missing_ok=True)
        except (TimeoutError, OSError):  # a living process builds it, or it is not ours to remove
            continue


def _remove_unused_lock(lock: Path) -> None:
    """Remove the lock of a process that was killed before it had made its folder."""
    try:
        if time.time() - lock.stat().st_mtime > _UNUSED and not lock.with_name(lock.name[: -len(_LOCK)]).exists():
            lock.unlink()
    except OSError:
        pass
