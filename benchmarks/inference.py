"""Exports and engines: size, accuracy, latency and throughput, and prediction from JPEG files.

Claims: every export has Keras's probabilities; int8 keeps the accuracy at a quarter of the size; `predict --engine
onnx` costs nothing over bare ONNX Runtime; decoding hides behind computing; memory does not grow with the files.

    python benchmarks/inference.py RUN...               of trained runs, with their data; ResNet-50 at 224: an hour
    python benchmarks/inference.py RUN --data FOLDER    with other images
    python benchmarks/inference.py                      of untrained networks: speeds hold, accuracies say nothing
    python benchmarks/inference.py --smoke              a tiny network, in half a minute

Where the data has not the classes of the run, or is missing (then it is cuttings of scikit-learn's two photographs),
Keras's own classes stand for the true ones. Every contender is a process kept alive; a round times each of them once,
in an order that rotates, as in throughput.py. All compute the same bytes; keras.applications gets them preprocessed.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers import CHILD, SOURCE, Child, Contender, Failed, Job, Mark, serve  # puts src/ on the path
from peers import Run as Steps
from throughput import machine_name, say

from resnetlab import environment, results
from resnetlab.errors import ResnetlabError
from resnetlab.run_folder import RunFolder, RunInfo

BATCHES = (32, 1)
UNTRAINED = (Job("resnet50", 224, 32, 1000), Job("resnet20", 32, 32, 10))
SMOKE = Job("resnet-tiny", 16, 4, 3)
KERAS, BARE, ONNX, FILES = "Keras, TensorFlow", "bare ONNX Runtime", "onnx, float32", "onnx, float32, from JPEG files"
MANY_FILES = 20_000

# ------------------------------------------------------------------------- makers: each returns run(n) of n batches


def _images(job: Job) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (job.batch, job.size, job.size, 3), np.uint8)


def _repeat(function: Any, images: Any) -> Steps:
    def run(steps: int) -> float:
        for _ in range(steps):
            function(images)
        return 0.0

    return run


def keras_ours(job: Job, mark: Mark, *, run: str) -> Steps:
    """What `resnetlab predict` runs."""
    environment.configure(backend="tensorflow", device="cpu")
    from resnetlab.inference.predictor import Predictor

    return _repeat(Predictor(RunFolder.open(Path(run))).engine, _images(job))


def exported(job: Job, mark: Mark, *, folder: str) -> Steps:
    """An export, by the runtime of its format."""
    environment.configure(backend="tensorflow", device="cpu")
    from resnetlab.inference.engines import exported_engine

    return _repeat(exported_engine(Path(folder)), _images(job))


def bare_onnx_runtime(job: Job, mark: Mark, *, folder: str) -> Steps:
    """ONNX Runtime as its documentation uses it, on the same graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])
    return _repeat(lambda images: session.run(None, {"image": images}), _images(job))


def keras_applications(job: Job, mark: Mark) -> Steps:
    """keras.applications' ResNet50 as its documentation uses it, of images that are preprocessed."""
    environment.configure(backend="tensorflow", device="cpu", onednn=False)
    import keras

    model = keras.applications.ResNet50(weights=None, classes=job.classes, input_shape=(job.size, job.size, 3))
    images = keras.applications.resnet.preprocess_input(_images(job).astype("float32"))
    return _repeat(lambda x: model.predict(x, batch_size=job.batch, verbose=0), images)


def from_files(job: Job, mark: Mark, *, run: str, files: list[str]) -> Steps:
    """`resnetlab predict --engine onnx` of n batches of files; returns the most memory ever held, in MB."""
    from resnetlab.inference.images import ImageInput
    from resnetlab.inference.predictor import Predictor

    predictor = Predictor(RunFolder.open(Path(run)), engine="onnx")

    def predict(steps: int) -> float:
        count = steps * job.batch
        images = (ImageInput(path, Path(path)) for path in (files[number % len(files)] for number in range(count)))
        for prediction in predictor.predict(images):
            assert prediction.top, prediction.problem
        return peak_memory()

    return predict


