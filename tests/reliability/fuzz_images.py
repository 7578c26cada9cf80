"""Mutate real images at random, and put them through audit, pack and predict, with good images among them.

Claim   No mutated file crashes the process or takes longer than its limit; memory stays below a bound; the good images
        among them give the same pixels and the same predictions as alone.
How     Photographs in some hundred encodings of JPEG, PNG, WebP, GIF, BMP, TIFF and others, each changed by flipped
        bits, numbers at their limits, blocks that are cut, doubled or taken from another file, or a short end. Each
        batch is a folder, read in a process of its own.
Cost    10,000 images: about ten minutes on two CPU cores.

    python -m tests.reliability.fuzz_images --count 10000
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.odd_images import corpus
from tests.reliability.limits import ROOT, Jail, Outcome

GOOD = 20  # in each batch
SECONDS = 10  # for one image
MEGABYTES = 5000  # for a process: 25 bytes for each of the 200 million pixels that an image may have
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(array) for array in load_sample_images().images]


def originals() -> list[tuple[str, bytes]]:
    """Suffix and content of sound files: the encodings of `odd_images`, and photographs in the common ones."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    found = [(odd.suffix, odd.content) for odd in corpus().values()]
    for photograph in photographs():
        for side in (40, 200, 640):
            image = photograph.resize((side, side * 2 // 3))
            for kind, suffix, options in (
                ("JPEG", "jpg", {"quality": 85}),
                ("JPEG", "jpg", {"progressive": True}),
                ("PNG", "png", {}),
                ("WEBP", "webp", {}),
                ("WEBP", "webp", {"lossless": True}),
                ("GIF", "gif", {}),
                ("BMP", "bmp", {}),
                ("TIFF", "tif", {}),
                ("TIFF", "tif", {"compression": "tiff_lzw"}),
            ):
                buffer = io.BytesIO()
                image.save(buffer, kind, **options)
                found.append((suffix, buffer.getvalue()))
    return found


def mutated(content: bytes, other: bytes, moments: random.Random) -> bytes:
    """A copy with one to five changes, most of them in the head, where sizes and types stand."""
    changed = bytearray(content)
    for _ in range(moments.choice((1, 1, 1, 2, 3, 5))):
        if not changed:
            break
        reach = min(len(changed), moments.choice((64, 512, len(changed))))
        place = moments.randrange(reach)
        length = moments.choice((1, 4, 64, 1024))
        kind = moments.randrange(7)
        if kind == 0:
            changed[place] ^= 1 << moments.randrange(8)
        elif kind == 1:
            changed[place] = moments.randrange(256)
        elif kind == 2:
            size, order = moments.choice((1, 2, 4)), moments.choice(("little", "big"))
            value = moments.choice(EXTREMES) & (256**size - 1)
            changed[place : place + size] = value.to_bytes(size, order)
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length] * moments.choice((1, 2, 50))
        elif kind == 5:
            start = moments.randrange(max(1, len(other)))
            changed[place : place + length] = other[start : start + length]
        else:
            del changed[moments.randrange(len(changed)) :]
    return bytes(changed)


def write_good(folder: Path) -> None:
    """Good images in two classes, the same in every batch."""
    for number, photograph in enumerate(photographs()):
        (folder / f"class{number}").mkdir(parents=True)
        for index in range(GOOD // 2):
            photograph.crop((20 * index, 0, 20 * index + 400, 400)).save(folder / f"class{number}" / f"good{index}.jpg")


def examine(folder: str) -> str:
    """Audit, pack and predict a folder; JSON of what became of its images, and a hash of what the good ones gave."""
    import resnetlab as rl
    from resnetlab.data.audit import audit
    from resnetlab.data.pack import pack
    from resnetlab.data.preprocess import ImageProblem, decode
    from resnetlab.data.sources import resolve

    slowest: tuple[float, str] = (0.0, "")
    for path in sorted(Path(folder).rglob("*.*")):
        began = time.monotonic()
        with contextlib.suppress(ImageProblem):
            decode(path, size=32)
        slowest = max(slowest, (time.monotonic() - began, path.name))

    source = resolve(folder)
    found = audit(source)
    with tempfile.TemporaryDirectory() as cache:
        packed = pack(source, size=32, cache_dir=Path(cache), validation=0.1, test=0.1, allow_losses=True)
        rows = [row for row, name in enumerate(packed.names) if "/good" in name]
        digest = hashlib.sha256(packed.images[rows].tobytes())
    with tempfile.TemporaryDirectory() as temporary:
        run = rl.load(make_run(Path(temporary, "run")))
        predictions = [p for p in run.predict(folder, progress=None) if p.problem is None]
    good = [p for p in predictions if "/good" in str(p.path)]
    digest.update(repr([(p.label, round(float(p.probability or 0), 4)) for p in good]).encode())
    return json.dumps(
        {
            "images": len(found.records),
            "usable": len(found.usable),
            "packed": len(packed.names),
            "predicted": len(predictions),
            "good": len(good),
            "reasons": dict(Counter((record.problem or "").partition(" (")[0] for record in found.set_aside)),
            "slowest": slowest,
            "digest": digest.hexdigest(),
        }
    )


def make_run(folder: Path) -> Path:
    """A run with random weights, the same each time."""
    import keras

    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import Recipe
    from resnetlab.run_folder import RunFolder, RunInfo

    recipe = Recipe(model="resnet-tiny", image_size=32)
    run = RunFolder.create(folder, recipe=recipe, info=RunInfo(model="resnet-tiny", class_names=("a", "b"), source=""))
    keras.utils.set_random_seed(0)
    run.write_split(())
    run.save_weights("best.weights.h5", build_network(recipe, 2))
    return folder


def run(count: int, *, seed: int = 0, batch: int = 500) -> dict[str, Any]:
    """Mutate `count` images, and state what became of them."""
    moments, sources = random.Random(seed), originals()
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    problems: list[str] = []
    peak, slowest, began = 0.0, (0.0, ""), time.monotonic()
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    preload = ("resnetlab.training.trainer", "resnetlab.tasks", "resnetlab.inference.predictor", "sklearn.datasets")
    with (
        Jail("tests.reliability.fuzz_images:examine", preload=preload, environment=environment) as jail,
        tempfile.TemporaryDirectory() as temporary,
    ):

        def examined(folder: Path, number: int) -> Outcome:
            return jail.call(str(folder), seconds=60 + number * SECONDS / 10, megabytes=MEGABYTES + 2000)

        write_good(Path(temporary, "good"))
        alone = examined(Path(temporary, "good"), GOOD)
        expected = json.loads(alone.message)["digest"] if alone.kind == "accepted" else problems.append(alone.message)
        for start in range(0, count if expected else 0, batch):
            folder, number = Path(temporary, f"batch{start}"), min(batch, count - start)
            write_good(folder)
            for index in range(number):
                (suffix, content), (_, other) = moments.choice(sources), moments.choice(sources)
                path = folder / f"class{index % 2}" / f"{start + index:06}.{suffix}"
                path.write_bytes(mutated(content, other, moments))
            outcome = examined(folder, number)
            peak = max(peak, outcome.megabytes)
            if outcome.kind != "accepted":
                problems.append(f"images {start} to {start + number - 1}: {outcome.kind}: {outcome.message[-1500:]}")
                continue
            found = json.loads(outcome.message)
            reasons.update(found.pop("reasons"))
            slowest = max(slowest, tuple(found["slowest"]))
            if found["digest"] != expected or found["good"] != GOOD:
                problems.append(f"images {start} to {start + number - 1}: the good images among them changed")
            totals.update({key: found[key] for key in ("images", "usable", "packed", "predicted")})
            print(f"{start + number:,} of {count:,}, {time.monotonic() - began:.0f} s, {peak:.0f} MB", flush=True)
    if slowest[0] > SECONDS:
        problems.append(f"{slowest[1]} took {slowest[0]:.1f} s, expected at most {SECONDS}")
    return {
        "mutated": count,
        "kinds": dict(Counter(suffix for suffix, _ in sources)),
        **{key: totals[key] for key in ("images", "usable", "packed", "predicted")},
        "set_aside": dict(reasons.most_common()),
        "slowest_image_seconds": round(slowest[0], 2),
        "peak_mb": round(peak),
        "seconds": round(time.monotonic() - began),
        "problems": problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    row = run(options.count, seed=options.seed)
    print(json.dumps(row, indent=2))
    from resnetlab import results

    what = "Mutated images through audit, pack and predict, with good images among them"
    configuration = {"seed": options.seed, "seconds_most": SECONDS, "mb_most": MEGABYTES}
    results.write(
        options.out / "reliability-images.json", results.result(what, configuration=configuration, rows=[row])
    )
    sys.exit(bool(row["problems"]))


if __name__ == "__main__":
    main()
