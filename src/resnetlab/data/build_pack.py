"""Build a pack: decode all images into one file, with a description beside it.

The folder is renamed when it is complete. An interrupted or killed process leaves it under its temporary name, and the
next one goes on from there: every `SAVE_EVERY` seconds, the images are flushed to the disk, and after them the records
of these images, so that there is never a record without its image.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from resnetlab.atomic import resumable_folder
from resnetlab.data.audit import Audit, Record, inspect_all
from resnetlab.data.preprocess import Interpolation, Pixels
from resnetlab.data.sources import Source
from resnetlab.progress import CountCallback
from resnetlab.untrusted import parse_json

SAVE_EVERY = 10.0  # seconds
IMAGES, DESCRIPTION, RECORDS = "images.npy", "pack.json", "records.jsonl"


def build(
    folder: Path,
    source: Source,
    shape: tuple[int, ...],
    interpolation: Interpolation,
    key: str,
    *,
    workers: int | None = None,
    progress: CountCallback | None = None,
) -> None:
    """Decode the images of `source` into `folder`, as arrays of `shape`. The caller holds the lock of the pack."""
    with resumable_folder(folder) as building:
        records = _saved_records(building, source, shape)
        inspected = inspect_all(
            source,
            size=shape[-2],
            interpolation=interpolation,
            whole=len(shape) == 4,
            start=len(records),
            workers=workers,
            progress=progress,
        )
        # A large buffer: each write releases the interpreter lock, and must then compete with the decoders for it.
        with open(building / IMAGES, "r+b" if records else "w+b", buffering=1 << 22) as file:
            audit = _write_images(file, building / RECORDS, source, shape, records, inspected)
            _sync(file)
        usable = audit.usable
        meta = {
            "key": key,
            "shape": [len(usable), *shape],
            "audit": audit.to_json(),
            "names": [record.name for record in usable],
            "labels": [record.label for record in usable],
            "subsets": [record.subset for record in usable],
            "hashes": [record.sha256 for record in usable],
            "aspect": [record.width / record.height for record in usable],
        }
        with open(building / DESCRIPTION, "wb") as file:
            file.write(json.dumps(meta).encode())
        if folder.exists():  # somebody deleted half of it
            shutil.rmtree(folder)


def _write_images(
    file: BinaryIO,
    saved: Path,
    source: Source,
    shape: tuple[int, ...],
    records: list[Record],
    inspected: Iterable[tuple[Record, Pixels | None]],
) -> Audit:
    """Write the usable images as .npy, in order; not through a memory map, which crashes when the disk is full.

    Their number, and which of them are unusable copies, is known only after the last one; the gaps are then
    closed. `records` are those of images that the file has; the others are added.
    """
    row_bytes = math.prod(shape)
    start = _write_header(file, (len(source.samples), *shape))
    file.seek(start + _rows(records) * row_bytes)
    file.truncate()
    with open(saved, "ab") as lines:
        unsaved, due = [], time.monotonic() + SAVE_EVERY
        for record, pixels in inspected:
            records.append(record)
            unsaved.append(record)
            if pixels is not None:
                file.write(pixels.tobytes())
            if time.monotonic() >= due:
                _sync(file)
                lines.write(b"".join(json.dumps(asdict(each)).encode() + b"\n" for each in unsaved))
                _sync(lines)
                unsaved, due = [], time.monotonic() + SAVE_EVERY
    audit = Audit.of(source, records)

    saved.unlink()  # from here on, rows move
    settled = [after for before, after in zip(records, audit.records, strict=True) if before.problem is None]
    kept = [row for row, record in enumerate(settled) if record.problem is None]
    for row, source_row in enumerate(kept):
        if row != source_row:
            file.seek(start + source_row * row_bytes)
            content = file.read(row_bytes)
            file.seek(start + row * row_bytes)
            file.write(content)
    file.truncate(start + len(kept) * row_bytes)
    file.seek(0)
    _write_header(file, (len(kept), *shape))  # as long as before: NumPy leaves room for the number of rows
    return audit


def _saved_records(building: Path, source: Source, shape: tuple[int, ...]) -> list[Record]:
    """The records that a killed process has saved, of images that are in its file; a last half line is removed."""
    records: list[Record] = []
    end = 0
    lines = building / RECORDS
    with suppress(OSError, ValueError, TypeError):  # there are none; half a line
        for sample, line in zip(source.samples, lines.read_bytes().splitlines(keepends=True), strict=False):
            fields = parse_json(line)
            record = Record(**fields | {"conversions": tuple(fields["conversions"])})
            if record.name != sample.name or not line.endswith(b"\n"):
                break
            records.append(record)
            end += len(line)
    header = _write_header(io.BytesIO(), (len(source.samples), *shape))
    with suppress(OSError):
        if (building / IMAGES).stat().st_size >= header + _rows(records) * math.prod(shape):
            os.truncate(lines, end)
            return records
    lines.unlink(missing_ok=True)
    return []


def _rows(records: Iterable[Record]) -> int:
    """How many of them have an image in the file."""
    return sum(record.problem is None for record in records)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write the header of a .npy file of bytes; its length."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
