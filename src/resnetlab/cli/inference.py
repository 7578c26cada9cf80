"""`resnetlab predict` and `resnetlab export`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

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
        int,
        typer.Option(metavar="N", help="Instead: so many of the run's test images, with their true classes.", min=0),
    ] = 0,
    top: Annotated[int, typer.Option(metavar="N", help="Classes to show for each image.", min=1)] = 3,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the predictions to a CSV file too.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="keras, onnx or openvino: the latter two use an export, made at the first use."
        ),
    ] = "keras",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Of the engine's export: float32, float16 or int8.")
    ] = "float32",
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
    predictions: Iterable[Prediction]
    if held_out:
        predictions = run.predict_test_images(held_out, top=top, engine=engine, precision=precision, progress=progress)
    else:
        found, notes = collect_images(images or [])
        for note in notes:
            progress.info(note)
        predictions = run.predictor(engine, precision, progress=progress).predict(found, top=top)
    with ExitStack() as stack:
        writers = [_csv_writer(stack.enter_context(_open(csv_file)), top)] if csv_file else []
        done = problems = 0
        for prediction in predictions:
            done, problems = done + 1, problems + (prediction.problem is not None)
            print(json.dumps(prediction.to_json(), ensure_ascii=False) if as_json else _describe(prediction))
            for write in writers:
                write(prediction)
    if problems:
        raise ResnetlabError(f"{problems} of {done} images could not be used; the others are above.")


def _describe(prediction: Prediction) -> str:
    """One line, or as many as a terminal of this width needs."""
    from resnetlab.progress import cell_width, terminal_width, wrap

    width = terminal_width()
    if prediction.problem is not None:
        text = f"{prediction.path}  cannot be used: {prediction.problem}"
        return wrap(text, width) if width else text
    ranking = "  ".join(f"{name} {probability:.1%}" for name, probability in prediction.top)
    if prediction.true_label is not None:
        right = prediction.label == prediction.true_label
        ranking = f"{'right' if right else 'WRONG'}  {ranking}  (true: {prediction.true_label})"
    line = f"{prediction.path}  {ranking}"
    if not width or cell_width(line) <= width:
        return line
    return f"{prediction.path}\n{wrap('    ' + ranking, width)}"


def _open(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UsageError(f"--csv {path} cannot be written: {error.strerror}.") from None


def _csv_writer(file: TextIO, top: int) -> Callable[[Prediction], None]:
    """A row for each image: its path, true class, problem, and the `top` classes with their probabilities."""
    writer = csv.writer(file)
    ranks = range(1, top + 1)
    writer.writerow(["path", "true", "problem", *(name for k in ranks for name in (f"class_{k}", f"probability_{k}"))])

    def write(prediction: Prediction) -> None:
        classes = [value for pair in prediction.top for value in pair]
        writer.writerow([prediction.path, prediction.true_label or "", prediction.problem or "", *classes])

    return write


def export(
    run_folder: RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="To verify on, and to calibrate int8 on; default: the run's own."),
    ] = None,
    format: Annotated[str, typer.Option(metavar="NAME", help="onnx, saved_model, litert or openvino.")] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="float32, float16, bfloat16 (of saved_model) or int8 (of the others).")
    ] = "float32",
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Fixed in the export; default: any.", min=1)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of the export; default: RUN/export/FORMAT-PRECISION.")
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
    else:
        print("\n".join(made.summary))
