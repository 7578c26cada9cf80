"""Exports and engines: size, accuracy, latency and throughput, and prediction from JPEG files.

Questions: does every export have Keras's probabilities? What does int8 keep of the accuracy, at a quarter of the size?
What does `predict --engine onnx` cost over bare ONNX Runtime, and what does decoding? Does memory grow with the files?

    python benchmarks/inference.py RUN...               of trained runs, with their data; ResNet-50 at 224: an hour
    python benchmarks/inference.py RUN --data FOLDER    with other images
    python benchmarks/inference.py                      of untrained networks: speeds hold, accuracies say nothing
    python benchmarks/inference.py --smoke              a tiny network, in half a minute

Where the data has not the classes of the run, or is missing (then it is crops of scikit-learn's two photographs),
Keras's own classes stand for the true ones. All compute the same bytes; keras.applications gets them preprocessed.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness  # puts src/ on the path
from harness import ChildFailed, Contender, Job, Mark, Row, Run, RunningContender, say

from resnetlab import environment, results
from resnetlab.errors import ResnetlabError
from resnetlab.run_folder import RunFolder, RunInfo

BATCHES = (32, 1)
UNTRAINED = (Job("resnet50", 224, 32, 1000), Job("resnet20", 32, 32, 10))
SMOKE = Job("resnet-tiny", 16, 4, 3)
KERAS, BARE, ONNX, FILES = "Keras, TensorFlow", "bare ONNX Runtime", "onnx, float32", "onnx, float32, from JPEG files"
MANY_FILES = 20_000

# Makers: each returns run(n), of n batches.


def _images(job: Job) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (job.batch, job.size, job.size, 3), np.uint8)


def _repeat(function: Any, images: Any, batches: int) -> None:
    for _ in range(batches):
        function(images)


def keras_ours(job: Job, mark: Mark, *, run: str) -> Run:
    """What `resnetlab predict` runs."""
    environment.configure(backend="tensorflow", device="cpu")
    from resnetlab.inference.predictor import Predictor

    return partial(_repeat, Predictor(RunFolder.open(Path(run))).engine, _images(job))


def exported(job: Job, mark: Mark, *, folder: str) -> Run:
    """An export, by the runtime of its format."""
    environment.configure(backend="tensorflow", device="cpu")
    from resnetlab.inference.engines import exported_engine

    return partial(_repeat, exported_engine(Path(folder)), _images(job))


def bare_onnx_runtime(job: Job, mark: Mark, *, folder: str) -> Run:
    """ONNX Runtime as its documentation uses it, on the same graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])
    return partial(_repeat, lambda images: session.run(None, {"image": images}), _images(job))


def keras_applications(job: Job, mark: Mark) -> Run:
    """keras.applications' ResNet50 as its documentation uses it, of images that are preprocessed."""
    environment.configure(backend="tensorflow", device="cpu", onednn=False)
    import keras

    model = keras.applications.ResNet50(weights=None, classes=job.classes, input_shape=(job.size, job.size, 3))
    images = keras.applications.resnet.preprocess_input(_images(job).astype("float32"))
    return partial(_repeat, model.predict_on_batch, images)


def from_files(job: Job, mark: Mark, *, run: str, folder: str) -> Run:
    """`resnetlab predict --engine onnx` of n batches of files; returns the most memory ever held, in MB."""
    from resnetlab.inference.images import ImageInput
    from resnetlab.inference.predictor import Predictor

    predictor, files = Predictor(RunFolder.open(Path(run)), engine="onnx"), sorted(Path(folder).iterdir())

    def predict(batches: int) -> float:
        paths = (files[number % len(files)] for number in range(batches * job.batch))
        for prediction in predictor.predict(ImageInput(str(path), path) for path in paths):
            assert prediction.top, prediction.problem
        # On Linux not getrusage's, which begins with its parent's.
        found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    return predict


MAKERS = (keras_ours, exported, bare_onnx_runtime, keras_applications, from_files)


