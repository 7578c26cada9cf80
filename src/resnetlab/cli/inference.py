"""`resnetlab predict` and `resnetlab export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnetlab import environment
from resnetlab.cli.options import Backend, Device, Json, RunFolder, Verbose
from resnetlab.cli.shared import open_data, reopen, start
from resnetlab.errors import ResnetlabError, UsageError

if TYPE_CHECKING:
    from resnetlab.data.pack import Pack
    from resnetlab.inference.predictor import Predictor
    from resnetlab.run import Run


def predict(
    run_folder: RunFolder,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted globs.")
    ] = None,
    held_out: Annotated[
        int, typer.Option(help="Predict this many of the run's own test images, and show their true classes.", min=0)
    ] = 0,
    top: Annotated[int, typer.Option(help="Classes to show for each image.", min=1)] = 3,
    engine: Annotated[
        str, typer.Option(help="keras, onnx or openvino: the latter two use an export, made at the first use.")
    ] = "keras",
    precision: Annotated[str, typer.Option(help="Of the engine's export: float32, float16 or int8.")] = "float32",
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in images. A file that cannot be read is reported, and the rest go on."""
    from resnetlab.run import Run

    run = Run.open(run_folder)
    if bool(images) == bool(held_out):
        raise UsageError("Give either images, folders or globs to predict, or --held-out N.")
    if held_out:
        _, _, _, pack = reopen(run_folder, None, quiet=as_json)
        _predict_held_out(_open(run, engine, precision, backend, device), pack, held_out, top=top, as_json=as_json)
        return

    from resnetlab.inference.predictor import expand

    paths, notes = expand(images or [])
    for note in notes:
        print(note, file=sys.stderr)
    predictor = _open(run, engine, precision, backend, device)
    width = max(len(str(path)) for path in paths)
    problems = 0
    for prediction in predictor.predict(paths, top=top):
        problems += prediction.problem is not None
        if as_json:
            print(json.dumps(prediction.to_json(), ensure_ascii=False))
        elif prediction.problem:
            print(f"{prediction.path:{width}}  cannot be used: {prediction.problem}")
        else:
            print(f"{prediction.path:{width}}  {_ranking(prediction.classes)}")
    if problems:
        raise ResnetlabError(f"{problems} of {len(paths)} files could not be used; the others are above.")


def export(
    run_folder: RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="To verify on, and to calibrate int8 on.", show_default="the run's own"),
    ] = None,
    format: Annotated[str, typer.Option(help="onnx, saved_model, litert or openvino.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="float32, float16, bfloat16 (of saved_model) or int8 (of the others).")
    ] = "float32",
    batch_size: Annotated[int | None, typer.Option(help="Fixed in the export.", show_default="any", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(help="The export's folder.", show_default="RUN/export/FORMAT-PRECISION")
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a run's network for another runtime, and verify it against Keras on real images."""
    from resnetlab.inference.export import export as write
    from resnetlab.inference.export import require_supported
    from resnetlab.run import Run

    run = Run.open(run_folder)
    require_supported(format, precision)  # before anything is decoded
    pack = None
    if data is not None:
        _, pack = open_data(data, run.recipe(), quiet=as_json, allow_losses=True)
    elif run.facts()["data"] is not None:
        try:
            _, _, _, pack = reopen(run_folder, None, quiet=as_json)
        except ResnetlabError as error:
            if precision == "int8":
                raise
            print(f"The run's data is not at hand, so other photographs verify the export. {error}", file=sys.stderr)
    start(backend, device)
    folder = write(run, format, precision=precision, batch_size=batch_size, output=output, pack=pack)
    facts = json.loads((folder / "export.json").read_text("utf-8"))
    if as_json:
        print(json.dumps({"export": str(folder), **facts}, indent=2, ensure_ascii=False))
        return
    found = facts["verified"]
    print(f"{facts['model']} as {format}, {precision}: {facts['bytes'] / 1e6:.1f} MB")
    print(
        f"verified on {found['images']} images ({found['on']}): the same class as Keras for {found['same_class']:.2%}, "
        f"probabilities within {found['largest_difference']:.1g}"
    )
    if "accuracy" in found:
        print(f"accuracy {found['accuracy']:.2%}, Keras {found['accuracy_keras']:.2%}")
    print(f"how to serve it: {folder / 'README.md'}")


def _open(run: Run, engine: str, precision: str, backend: str | None, device: str) -> Predictor:
    if engine == "keras":
        start(backend, device)
    else:  # Keras is loaded only if there is something to export
        environment.configure(backend=backend, device=device)
    from resnetlab.inference.predictor import Predictor

    return Predictor(run, engine=engine, precision=precision)


def _predict_held_out(predictor: Predictor, pack: Pack, count: int, *, top: int, as_json: bool) -> None:
    """Predict `count` of the run's own test images."""
    import numpy as np

    indices = pack.indices("test")
    if not len(indices):
        raise ResnetlabError("The run has no test images to predict.")
    chosen = np.random.default_rng(0).permutation(indices)[:count]
    for i, classes in zip(chosen, predictor.rank(pack.images[chosen], top=top), strict=True):
        truth = pack.class_names[pack.labels[i]]
        if as_json:
            record = {
                "path": pack.names[i],
                "true": truth,
                "classes": [{"class": c, "probability": p} for c, p in classes],
            }
            print(json.dumps(record, ensure_ascii=False))
        else:
            mark = "right" if classes[0][0] == truth else "wrong"
            print(f"{pack.names[i]:30} is {truth:12} {mark:6} {_ranking(classes)}")


def _ranking(classes: tuple[tuple[str, float], ...]) -> str:
    return "  ".join(f"{name} {probability:.1%}" for name, probability in classes)
