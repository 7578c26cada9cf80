"""Audit, pack, split and stream catalogs of 100,000, 300,000 and 1,000,000 images, and state time and memory.

Claim   Time and memory grow linearly with the number of images, and memory by at most 2 kB an image.
How     Each image is a file of its own, a PNG of 8x8 random pixels (about 270 bytes), in ten class folders; the smaller
        catalogs are hard links to the first files of the largest. Each is read by a new process.
Cost    4 GB of disk in small files, 1.4 million inodes; about ten minutes on two CPU cores.

    python -m tests.reliability.catalog --counts 100000 300000 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CLASSES = 10
SIDE = 8
BATCH, BATCHES = 256, 1000
KILOBYTES_MOST = 2.0  # an image


def write(root: Path, count: int) -> None:
    """So many different PNG files, in class folders."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    end = chunk(b"IEND", b"")
    random = np.random.default_rng(0)
    for number in range(CLASSES):
        (root / f"class{number}").mkdir(parents=True)
    for index in range(count):
        rows = np.zeros((SIDE, 1 + 3 * SIDE), np.uint8)
        rows[:, 1:] = random.integers(0, 256, (SIDE, 3 * SIDE), np.uint8)
        path(root, index).write_bytes(head + chunk(b"IDAT", zlib.compress(rows.tobytes(), 0)) + end)


def path(root: Path, index: int) -> Path:
    return root / f"class{index % CLASSES}" / f"{index:07}.png"


def link(root: Path, source: Path, count: int) -> None:
    for number in range(CLASSES):
        (root / f"class{number}").mkdir(parents=True)
    for index in range(count):
        os.link(path(source, index), path(root, index))


def measure(folder: str) -> dict[str, Any]:
    """Seconds of each step on the catalog in `folder`, and the peak of memory beyond the imports, in this process."""
    from resnetlab.data.audit import audit
    from resnetlab.data.augmentation import Augmentation
    from resnetlab.data.pack import pack
    from resnetlab.data.sources import resolve
    from resnetlab.data.split import split
    from resnetlab.data.stream import Stream

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    row: dict[str, Any] = {}
    before, began = peak(), time.monotonic()

    def done(step: str) -> None:
        nonlocal began
        row[f"{step}_seconds"] = round(time.monotonic() - began, 2)
        row[f"{step}_peak_mb"] = round(peak() - before, 1)
        began = time.monotonic()

    source = resolve(folder)
    done("scan")
    found = audit(source)
    count = len(found.usable)
    done("audit")
    hashes, labels = [r.sha256 for r in found.usable], [r.label for r in found.usable]
    split(hashes, labels, [None] * count, validation=0.1, test=0.1)
    done("split")
    del found, hashes, labels
    with tempfile.TemporaryDirectory() as cache:
        began = time.monotonic()
        packed = pack(source, size=SIDE, cache_dir=Path(cache), validation=0.1, test=0.1)
        done("pack")
        del packed
        began = time.monotonic()
        packed = pack(source, size=SIDE, cache_dir=Path(cache), validation=0.1, test=0.1)
        done("reuse")
        stream = Stream(
            images=packed.images,
            labels=packed.labels,
            indices=packed.indices("train"),
            num_classes=CLASSES,
            batch_size=BATCH,
            seed=0,
            augmentation=Augmentation(source_size=SIDE, size=SIDE),
        )
        seen = sum(len(batch[1]) for batch in islice(stream.batches(0), BATCHES))
        done("stream")
        row["streamed"] = seen
    return {"images": count} | row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the catalogs are made; default: a temporary folder")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        largest = max(options.counts)
        began = time.monotonic()
        write(Path(temporary, str(largest)), largest)
        print(f"{largest:,} files written in {time.monotonic() - began:.0f} s", flush=True)
        for count in sorted(options.counts):
            if count < largest:
                link(Path(temporary, str(count)), Path(temporary, str(largest)), count)
            command = [sys.executable, "-m", "tests.reliability.catalog", "--measure", str(Path(temporary, str(count)))]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(json.dumps(rows[-1]), flush=True)
    from resnetlab import results

    first, last = rows[0], rows[-1]
    per_image = 1024 * (last["pack_peak_mb"] - first["pack_peak_mb"]) / max(1, last["images"] - first["images"])
    configuration = {
        "files": f"PNG of {SIDE}x{SIDE} pixels, in {CLASSES} class folders",
        "batches": BATCHES,
        "batch_size": BATCH,
        "kilobytes_an_image": round(per_image, 2),
    }
    what = "Catalogs of many small images: time, and peak of memory beyond the imports, of each step"
    results.write(
        options.out / "reliability-catalog.json", results.result(what, configuration=configuration, rows=rows)
    )
    print(f"{per_image:.2f} kB an image")
    sys.exit(len(rows) > 1 and per_image > KILOBYTES_MOST)


if __name__ == "__main__":
    main()