def untrained(job: Job, folder: Path) -> RunFolder:
    """A run with the weights that a network begins with."""
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import BASE

    recipe = BASE.changed(model=job.model, image_size=job.size)
    names = tuple(f"class {k}" for k in range(job.classes))
    run = RunFolder.create(folder, recipe=recipe, info=RunInfo(model=job.model, class_names=names, source="random"))
    build_network(recipe, job.classes).save_weights(run.best_weights)
    return run


def data_of(run: RunFolder, spec: str | None, images: int) -> Any:
    """At most 256 training images and `images` held-out ones; Keras's classes where the true ones are not the run's."""
    import numpy as np

    from resnetlab.data.pack import Pack, prepare_pack
    from resnetlab.data.sources import resolve
    from resnetlab.inference.export import spread
    from resnetlab.inference.predictor import Predictor
    from resnetlab.inference.verification import sample_images

    recipe, class_names = run.recipe(), tuple(run.info().class_names)
    own = run.info().data
    if spec or own:
        shares = {"validation": 0.0, "test": 0.5, "early_stopping": 0} if spec else {}
        whole = prepare_pack(resolve(spec or own), recipe.changed(**shares))
        held_out = whole.indices("test") if len(whole.indices("test")) else whole.indices("validation")
        rows = np.concatenate([spread(whole.indices("train"), 256), spread(held_out, images)])
        names, hashes = (tuple(np.array(column)[rows].tolist()) for column in (whole.names, whole.hashes))
        found = replace(whole, images=whole.images[rows], labels=whole.labels[rows], subset=whole.subset[rows])
        found = replace(found, names=names, hashes=hashes)
    else:
        crops = sample_images(recipe.pack_size, 32 + images)
        subset = np.array(["train"] * 32 + ["test"] * images)
        labels = np.zeros(len(crops), np.int64)
        found = Pack(crops, labels, subset, (), (), (), "two photographs", "", {})
    if found.class_names != class_names:
        found = replace(found, labels=Predictor(run).logits(found.images).argmax(1), class_names=class_names)
    return found


def export_all(job: str, run: RunFolder, pack: Any, formats: Sequence[str]) -> tuple[list[Row], dict[str, Path]]:
    """Rows of sizes and of what was verified, and the folders of the exports that were kept."""
    from resnetlab.inference.export import PRECISIONS, export

    rows: list[Row] = []
    folders: dict[str, Path] = {}
    for format in formats:
        sizes: dict[str, int] = {}
        for precision in PRECISIONS[format]:
            name = f"{format}, {precision}"
            say(f"{job}: exporting {name}")
            try:
                folders[name] = export(run, format, precision=precision, pack=pack)
            except ResnetlabError as error:
                rows.append({"job": job, "export": name, "failed": str(error)})
                continue
            facts = json.loads((folders[name] / "export.json").read_text())
            sizes[precision] = facts["bytes"]
            share = round(facts["bytes"] / sizes["float32"], 4)
            rows.append(
                {"job": job, "export": name, "bytes": facts["bytes"], "share_of_float32": share} | facts["verified"]
            )
    return rows, folders


def measure(name: str, job: Job, contenders: Sequence[Contender], rounds: int, seconds: float) -> list[Row]:
    """Rates, and their ratios to Keras, to bare ONNX Runtime, and of files to computing alone, round by round."""
    where: Row = {"job": name, "batch": job.batch}
    rows: list[Row] = []
    alive = harness.start(contenders, job, where=where, rows=rows)

    def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
        wanted = [(name, KERAS) for name in names if name != KERAS] + [(ONNX, BARE), (FILES, ONNX)]
        return [pair for pair in wanted if set(pair) <= set(names)]

    harness.compare(alive, where=where, rows=rows, rounds=rounds, amount=job.batch, seconds=seconds, pairs=pairs)
    for each in alive:
        each.close()
    return rows


