"""Shards beside one file: how fast batches are made of either, and how long packing takes.

Claims: batches of shards are made at 0.9 times the rate of one packed file or more, from 100,000 small images, and are
the same batches.

    python benchmarks/shards.py        about 4 minutes on two cores

Both are memory-mapped, and lie in the system's page cache. A batch has 128 images of 32x32, with the augmentation of
recipe `cifar`; which images are in it is one permutation of all of them per pass, in both cases.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import harness  # puts src/ on the path
import numpy as np
from PIL import Image

from resnetlab import environment, results, tasks
from resnetlab.comparison.timing import interleave
from resnetlab.recipes import RECIPES

SIDE = 32


def make_images(folder: Path, count: int) -> None:
    """Small JPEG files of random colours, in ten classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE)).save(path)


def measure(count: int, batches: int, rounds: int, megabytes: int, folder: Path) -> list[harness.Row]:
    environment.configure(backend="tensorflow", device="cpu")
    os.environ["RESNETLAB_CACHE"] = str(folder / "cache")
    from resnetlab.data.pack import prepare_pack
    from resnetlab.data.sources import resolve
    from resnetlab.training.build import make_stream

    make_images(folder / "images", count)
    recipe = RECIPES["cifar"]
    began = time.perf_counter()
    number = tasks.pack(folder / "images", folder / "shards", recipe=recipe, shard_megabytes=megabytes, progress=None)
    packing = time.perf_counter() - began
    began = time.perf_counter()
    resolve(str(folder / "shards"))
    checking = time.perf_counter() - began
    streams = {
        kind: make_stream(recipe, prepare_pack(resolve(str(folder / name)), recipe))
        for kind, name in (("one file", "images"), ("shards", "shards"))
    }
    for step in (0, 100):
        one, other = (stream.batch(step) for stream in streams.values())
        if not all(np.array_equal(other[0][key], values) for key, values in one[0].items()):
            raise RuntimeError(f"The batches of step {step} differ.")

    def rate(stream: Any) -> float:
        made = stream.batches(0)
        next(made)
        start = time.perf_counter()
        for _ in islice(made, batches):
            pass
        seconds = time.perf_counter() - start
        made.close()
        return batches * recipe.batch_size / seconds

    found = interleave({kind: lambda stream=stream: rate(stream) for kind, stream in streams.items()}, rounds)
    ratios = [shards / one for shards, one in zip(found["shards"], found["one file"], strict=True)]
    return [
        {
            "part": "packing",
            "images": count,
            "shards": number,
            "seconds": round(packing, 1),
            "images_per_second": round(count / packing),
            "checking_seconds": round(checking, 2),
        },
        *({"part": kind} | results.Timing.of(rates).to_json() for kind, rates in found.items()),
        {"part": "ratio"} | results.Timing.of(ratios, "x").to_json(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shard-megabytes", type=int, default=16)
    parser.add_argument("--out", type=Path, default=harness.ROOT / "results" / "shards.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.images, options.batches, options.rounds, options.shard_megabytes, Path(folder))
    configuration = {"recipe": "cifar", "side": SIDE, "shard_megabytes": options.shard_megabytes}
    configuration |= {"load at the end": [round(load, 2) for load in os.getloadavg()]}
    what = "Batches from shards and from one file"
    results.write(options.out, results.result(what, configuration=configuration, rows=rows))
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if value is not None))
    print(f"\nWritten to {options.out}")


if __name__ == "__main__":
    main()