def peak_memory() -> float:
    """Most memory that this process has held, in MB. On Linux not getrusage's, which begins with its parent's."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS
    return float(found[1]) / 1024


MAKERS = {maker.__name__: maker for maker in (keras_ours, exported, bare_onnx_runtime, keras_applications, from_files)}

# --------------------------------------------------------------------------------------------------- exporting


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
        cuttings = sample_images(recipe.pack_size, 32 + images)
        subset = np.array(["train"] * 32 + ["test"] * images)
        labels = np.zeros(len(cuttings), np.int64)
        found = Pack(cuttings, labels, subset, (), (), (), "two photographs", "", {})
    if found.class_names != class_names:
        found = replace(found, labels=Predictor(run).logits(found.images).argmax(1), class_names=class_names)
    return found


def export_all(
    job: str, run: RunFolder, pack: Any, formats: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Rows of sizes and of what was verified, and the folders of the exports that were kept."""
    from resnetlab.inference.export import PRECISIONS, export

    rows: list[dict[str, Any]] = []
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


# --------------------------------------------------------------------------------------------------- measuring


def take_turns(
    name: str, job: Job, contenders: Sequence[Contender], *, seconds: float, repeats: int
) -> list[dict[str, Any]]:
    """Rates, and their ratios to Keras, to bare ONNX Runtime, and of files to computing alone, round by round."""
    rows: list[dict[str, Any]] = []
    alive: list[tuple[Child, int]] = []
    for contender in contenders:
        say(f"{name}, batch {job.batch}: starting {contender.name}")
        try:
            child = Child(contender, job, script=__file__)
            needed = min(child.train(1), child.train(1))
        except Failed as failure:
            rows.append({"job": name, "batch": job.batch, "contender": contender.name, "failed": str(failure)})
            continue
        alive.append((child, max(1, min(1000, round(seconds / max(needed, 1e-4))))))

    rates: dict[str, list[float]] = {child.contender.name: [] for child, _ in alive}
    processor: dict[str, list[float]] = {who: [] for who in rates}
    for number in range(repeats):
        shift = number * 3 % max(len(alive), 1)
        for child, steps in [*alive[shift:], *alive[:shift]]:
            who, count = child.contender.name, steps * job.batch
            rates[who].append(count / child.train(steps))
            processor[who].append(1e3 * child.processor / count)
        say(f"{name}, batch {job.batch}: round {number + 1} of {repeats}")
    for child, _ in alive:
        child.close()

    row = {"job": name, "batch": job.batch}
    for who, values in rates.items():
        spent = {"processor_ms_per_image": round(statistics.median(processor[who]), 3)}
        rows.append(row | {"contender": who} | spent | results.Timing.of(values).to_json())
    pairs = [(who, KERAS) for who in rates if who != KERAS] + [(ONNX, BARE), (FILES, ONNX)]
    for mine, over in pairs:
        if mine in rates and over in rates:
            ratio = results.Timing.of([a / b for a, b in zip(rates[mine], rates[over], strict=True)], "x")
            rows.append(row | {"ours": mine, "over": over} | ratio.to_json())
    return rows


def contenders_of(job: Job, run: RunFolder, folders: dict[str, Path], files: Sequence[str]) -> list[Contender]:
    made = [Contender(KERAS, "keras_ours", {"run": str(run.path)})]
    if job.model.endswith("resnet50"):
        made.append(Contender("keras.applications", "keras_applications"))
    made += [Contender(name, "exported", {"folder": str(folder)}) for name, folder in folders.items()]
    if ONNX in folders:
        made.append(Contender(BARE, "bare_onnx_runtime", {"folder": str(folders[ONNX])}))
        if job.batch > 1:
            made.append(Contender(FILES, "from_files", {"run": str(run.path), "files": list(files)}))
    return made