def contenders_of(job: Job, run: RunFolder, folders: dict[str, Path], files: Path) -> list[Contender]:
    made = [Contender(KERAS, "keras_ours", {"run": str(run.path)})]
    if job.model.endswith("resnet50"):
        made.append(Contender("keras.applications", "keras_applications"))
    made += [Contender(name, "exported", {"folder": str(folder)}) for name, folder in folders.items()]
    if ONNX in folders:
        made.append(Contender(BARE, "bare_onnx_runtime", {"folder": str(folders[ONNX])}))
        if job.batch > 1:
            made.append(Contender(FILES, "from_files", {"run": str(run.path), "folder": str(files)}))
    return made


def memory(name: str, job: Job, contender: Contender, count: int) -> Row:
    """The most memory that `predict --engine onnx` holds after a tenth of so many files, and after all."""
    say(f"{name}: memory over {count} files")
    row = {"job": name, "contender": contender.name}
    try:
        alive, peaks = RunningContender(contender, job), []
        for part in (count // 10, count):
            alive.run(max(1, part // job.batch), limit=3600)
            peaks.append(round(alive.value))
        alive.close()
    except ChildFailed as failure:
        return row | {"failed": str(failure)}
    return row | {"files": count, "peak_mb_after_a_tenth": peaks[0], "peak_mb": peaks[1]}


def jpeg_files(folder: Path, count: int) -> Path:
    """Photographs of 300 x 225 pixels, as Animals-10's are."""
    from PIL import Image

    from resnetlab.inference.verification import sample_images

    folder.mkdir()
    for number, array in enumerate(sample_images(300, count)):
        Image.fromarray(array[:225]).save(folder / f"{number}.jpg", quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="default: untrained ResNet-50 and ResNet-20")
    parser.add_argument("--data", help="instead of the runs' own")
    parser.add_argument("--images", type=int, default=1000, help="to verify each export on")
    parser.add_argument("--format", action="append", help="default: all")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one contender in one round, about")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, ONNX only, one round")
    parser.add_argument("--out", type=Path, help="default: results/inference-MACHINE.json")
    options = parser.parse_args()
    environment.configure(backend="tensorflow", device="cpu")
    from resnetlab.inference.export import PRECISIONS

    if options.smoke:
        options.repeats, options.seconds, options.images, options.format = 1, 0.01, 16, ["onnx"]
    out = options.out or harness.ROOT / "results" / f"inference-{harness.machine_name()}.json"
    configuration = {"trained": bool(options.runs), "repeats": options.repeats, "files": "JPEG, 300 x 225"}
    threads = f"{environment.usable_cores()}; bare ONNX Runtime's and keras.applications' own default"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        files = jpeg_files(scratch / "files", 8 if options.smoke else 200)
        jobs = [SMOKE] if options.smoke else UNTRAINED
        runs = [RunFolder.open(path) for path in options.runs] or [untrained(job, scratch / job.model) for job in jobs]
        for run in runs:
            recipe, classes = run.recipe(), len(run.info().class_names)
            name = f"{recipe.model}-{recipe.image_size}"
            pack = data_of(run, options.data, options.images)
            exports, folders = export_all(name, run, pack, options.format or list(PRECISIONS))
            rows += exports
            for batch in BATCHES:
                job = Job(recipe.model, recipe.image_size, batch, classes)
                contenders = contenders_of(job, run, folders, files)
                rows += measure(name, job, contenders, options.repeats, options.seconds)
                count = 400 if options.smoke else MANY_FILES if recipe.image_size <= 64 else MANY_FILES // 20
                rows += [memory(name, job, each, count) for each in contenders if each.name == FILES]
            what = "Exports and engines: size, accuracy, speed"
            results.write(out, results.result(what, configuration=configuration | {"threads": threads}, rows=rows))
    harness.show(rows, "job", "batch")
    print(f"\nWritten to {out}")


if __name__ == "__main__":
    harness.main(MAKERS, main)
