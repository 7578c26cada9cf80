"""`resnetlab predict`, `resnetlab explain` and `resnetlab export`."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.atomic import atomic_file, make_folder
from resnetlab.cli.options import Backend, Device, Json, RunFolder, Verbose, print_json, terminal
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.run_folder import UNDECODABLE

if TYPE_CHECKING:
    from resnetlab.inference.explanation import Explanation
    from resnetlab.inference.predictor import Prediction


def predict(
    run_folder: RunFolder,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted globs.")
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(metavar="N", help="Instead of IMAGE: N of the run's test images, with their true classes.", min=0),
    ] = 0,
    top: Annotated[int, typer.Option(metavar="N", help="Classes to show for each image.", min=1)] = 3,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the predictions to a CSV file too.")
    ] = None,
    explain_into: Annotated[
        Path | None,
        typer.Option("--explain", metavar="FOLDER", help="Write a Grad-CAM picture of each image there."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="keras, onnx or openvino: the latter two use an export, made at the first use."
        ),
    ] = "keras",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Precision of the engine's export: float32, float16 or int8.")
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
    if explain_into and (held_out or as_json):
        raise UsageError("--explain is for images that are given, without --held-out and --json.")
    predictions: Iterable[Prediction]
    if held_out:
        predictions = run.predict_test_images(held_out, top=top, engine=engine, precision=precision, progress=progress)
    else:
        found, notes = collect_images(images or [])
        for note in notes:
            progress.info(note)
        predictions = run.predictor(engine, precision, progress=progress).predict(found, top=top)
    if explain_into is not None:
        make_folder(explain_into)
    with _csv_writer(csv_file, top, len(run.class_names)) as write:
        usable = _show(predictions, write, as_json=as_json, to_file=csv_file is not None)
    if explain_into is not None:
        from resnetlab.inference.explanation import explanations

        chosen = [image for image, can_be_used in zip(found, usable, strict=True) if can_be_used]
        write_explanations(explanations(run.predictor(progress=progress), chosen), explain_into, "grad-cam")
    if problems := usable.count(False):
        others = "; the others are above" if problems < len(usable) else ""
        raise ResnetlabError(f"{problems} of {len(usable)} images could not be used{others}.")


def _show(
    predictions: Iterable[Prediction], write: Callable[[Prediction], object], *, as_json: bool, to_file: bool
) -> list[bool]:
    """Print and write the predictions as they come; returns of each image whether it could be used."""
    usable = []
    for prediction in predictions:
        usable.append(prediction.problem is None)
        write(prediction)
        try:
            print_json(prediction.to_json(), indent=None) if as_json else print(_describe(prediction))
        except BrokenPipeError:  # `| head`: the rows of a file are still wanted
            if not to_file:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return usable


def explain(
    run_folder: RunFolder,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted globs.")
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="grad-cam, grad-cam++, hires-cam, layer-cam or occlusion.")
    ] = "grad-cam",
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Such as stage3; default: the network's last stage.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="The class to explain; default: the predicted one.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Write a picture of the stage's feature maps of each image too.")
    ] = False,
    filters: Annotated[
        bool,
        typer.Option("--filters", help="Write a picture of the first convolution's filters; IMAGE may be left out."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write the pictures; default: RUN/explanations.")
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Explain predictions with class activation maps or occlusion: each image beside the image with its map."""
    from resnetlab import tasks
    from resnetlab.inference.images import collect_images

    run, progress = tasks.load(run_folder, backend=backend, device=device), terminal(as_json=as_json, messages=False)
    if not images and not filters:
        raise UsageError("Give images, folders or globs to explain, or --filters.")
    folder = output or run.path / "explanations"
    found, notes = collect_images(images) if images else ([], [])
    for note in notes:
        progress.info(note)
    predictor = run.predictor(progress=progress)  # which sets the device up before Keras is imported
    from resnetlab.inference.explanation import explanations, save_filters

    made = explanations(predictor, found, method=method, stage=stage, class_name=class_name, features=features)
    make_folder(folder)
    if filters:
        save_filters(run.filters(), folder / "filters.png")
        if as_json:
            print_json({"filters": str(folder / "filters.png")}, indent=None)
        else:
            print(folder / "filters.png")
    problems = write_explanations(made, folder, method, as_json=as_json)
    if problems:
        raise ResnetlabError(f"{problems} of {len(found)} images could not be used.")


