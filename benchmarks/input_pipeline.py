"""The input pipeline: what it feeds, what the first pass over JPEG files costs, and what training waits for.

Claims: the packed stream feeds 20,000 images/s and more at 64x64 with augmentation draws on one core; the first pass
over JPEG files is as fast as tf.data's and a PyTorch DataLoader's; on a CPU the loader costs at most 3 % of a step.

    python benchmarks/input_pipeline.py               everything, about 10 minutes on two cores
    python benchmarks/input_pipeline.py --part decode     one part; may be repeated
    python benchmarks/input_pipeline.py --quick       3 rounds, 4 minutes

Files are Animals-10's (below $RESNETLAB_DATA, or --data), copied under new names, each with a comment segment of its
own, until there are 2,000. They lie in the system's page cache for everyone. Ours audits while it decodes (every file
opened whole, hashed, copies found) and writes the pack; the peers only decode. Contenders take turns, as in
throughput.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import CHILD, ENDS, SOURCE, Child, Contender, Failed, Job, Mark, Run, clock, serve  # puts src/ on the path
from throughput import machine_name, say

from resnetlab import environment, results
from resnetlab.errors import ResnetlabError

PARTS = ("stream", "decode", "cached", "end-to-end")
SIZE, BATCH = 64, 32
ALL_OPTIONS = {"color_jitter": 0.4, "erase": 0.25, "mixup": 0.2, "cutmix": 1.0}

# Makers for children: each returns run(n), which goes n times through its work.


def stream_alone(job: Job, mark: Mark, *, batch: int, settings: dict[str, Any], steps: int) -> Run:
    """Batches of the animals recipe with their draws, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    stream = _stream(batch, **settings)

    def run(times: int) -> float:
        for step in range(times * steps):
            stream.batch(step)
        return 0.0

    return run


def _stream(batch: int, count: int = 8192, recipe: str = "animals", **settings: Any) -> Any:
    """A stream over random bytes in a memory-mapped file, as a pack's."""
    environment.configure(device="cpu")
    import numpy as np

    from resnetlab.data.augmentation import Augmentation
    from resnetlab.data.stream import Stream
    from resnetlab.recipes import RECIPES

    chosen = RECIPES[recipe].changed(**settings)
    side, rng = chosen.pack_size, np.random.default_rng(0)
    with tempfile.TemporaryFile() as file:
        np.save(file, rng.integers(0, 256, (count, side, side, 3), np.uint8))
        file.flush()
        offset = file.tell() - count * side * side * 3
        images = np.memmap(file, np.uint8, "r", offset, (count, side, side, 3))
    fields = Augmentation.__dataclass_fields__
    shared = {name: value for name, value in chosen.model_dump().items() if name in fields}
    return Stream(
        images=images,
        labels=rng.integers(0, 10, count),
        indices=np.arange(count),
        batch_size=batch,
        num_classes=10,
        augmentation=Augmentation(source_size=side, size=chosen.image_size, **shared),
        label_smoothing=chosen.label_smoothing,
        class_weights=np.ones(10, np.float32) if chosen.class_weights else None,
    )


def decode_ours(job: Job, mark: Mark, *, folder: str) -> Run:
    """Audit and pack, into a new cache each time."""
    from resnetlab.data.pack import pack
    from resnetlab.data.sources import resolve

    def run(times: int) -> float:
        for _ in range(times):
            with tempfile.TemporaryDirectory() as cache:
                packed = pack(resolve(folder), size=SIZE, cache_dir=Path(cache), validation=0.1, test=0.1)
        return float(len(packed.images))

    return run


