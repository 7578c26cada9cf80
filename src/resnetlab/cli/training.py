"""`resnetlab train`, `evaluate` and `import`."""

from __future__ import annotations

import functools
import shlex
import sys
import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from resnetlab.cli.options import (
    Accumulate,
    AllowLosses,
    Backend,
    BatchSize,
    CheckpointEvery,
    Coordinator,
    Deterministic,
    Device,
    Devices,
    DryRun,
    Epochs,
    ForceResume,
    ImageSize,
    Json,
    LearningRate,
    Log,
    Model,
    NewRun,
    NumProcesses,
    OptionalData,
    Precision,
    ProcessId,
    Recipe,
    Resume,
    RunFolder,
    Seed,
    Settings,
    Verbose,
    Weights,
    print_json,
    terminal,
)
from resnetlab.cluster import Cluster
from resnetlab.errors import UsageError
from resnetlab.run_folder import is_run_folder

if TYPE_CHECKING:
    from resnetlab.progress import Progress
    from resnetlab.run import Run


CHOSEN = ", by which the best epoch was chosen: accuracy on new images is lower"


def train(
    data: OptionalData = None,
    model: Model = None,
    recipe: Recipe = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    image_size: ImageSize = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    seed: Seed = None,
    settings: Settings = None,
    weights: Weights = None,
    run_folder: NewRun = None,
    resume: Resume = None,
    force_resume: ForceResume = False,
    checkpoint_every: CheckpointEvery = "5m",
    deterministic: Deterministic = False,
    devices: Devices = "1",
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    log: Log = None,
    dry_run: DryRun = False,
    allow_losses: AllowLosses = False,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a network on images, evaluate it on the test images, and keep everything in a run folder."""
    from resnetlab import tasks

    progress = terminal(as_json=as_json)
    flags: dict[str, Any] = {
        "model": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate if accumulate is None or not accumulate.isdecimal() else int(accumulate),
        "image_size": image_size,
        "seed": seed,
    }
    flags |= {"learning_rate": learning_rate, "precision": precision}
    options: dict[str, Any] = {"recipe": recipe, "weights": weights, "backend": backend, "device": device}
    options |= {"allow_losses": allow_losses, "progress": progress} | fields(settings, **flags)
    if dry_run and (resume or log or coordinator or deterministic or devices != "1"):
        raise UsageError(
            "--dry-run plans a new run on one device and keeps nothing: leave --resume, --log, --devices, "
            "--coordinator and --deterministic out."
        )
    if dry_run:
        plan = tasks.plan_training(data, run=run_folder, **options)
        if as_json:
            print_json(asdict(plan) | {"recipe": plan.recipe.model_dump(mode="json")})
        else:
            progress.info(plan.summary)
        return
    run = tasks.train(
        data,
        run=run_folder,
        resume=None if resume is None else str(resume),
        force_resume=force_resume,
        checkpoint_every=checkpoint_every,
        deterministic=deterministic,
        devices=_devices(devices),
        cluster=Cluster.of(coordinator, num_processes, process_id),
        log=log or (),
        **options,
    )
    if run.status == "interrupted":
        sys.exit(130)
    if process_id:  # process 0 evaluates
        return
    if {"test", "validation"} & set(run.folder.split().values()):
        _evaluate(run, progress, as_json=as_json, after_training=True)
    else:
        run.report()
        if as_json:
            print_json({"run": str(run.path), "status": run.status})
        progress.info("No test or validation images, so nothing is evaluated: `resnetlab evaluate RUN DATA`.")
    folder = shlex.quote(str(run.path))
    progress.info(f"\nrun folder {run.path}\nnext: `resnetlab predict {folder} IMAGES`")
    progress.info(f"      `resnetlab export {folder} --format onnx`")


def _devices(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"Received --devices {text}, expected a number from 1, or all.")
    return int(text)


def evaluate(
    run_folder: RunFolder,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Other data of the same classes; default: the run's own.")
    ] = None,
    flips: Annotated[
        bool, typer.Option("--flips", help="Also show the accuracy with each image's mirror image averaged in.")
    ] = False,
    allow_losses: AllowLosses = False,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a run on its own test images, or on other data: images that it was trained on are left out."""
    from resnetlab import tasks

    run = tasks.load(run_folder, backend=backend, device=device)
    _evaluate(run, terminal(as_json=as_json), data, flips=flips, allow_losses=allow_losses, as_json=as_json)


def _evaluate(
    run: Run,
    progress: Progress,
    data: str | None = None,
    *,
    flips: bool = False,
    allow_losses: bool = False,
    as_json: bool,
    after_training: bool = False,
) -> None:
    from resnetlab.progress import WithoutMessages

    shown = WithoutMessages(progress) if after_training else progress
    found = run.evaluate(data, flips=flips, allow_losses=allow_losses, progress=shown)
    if as_json:
        named = {} if data is None else {"data": data}
        print_json({"run": str(run.path), **named, **found.to_json()})
    else:
        heading = f"\n{found.subset} images{CHOSEN if found.subset == 'validation' else ''}\n" if found.subset else ""
        progress.info(heading + found.summary())


def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A PyTorch checkpoint, a .safetensors, .h5 or .keras file, a folder with config.json, a name on the "
            "Hugging Face hub, or a network of keras.applications.",
        ),
    ],
    run_folder: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="Run folder; default: runs/SOURCE.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="An architecture of `resnetlab models`; default: recognised.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="image_size, crop_pct, interpolation or preprocessing."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which set of weights to take from a file with several."),
    ] = None,
    shortcut_padding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where zero-padded shortcuts add their channels: both (sides), or end."),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A class name in each line; default: the source's.")
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a run of weights that were trained elsewhere: to predict, evaluate, export, and train from."""
    from resnetlab import tasks
    from resnetlab.weights.importing import import_name

    run = tasks.from_pretrained(
        source,
        run=run_folder or (None if is_run_folder(source) else Path("runs") / import_name(source)),
        key=key,
        class_names=None if class_names is None else _read_class_names(class_names),
        shortcut_padding=shortcut_padding,  # type: ignore[arg-type]  # checked there
        backend=backend,
        device=device,
        **fields(settings, model=model),
    )
    if run.status != "imported":
        raise UsageError(
            f"{source} is a run that was trained: use it directly, such as `resnetlab predict {shlex.quote(source)} "
            "IMAGE`."
        )
    record = run.folder.read_json("import.json")
    if as_json:
        print_json({"run": str(run.path), "model": run.info.model, **record})
    else:
        _print_import(run, record)


def _print_import(run: Run, record: dict[str, Any]) -> None:
    recipe, check = run.recipe, record["check"]
    print(
        f"{run.info.model}, {len(run.class_names)} classes, from {record['arrays']} arrays as {record['family']} names "
        "them"
    )
    print(
        f"images      {recipe.image_size}x{recipe.image_size}, the middle of {recipe.pack_size}, {recipe.interpolation}"
        + (f"; assumed, not stated by the source: {', '.join(record['assumed'])}" if record["assumed"] else "")
    )
    if record["note"]:
        print(f"note        {record['note']}")
    print(f"licence     {record['licence'] or 'not stated by the source: see where the weights come from'}")
    if check["against"]:
        print(f"checked     logits differ from those of {check['against']} by {check['difference']:.1e} of their scale")
    else:
        print(f"unchecked   {check['why']}")
    print(f"run folder  {run.path}")


@functools.wraps(import_weights)
def port(*arguments: Any, **options: Any) -> None:
    print("`resnetlab port` is now called `resnetlab import`.", file=sys.stderr)
    import_weights(*arguments, **options)


def fields(settings: list[str] | None, **options: Any) -> dict[str, Any]:
    """Recipe fields from --set and from the options that are shorthands for a field."""
    from resnetlab.recipes import parse_settings, require_known_keys

    changes = parse_settings(settings or [])
    require_known_keys(changes)
    given = {key: value for key, value in options.items() if value is not None}
    if both := sorted(set(changes) & set(given)):
        raise UsageError(f"Received both --{both[0].replace('_', '-')} and --set {both[0]}=: give one of them.")
    return given | changes


def _read_class_names(path: Path) -> list[str]:
    try:
        text = unicodedata.normalize("NFC", path.read_text("utf-8-sig"))  # as names of folders are
    except (OSError, ValueError) as error:
        raise UsageError(f"--class-names {path} cannot be read: {error}.") from None
    if names := [line.strip() for line in text.splitlines() if line.strip()]:
        return names
    raise UsageError(f"--class-names {path} is empty; expected a name on each line.")