def write_explanations(made: Iterable[Explanation], folder: Path, method: str, *, as_json: bool = False) -> int:
    """Write a picture of each explanation, print a line on each, and return the number of images with a problem.

    Pictures that are there already, of images of the same name, are written over.
    """
    from resnetlab.progress import terminal_width, wrap

    taken: set[str] = set()
    problems = 0
    for each in made:
        shown: dict[str, Any] = {"path": each.path}
        if each.problem is not None:
            problems += 1
            shown["problem"] = each.problem
            line = f"{each.path}  cannot be used: {each.problem}"
        else:
            stem = Path(each.path or "image").stem[:60]  # a file name has at most 255 bytes
            stems = (f"{stem}{f'-{number}' if number > 1 else ''}" for number in count(1))
            stem = next(name for name in stems if name.casefold() not in taken)
            taken.add(stem.casefold())
            picture = folder / f"{stem}.{method}.png"
            each.save(picture)
            shown |= {"class": each.class_name, "probability": each.probability, "picture": str(picture)}
            line = f"{each.path}  {each.class_name} {each.probability:.1%}  {picture}"
            if each.features is not None:
                picture = folder / f"{stem}.features.png"
                each.save_features(picture)
                shown |= {"features": str(picture), "channels": each.channels}
                line += f"  {picture}"
        if as_json:
            print_json(shown, indent=None)
        else:
            print(wrap(line, terminal_width()))
    return problems


def _describe(prediction: Prediction) -> str:
    """One line, or as many as a terminal of this width needs."""
    from resnetlab.progress import cell_width, terminal_width, wrap

    width = terminal_width()
    if prediction.problem is not None:
        return wrap(f"{prediction.path}  cannot be used: {prediction.problem}", width)
    ranking = "  ".join(f"{' '.join(name.split())} {probability:.1%}" for name, probability in prediction.top)
    if prediction.true_label is not None:
        right = prediction.label == prediction.true_label
        ranking = f"{'right' if right else 'WRONG'}  {ranking}  (true: {prediction.true_label})"
    line = f"{prediction.path}  {ranking}"
    if not width or cell_width(line) <= width:
        return line
    return f"{prediction.path}\n{wrap('    ' + ranking, width)}"


@contextmanager
def _csv_writer(path: Path | None, top: int, num_classes: int) -> Iterator[Callable[[Prediction], object]]:
    """Writes a row for each image: its path, true class, problem, and the `top` classes with their probabilities.

    The file is complete or as it was before; what an interrupted process had is in NAME.partial.csv. Without a path,
    nothing is written.
    """
    if path is None:
        yield lambda prediction: None
        return
    if path.suffix.lower() != ".csv":  # a forgotten file name would overwrite the first image
        raise UsageError(f"Received --csv {path}, expected the name of a .csv file.")
    ranks = range(1, min(top, num_classes) + 1)
    header = ["path", "true", "problem", *(name for k in ranks for name in (f"class_{k}", f"probability_{k}"))]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", errors=UNDECODABLE, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)

        def write(prediction: Prediction) -> None:
            row: list[object] = [prediction.path, prediction.true_label, prediction.problem]
            row += [value for pair in prediction.top for value in pair]
            writer.writerow(row + [None] * (len(header) - len(row)))

        try:
            yield write
        except KeyboardInterrupt:  # after hours, perhaps
            file.flush()
            shutil.copyfile(temporary, path.with_suffix(".partial.csv"))
            raise


def export(
    run_folder: RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Images for verification and int8 calibration; default: the run's own."),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="onnx, saved_model, litert, openvino; or safetensors, to share weights.")
    ] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="float32; float16 or int8 (not saved_model); bfloat16 (saved_model).")
    ] = "float32",
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Fixed in the export; default: any.", min=1)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write it; default: RUN/export/FORMAT-PRECISION.")
    ] = None,
    names: Annotated[
        str,
        typer.Option(
            metavar="LIBRARY", help="For safetensors: whose names to use: resnetlab, torchvision, timm or transformers."
        ),
    ] = "resnetlab",
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="For safetensors: licence in the model card, such as apache-2.0.")
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Upload safetensors to the Hugging Face hub."),
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a run's network for another runtime, and verify it against Keras on real images."""
    from resnetlab import tasks

    run, progress = tasks.load(run_folder, backend=backend, device=device), terminal(as_json=as_json, messages=False)
    if push_to_hub and format != "safetensors":
        raise UsageError("--push-to-hub is for --format safetensors.")
    if push_to_hub and (output, precision, batch_size, data) != (None, "float32", None, None):
        raise UsageError(
            "--push-to-hub uploads float32 weights: leave --output, --precision, --batch-size and DATA out."
        )
    if push_to_hub:
        url = run.push_to_hub(push_to_hub, names=names, license=license, progress=progress)
        print_json({"url": url}) if as_json else print(url)
        return
    made = run.export(
        format,
        precision=precision,
        batch_size=batch_size,
        output=output,
        data=data,
        names=names,
        license=license,
        progress=progress,
    )
    if as_json:
        print_json({"export": str(made.path), **made.details})
    else:
        print("\n".join(made.summary))
