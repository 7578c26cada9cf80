"""The input pipeline: what it feeds, what the first pass over JPEG files costs, and what training waits for.

Questions: how many images/s does the packed stream feed at 64x64 with augmentation parameters drawn, on one core? How
fast is the first pass over JPEG files beside tf.data and a PyTorch DataLoader? What does the loader cost of a step?

    python benchmarks/input_pipeline.py                   everything, about 10 minutes on two cores
    python benchmarks/input_pipeline.py --part decode     one part; may be repeated

Files are Animals-10's (below $RESNETLAB_DATA, or --data), copied under new names, each with a comment segment of its
own, until there are 2,000. They lie in the system's page cache for everyone. Ours audits while it decodes (every file
opened whole, hashed, copies found) and writes the pack; the others only decode. Ours decodes large JPEGs at a reduced
size, as Pillow's `draft` does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import harness  # puts src/ on the path
from harness import Contender, Job, Mark, Row, Run, say

from resnetlab import environment, results
from resnetlab.errors import ResnetlabError

PARTS = ("stream", "decode", "cached", "end-to-end")
SIZE, BATCH = 64, 32
ALL_OPTIONS = {"color_jitter": 0.4, "erase": 0.25, "mixup": 0.2, "cutmix": 1.0}

# Makers: each returns run(n), which goes n times through its work.


def _stream(recipe: Any, count: int = 8192) -> Any:
    """A stream over random bytes in a memory-mapped file, as a pack's."""
    import numpy as np

    from resnetlab.data.stream import Stream
    from resnetlab.training.build import make_augmentation

    side, rng = recipe.pack_size, np.random.default_rng(0)
    with tempfile.NamedTemporaryFile() as file:
        np.save(file, rng.integers(0, 256, (count, side, side, 3), np.uint8))
        file.flush()
        images = np.load(file.name, mmap_mode="r")
    return Stream(
        images=images,
        labels=rng.integers(0, 10, count),
        indices=np.arange(count),
        batch_size=recipe.batch_size,
        num_classes=10,
        augmentation=make_augmentation(recipe),
        label_smoothing=recipe.label_smoothing,
        class_weights=np.ones(10, np.float32) if recipe.class_weights else None,
    )


def stream_alone(job: Job, mark: Mark, *, settings: dict[str, Any], steps: int) -> Run:
    """Batches of the animals recipe with their parameters, on one core."""
    environment.configure(device="cpu")
    from resnetlab.recipes import RECIPES

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    stream = _stream(RECIPES["animals"].changed(batch_size=job.batch, **settings))

    def run(times: int) -> None:
        for step in range(times * steps):
            stream.batch(step)

    return run


def decode_ours(job: Job, mark: Mark, *, folder: str) -> Run:
    """Audit and pack, into a new cache each time."""
    from resnetlab.data.pack import pack
    from resnetlab.data.sources import resolve

    def run(times: int) -> None:
        for _ in range(times):
            with tempfile.TemporaryDirectory() as cache:
                pack(resolve(folder), size=SIZE, cache_dir=Path(cache), validation=0.1, test=0.1)

    return run