def cached_ours(job: Job, mark: Mark, *, folder: str) -> Run:
    """Shuffled batches of the packed images, without draws, as the peers have none."""
    import numpy as np

    from resnetlab.data.augmentation import Augmentation
    from resnetlab.data.pack import pack
    from resnetlab.data.sources import resolve
    from resnetlab.data.stream import Stream

    cache = tempfile.mkdtemp()
    packed = pack(resolve(folder), size=SIZE, cache_dir=Path(cache), validation=0.0, test=0.0)
    shutil.rmtree(cache)  # the memory map keeps the file
    count = len(packed.images)
    plain = Augmentation(source_size=SIZE, size=SIZE)
    stream = Stream(
        images=packed.images,
        labels=packed.labels,
        indices=np.arange(count),
        batch_size=BATCH,
        num_classes=len(packed.class_names),
        augmentation=plain,
    )
    steps = -(-count // BATCH)

    def run(times: int) -> float:
        batches: Any = stream.batches(0)
        for _ in itertools.islice(batches, times * steps):
            pass
        batches.close()
        return float(count)

    return run


def tf_data(job: Job, mark: Mark, *, folder: str, bare: bool, cached: bool) -> Run:
    """`image_dataset_from_directory` with its defaults, or tf.data by hand with AUTOTUNE."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    import keras
    import tensorflow as tf

    if bare:
        files = sorted(str(path) for path in Path(folder).rglob("*.jp*g"))

        def load(path: Any) -> Any:
            pixels = tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (SIZE, SIZE))
            return tf.cast(pixels, tf.uint8)

        dataset = tf.data.Dataset.from_tensor_slices(files).map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
    else:
        dataset = keras.utils.image_dataset_from_directory(folder, image_size=(SIZE, SIZE), batch_size=BATCH)
    if cached:
        dataset = dataset.cache()
    dataset = dataset.prefetch(tf.data.AUTOTUNE)

    def run(times: int) -> float:
        for _ in range(times):
            for _batch in dataset:
                pass
        return 0.0

    return run


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
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)

    def run(times: int) -> float:
        for _ in range(times):
            for _batch in loader:
                pass
        return float(len(files))

    return run


def end_to_end(job: Job, mark: Mark, *, backend: str, recipe: str) -> Run:
    """run(n) trains n steps on one batch and n fed by the stream; the loader's share of the latter's time."""
    environment.configure(backend=backend, device="cpu")
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import RECIPES
    from resnetlab.training.trainer import make_trainer

    chosen = RECIPES[recipe]
    stream = _stream(chosen.batch_size, recipe=recipe)
    trainer = make_trainer(build_network(chosen, 10), chosen, stream)
    inputs, targets, weights = stream.batch(0)
    batch = (inputs, targets) if weights is None else (inputs, targets, weights)

    def constant() -> Any:
        while True:
            yield batch

    def seconds(batches: Any, steps: int) -> float:
        ENDS.clear()
        trainer.fit(batches, steps_per_epoch=steps + 1, verbose=0, shuffle=False, callbacks=clock(job))
        batches.close()
        return ENDS[-1][0] - ENDS[0][0]

    turn = itertools.count()

    def run(steps: int) -> float:
        feeds: list[Callable[[], Any]] = [constant, lambda: stream.batches(0)]
        order = (0, 1) if next(turn) % 2 else (1, 0)
        spent = {which: seconds(feeds[which](), steps) for which in order}
        return 1 - spent[0] / spent[1]

    return run


MAKERS: dict[str, Callable[..., Run]] = {
    maker.__name__: maker for maker in (stream_alone, decode_ours, cached_ours, tf_data, torch_loader, end_to_end)
}

# ------------------------------------------------------------------------------------------------- measuring


def take_turns(part: str, contenders: Sequence[Contender], *, amount: float, times: int, repeats: int) -> list[Any]:
    """Images/s of each, and the first one's ratio to each of the others, round by round."""
    rows: list[dict[str, Any]] = []
    alive = []
    for contender in contenders:
        say(f"{part}: starting {contender.name}")
        try:
            alive.append(Child(contender, Job(), script=__file__))
        except Failed as failure:
            rows.append({"part": part, "contender": contender.name, "failed": str(failure)})
    rates: dict[str, list[float]] = {child.contender.name: [] for child in alive}
    processor: dict[str, list[float]] = {name: [] for name in rates}
    for number in range(repeats):
        shift = number % max(len(alive), 1)
        for child in [*alive[shift:], *alive[:shift]]:
            rates[child.contender.name].append(amount * times / child.train(times))
            processor[child.contender.name].append(1e3 * child.processor / (amount * times))
    for child in alive:
        child.close()
    for name, values in rates.items():
        row = {"part": part, "contender": name, "processor_ms_per_image": round(statistics.median(processor[name]), 4)}
        rows.append(row | results.Timing.of(values).to_json())
    mine = contenders[0].name
    for name, values in rates.items():
        if mine in rates and not name.startswith("ours"):
            timing = results.Timing.of([a / b for a, b in zip(rates[mine], values, strict=True)], "x")
            rows.append({"part": part, "ours": mine, "over": name} | timing.to_json())
    return rows


def measure_stream(repeats: int) -> list[Any]:
    rows = []
    for batch, (name, settings) in itertools.product((32, 256), (("recipe", {}), ("all options", ALL_OPTIONS))):
        options: dict[str, Any] = {"batch": batch, "settings": settings, "steps": 100_000 // batch}
        contender = Contender(f"ours, batch {batch}, {name}", "stream_alone", options)
        rows += take_turns("stream", [contender], amount=options["steps"] * batch, times=1, repeats=repeats)
    return rows


def measure_decode(folder: str, files: int, repeats: int) -> list[Any]:
    cores = environment.usable_cores()
    peers = [
        Contender("tf.data, image_dataset_from_directory", "tf_data", {"bare": False}),
        Contender("tf.data, by hand", "tf_data", {"bare": True}),
        Contender(f"DataLoader, {cores} workers", "torch_loader", {"workers": cores}),
    ]
    contenders = [Contender("ours, audit and pack", "decode_ours", {"folder": folder})]
    contenders += [Contender(p.name, p.maker, p.options | {"folder": folder, "cached": False}) for p in peers]
    return take_turns("decode", contenders, amount=files, times=1, repeats=repeats)


def measure_cached(folder: str, files: int, repeats: int) -> list[Any]:
    cores = environment.usable_cores()
    peers = [
        Contender("tf.data, image_dataset_from_directory().cache()", "tf_data", {"bare": False}),
        Contender("DataLoader over the array", "torch_loader", {"workers": 0}),
        Contender(f"DataLoader over the array, {cores} workers", "torch_loader", {"workers": cores}),
    ]
    contenders = [Contender("ours, packed stream", "cached_ours", {"folder": folder})]
    contenders += [Contender(p.name, p.maker, p.options | {"folder": folder, "cached": True}) for p in peers]
    return take_turns("cached", contenders, amount=files, times=5, repeats=repeats)


def measure_end_to_end(backend: str, repeats: int) -> list[Any]:
    rows: list[dict[str, Any]] = []
    for recipe, steps in (("animals", 6), ("cifar", 20)):
        name = f"{recipe} recipe, {backend}"
        say(f"end-to-end: {name}")
        try:
            child = Child(Contender(name, "end_to_end", {"backend": backend, "recipe": recipe}), Job(), script=__file__)
            child.value(2)
            shares = [child.value(steps) for _ in range(repeats)]
            child.close()
        except Failed as failure:
            rows.append({"part": "end-to-end", "contender": name, "failed": str(failure)})
            continue
        timing = results.Timing.of(shares, "share of the step")
        rows.append({"part": "end-to-end", "contender": name} | timing.to_json())
    return rows


def copies(data: Path | None, folder: Path, wanted: int) -> int:
    """Animals-10's files below `folder`, each several times, no two alike; how many there are."""
    from resnetlab.data.sources import resolve

    source = resolve("animals10", data_root=data)
    files = [sample for sample in source.samples if sample.path.suffix.lower() in (".jpg", ".jpeg")]
    made = 0
    for round_ in itertools.count():
        for sample in files:
            content = sample.path.read_bytes()
            if content[:2] != b"\xff\xd8":
                continue
            target = folder / source.class_names[sample.label] / f"{round_}-{sample.path.stem}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            comment = b"\xff\xfe\x00\x06" + made.to_bytes(4, "big")
            target.write_bytes(content[:2] + comment + content[2:])
            made += 1
        if made >= wanted or not made:
            return made
    raise AssertionError("not reached")


def show(rows: Sequence[dict[str, Any]]) -> None:
    for part in dict.fromkeys(row["part"] for row in rows):
        print(f"\n{part}")
        for row in sorted((r for r in rows if r["part"] == part), key=lambda r: "over" not in r):
            if "failed" in row:
                print(f"    failed  {row['contender']}: {row['failed']}")
            elif "over" in row:
                low, high = row["minimum"], row["maximum"]
                print(f"  {row['median']:7.2f} x  {row['ours']} over {row['over']}  ({low:.2f} - {high:.2f})")
            else:
                shown = f"{row['median']:,.4f}" if row["unit"].startswith("share") else f"{row['median']:,.0f}"
                spent = row.get("processor_ms_per_image")
                more = f", {spent:.3g} ms of processor time an image" if spent else ""
                print(f"  {shown:>9} {row['unit']} ± {row['deviation']:,.3g}  {row['contender']}{more}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--data", type=Path, help="where Animals-10 is; default: $RESNETLAB_DATA")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--backend", default="tensorflow", help="of the end-to-end part")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--machine", default=machine_name(), help="what to call this machine")
    parser.add_argument("--out", type=Path, help="default: results/input-pipeline-MACHINE.json")
    options = parser.parse_args()
    parts, repeats = options.part or PARTS, 3 if options.quick else options.repeats

    rows: list[dict[str, Any]] = []
    files = 0
    if "stream" in parts:
        rows += measure_stream(repeats)
    if {"decode", "cached"} & set(parts):
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = copies(options.data, Path(folder), options.files)
            except ResnetlabError as error:
                rows.append({"part": "decode", "contender": "all", "failed": str(error)})
            if files and "decode" in parts:
                rows += measure_decode(folder, files, repeats)
            if files and "cached" in parts:
                rows += measure_cached(folder, files, repeats)
    if "end-to-end" in parts:
        rows += measure_end_to_end(options.backend, repeats)

    configuration = {
        "size": SIZE,
        "batch": BATCH,
        "files": files,
        "repeats": repeats,
        "cores": "one for `stream`, else all",
    }
    result = results.result("The input pipeline, ours and the peers'", configuration=configuration, rows=rows)
    out = options.out or SOURCE.parent / "results" / f"input-pipeline-{options.machine}.json"
    results.write(out, result)
    show(rows)
    print(f"\nWritten to {out}")


if __name__ == "__main__":
    serve(MAKERS) if CHILD in sys.argv[1:2] else main()
