"""`resnetlab predict` and `resnetlab export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnetlab.cli.options import Backend, Device, Json, RunFolder, Verbose, print_json, terminal
from resnetlab.errors import ResnetlabError, UsageError

if TYPE_CHECKING:
    from resnetlab.inference.predictor import Prediction


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
    """Classify images. A file that cannot be read is reported, and the others are classified."""
    from resnetlab import tasks
    from resnetlab.inference.images import collect_images

    run, progress = tasks.load(run_folder, backend=backend, device=device), terminal(as_json=as_json, messages=False)
    if bool(images) == bool(held_out):
        raise UsageError("Give either images, folders or globs to predict, or --held-out N.")
    if held_out:
        for prediction in run.predict_test_images(
            held_out, top=top, engine=engine, precision=precision, progress=progress
        ):
            _print(prediction, 30, as_json=as_json)
        return
    found, notes = collect_images(images or [])
    for note in notes:
        progress.info(note)
    width = max(len(str(image.path)) for image in found)
    problems = 0
    for prediction in run.predictor(engine, precision, progress=progress).predict(found, top=top):
        problems += prediction.problem is not None
        _print(prediction, width, as_json=as_json)
    if problems:
        raise ResnetlabError(f"{problems} of {len(found)} files could not be used; the others are above.")


def _print(prediction: Prediction, width: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(prediction.to_json(), ensure_ascii=False))
        return
    ranking = "  ".join(f"{name} {probability:.1%}" for name, probability in prediction.top)
    if prediction.problem is not None:
        print(f"{prediction.path:{width}}  cannot be used: {prediction.problem}")
    elif prediction.true_label is None:
        print(f"{prediction.path:{width}}  {ranking}")
    else:
        mark = "right" if prediction.label == prediction.true_label else "wrong"
        print(f"{prediction.path:{width}} is {prediction.true_label:12} {mark:6} {ranking}")


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
    from resnetlab import tasks

    made = tasks.load(run_folder, backend=backend, device=device).export(
        format,
        precision=precision,
        batch_size=batch_size,
        output=output,
        data=data,
        progress=terminal(as_json=as_json, messages=False),
    )
    if as_json:
        print_json({"export": str(made.path), **made.details})
        return
    found = made.verification
    print(f"{made.model} as {format}, {precision}: {made.bytes / 1e6:.1f} MB")
    print(
        f"verified on {found['images']} images ({found['on']}): the same class as Keras for {found['same_class']:.2%}, "
        f"probabilities within {found['largest_difference']:.1g}"
    )
    if "accuracy" in found:
        print(f"accuracy {found['accuracy']:.2%}, Keras {found['accuracy_keras']:.2%}")
    print(f"how to serve it: {made.path / 'README.md'}")