def memory(name: str, job: Job, run: RunFolder, files: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The most memory that `predict --engine onnx` holds after a tenth of so many files, and after all."""
    say(f"{name}: memory over {count} files")
    row = {"job": name, "contender": FILES}
    try:
        child = Child(
            Contender(FILES, "from_files", {"run": str(run.path), "files": list(files)}), job, script=__file__
        )
        peaks = [child.value(max(1, part // job.batch), limit=3600) for part in (count // 10, count)]
        child.close()
    except Failed as failure:
        return [row | {"failed": str(failure)}]
    return [row | {"files": count, "peak_mb_after_a_tenth": round(peaks[0]), "peak_mb": round(peaks[1])}]


def jpeg_files(folder: Path, count: int = 200) -> list[str]:
    """Photographs of 300 x 225 pixels, as Animals-10's are."""
    from PIL import Image

    from resnetlab.inference.verification import sample_images

    for number, array in enumerate(sample_images(300, count)):
        Image.fromarray(array[:225]).save(folder / f"{number}.jpg", quality=90)
    return sorted(map(str, folder.iterdir()))


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        where = f"{row['job']:12} {'batch ' + str(row['batch']) if 'batch' in row else '':9}"
        if "failed" in row:
            print(f"{where} failed  {row.get('contender') or row['export']}: {row['failed']}")
        elif "export" in row:
            told = f"accuracy {row['accuracy']:.2%}, Keras {row['accuracy_keras']:.2%}, on {row['images']}"
            size = f"{row['bytes'] / 1e6:7.2f} MB ({row['share_of_float32']:.3f})"
            print(f"{where} {size}  {row['export']}: {told}, p differs by {row['largest_difference']:.1e}")
        elif "over" in row:
            low, high = row["minimum"], row["maximum"]
            print(f"{where} {row['median']:7.2f} x  {row['ours']} over {row['over']}  ({low:.2f} - {high:.2f})")
        elif "files" in row:
            print(
                f"{where} {row['peak_mb_after_a_tenth']} MB at a tenth of {row['files']} files, {row['peak_mb']} at all"
            )
        else:
            each = f"{1e3 * row['batch'] / row['median']:.2f} ms a batch, {row['processor_ms_per_image']:.2f} ms of "
            rate = f"{row['median']:9.1f} images/s ± {row['deviation']:.1f}"
            print(f"{where} {rate}  {row['contender']}: {each}processor time an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="default: untrained ResNet-50 and ResNet-20")
    parser.add_argument("--data", help="instead of the runs' own")
    parser.add_argument("--images", type=int, default=1000, help="to verify each export on")
    parser.add_argument("--format", action="append", help="default: all")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one contender in one round, about")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, ONNX only, one round")
    parser.add_argument("--machine", default=machine_name(), help="what to call this machine")
    parser.add_argument("--out", type=Path, help="default: results/inference-MACHINE.json")
    options = parser.parse_args()
    environment.configure(backend="tensorflow", device="cpu")
    from resnetlab.inference.export import PRECISIONS

    repeats, seconds, images = options.repeats, options.seconds, options.images
    formats = options.format or list(PRECISIONS)
    if options.smoke:
        repeats, seconds, images, formats = 1, 0.01, 16, ["onnx"]
    out = options.out or SOURCE.parent / "results" / f"inference-{options.machine}.json"
    scratch = Path(tempfile.mkdtemp())
    (scratch / "files").mkdir()
    rows: list[dict[str, Any]] = []
    try:
        files = jpeg_files(scratch / "files", 8 if options.smoke else 200)
        jobs = [SMOKE] if options.smoke else UNTRAINED
        runs = [RunFolder.open(path) for path in options.runs] or [untrained(job, scratch / job.model) for job in jobs]
        for run in runs:
            recipe, classes = run.recipe(), len(run.info().class_names)
            name = f"{recipe.model}-{recipe.image_size}"
            exports, folders = export_all(name, run, data_of(run, options.data, images), formats)
            rows += exports
            for batch in BATCHES:
                job = Job(recipe.model, recipe.image_size, batch, classes)
                contenders = contenders_of(job, run, folders, files)
                rows += take_turns(name, job, contenders, seconds=seconds, repeats=repeats)
            if ONNX in folders:
                count = 400 if options.smoke else MANY_FILES if recipe.image_size <= 64 else MANY_FILES // 20
                job = Job(recipe.model, recipe.image_size, 32, classes)
                rows += memory(name, job, run, files, count)
            configuration = {
                "trained": bool(options.runs),
                "repeats": repeats,
                "threads": f"{environment.usable_cores()}; bare ONNX Runtime's and keras.applications' own default",
                "files": "JPEG, 300 x 225",
            }
            result = results.result(
                "Exports and engines: size, accuracy, speed", configuration=configuration, rows=rows
            )
            results.write(out, result)
    finally:
        shutil.rmtree(scratch)
    show(rows)
    print(f"\nWritten to {out}")


if __name__ == "__main__":
    serve(MAKERS) if CHILD in sys.argv[1:2] else main()