def cached_ours(job: Job, mark: Mark, *, folder: str) -> Run:
    """Shuffled batches of the packed images, without augmentation, as the others have none."""
    import numpy as np

    from resnetlab.data.augmentation import Augmentation
    from resnetlab.data.pack import pack
    from resnetlab.data.sources import resolve
    from resnetlab.data.stream import Stream

    cache = tempfile.mkdtemp()
    packed = pack(resolve(folder), size=SIZE, cache_dir=Path(cache), validation=0.0, test=0.0)
    shutil.rmtree(cache)  # the memory map keeps the file
    count = len(packed.images)
    stream = Stream(
        images=packed.images,
        labels=packed.labels,
        indices=np.arange(count),
        batch_size=BATCH,
        num_classes=len(packed.class_names),
        augmentation=Augmentation(source_size=SIZE, size=SIZE, flip=False),
    )

    def run(times: int) -> None:
        batches: Any = stream.batches(0)
        for _ in itertools.islice(batches, times * -(-count // BATCH)):
            pass
        batches.close()

    return run


def tf_data(job: Job, mark: Mark, *, folder: str, by_hand: bool = False, cached: bool) -> Run:
    """`image_dataset_from_directory` with its defaults, or tf.data by hand with AUTOTUNE."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    import keras
    import tensorflow as tf

    def load(path: Any) -> Any:
        pixels = tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (SIZE, SIZE))
        return tf.cast(pixels, tf.uint8)

    if by_hand:
        files = sorted(str(path) for path in Path(folder).rglob("*.jp*g"))
        dataset = tf.data.Dataset.from_tensor_slices(files).map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
    else:
        dataset = keras.utils.image_dataset_from_directory(folder, image_size=(SIZE, SIZE), batch_size=BATCH)
    dataset = (dataset.cache() if cached else dataset).prefetch(tf.data.AUTOTUNE)
    return partial(_go_through, dataset)


def torch_loader(job: Job, mark: Mark, *, folder: str, workers: int, cached: bool) -> Run:
    """A DataLoader over an ImageFolder written by hand (what torchvision's does: Pillow, Resize), or over an array."""
    import numpy as np
    import torch
    from PIL import Image

    files = sorted(Path(folder).rglob("*.jp*g"))

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(files[index]) as image:
                pixels = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), index % 10

    dataset: Any = Files()
    if cached:
        images = torch.from_numpy(np.stack([dataset[i][0].numpy() for i in range(len(files))]))
        dataset = torch.utils.data.TensorDataset(images, torch.arange(len(files)) % 10)
    return partial(
        _go_through,
        torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0),
    )


def _go_through(batches: Any, times: int) -> None:
    for _ in range(times):
        for _batch in batches:
            pass


def end_to_end(job: Job, mark: Mark, *, backend: str, recipe: str) -> Run:
    """run(n) trains n steps on one batch and n fed by the stream; the loader's fraction of the latter's time."""
    environment.configure(backend=backend, device="cpu")
    from resnetlab import backend as kernels
    from resnetlab.comparison.measure import repeat_batch
    from resnetlab.comparison.timing import FitTimer, interleave
    from resnetlab.data.stream import as_item
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import RECIPES
    from resnetlab.training.build import make_trainer

    chosen = RECIPES[recipe]
    stream = _stream(chosen)
    batch = as_item(stream.batch(0))
    timer = FitTimer(make_trainer(build_network(chosen, 10), chosen, stream), "cpu", kernels.feed(batch))
    feeds = {"constant": partial(repeat_batch, batch), "stream": partial(stream.batches, 0)}

    def run(steps: int) -> float:
        found = interleave({name: partial(timer.steps, feed, steps) for name, feed in feeds.items()}, 2)
        constant, fed = (sum(spent.seconds for spent in found[name]) for name in feeds)
        return 1 - constant / fed

    return run


MAKERS = (stream_alone, decode_ours, cached_ours, tf_data, torch_loader, end_to_end)


def measure_stream(rounds: int) -> list[Row]:
    rows: list[Row] = []
    for batch, (name, settings) in itertools.product((32, 256), (("recipe", {}), ("all options", ALL_OPTIONS))):
        options: dict[str, Any] = {"settings": settings, "steps": 100_000 // batch}
        contender = Contender(f"ours, batch {batch}, {name}", "stream_alone", options)
        rows += take_turns([contender], Job(batch=batch), "stream", options["steps"] * batch, rounds)
    return rows


def measure_files(part: str, folder: str, files: int, rounds: int) -> list[Row]:
    """From JPEG files, or from what each keeps of them in memory."""
    cores, cached = environment.usable_cores(), part == "cached"
    others = [
        Contender("tf.data, image_dataset_from_directory", "tf_data"),
        Contender("tf.data, by hand", "tf_data", {"by_hand": True}),
        Contender(f"DataLoader, {cores} workers", "torch_loader", {"workers": cores}),
    ]
    if cached:
        others[1] = Contender("DataLoader, no workers", "torch_loader", {"workers": 0})
    ours = (
        Contender("ours, packed stream", "cached_ours") if cached else Contender("ours, audit and pack", "decode_ours")
    )
    contenders = [Contender(ours.name, ours.maker, {"folder": folder})]
    contenders += [Contender(o.name, o.maker, o.options | {"folder": folder, "cached": cached}) for o in others]
    return take_turns(contenders, Job(), part, files, rounds, times=5 if cached else 1)


def take_turns(
    contenders: list[Contender], job: Job, part: str, images: int, rounds: int, *, times: int = 1
) -> list[Row]:
    rows: list[Row] = []
    alive = harness.start(contenders, job, where={"part": part}, rows=rows)
    harness.compare(alive, where={"part": part}, rows=rows, rounds=rounds, amount=images, units=times)
    for each in alive:
        each.close()
    return rows


def measure_end_to_end(backend: str, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for recipe, steps in (("animals", 6), ("cifar", 20)):
        contender = Contender(f"{recipe} recipe, {backend}", "end_to_end", {"backend": backend, "recipe": recipe})
        fractions = []
        for alive in harness.start([contender], Job(), where={"part": "end-to-end"}, rows=rows):
            for _ in range(rounds):
                alive.run(steps)
                fractions.append(alive.value)
            alive.close()
            timing = results.Timing.of(fractions, "share of the step").to_json()
            rows.append({"part": "end-to-end", "contender": contender.name} | timing)
    return rows


def copies(data: Path | None, folder: Path, wanted: int) -> int:
    """Animals-10's files below `folder`, each several times, no two alike; how many there are."""
    from resnetlab.data.sources import resolve

    source = resolve("animals10", data_root=data)
    files = [sample for sample in source.samples if sample.path.read_bytes()[:2] == b"\xff\xd8"]  # JPEG
    for made in range(wanted):
        sample = files[made % len(files)]
        content = sample.path.read_bytes()
        target = folder / source.class_names[sample.label] / f"{made}-{sample.path.stem}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content[:2] + b"\xff\xfe\x00\x06" + made.to_bytes(4, "big") + content[2:])
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--data", type=Path, help="where Animals-10 is; default: $RESNETLAB_DATA")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--backend", default="tensorflow", help="of the end-to-end part")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--out", type=Path, help="default: results/input-pipeline-MACHINE.json")
    options = parser.parse_args()
    parts, rounds = options.part or PARTS, options.repeats
    rows: list[Row] = measure_stream(rounds) if "stream" in parts else []
    if {"decode", "cached"} & set(parts):
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = copies(options.data, Path(folder), options.files)
            except ResnetlabError as error:
                say(f"Files are not measured: {error}")
                rows.append({"part": "decode", "contender": "all", "failed": str(error)})
            else:
                for part in ("decode", "cached"):
                    rows += measure_files(part, folder, files, rounds) if part in parts else []
    if "end-to-end" in parts:
        rows += measure_end_to_end(options.backend, rounds)

    configuration = {"size": SIZE, "batch": BATCH, "files": options.files, "repeats": rounds}
    configuration["cores"] = "one for `stream`, else all"
    out = options.out or harness.ROOT / "results" / f"input-pipeline-{harness.machine_name()}.json"
    results.write(out, results.result("The input pipeline, ours and others", configuration=configuration, rows=rows))
    harness.show(rows, "part")
    print(f"\nWritten to {out}")


if __name__ == "__main__":
    harness.main(MAKERS, main)
