"""`resnetlab train`, `evaluate` and `import`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.options import (
    AllowLosses,
    Backend,
    Device,
    Json,
    Model,
    OptionalData,
    Recipe,
    RunFolder,
    Settings,
    Verbose,
    print_json,
    terminal,
)
from resnetlab.errors import UsageError

if TYPE_CHECKING:
    from resnetlab.progress import Progress
    from resnetlab.run import Run


def train(
    data: OptionalData = None,
    model: Model = None,
    recipe: Recipe = None,
    settings: Settings = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|SOURCE",
            help="Initial weights: of a run, or of a SOURCE of `resnetlab import`; recipe `finetune`.",
            show_default="random",
        ),
    ] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Where to put the run.", show_default="runs/DATA-MODEL-TIME")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Resume an interrupted run, or a finished one with more --epochs."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Short for --set epochs=; allowed with --resume.", min=1, show_default="recipe's")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and augmentation.", show_default="recipe's")
    ] = None,
    allow_losses: AllowLosses = False,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a residual network, evaluate it on the test images, and keep everything in a run folder."""
    from resnetlab import tasks

    progress = terminal(as_json=as_json)
    run = tasks.train(
        data,
        recipe=recipe,
        weights=weights,
        run=run_folder,
        resume=resume,
        allow_losses=allow_losses,
        backend=backend,
        device=device,
        progress=progress,
        **fields(settings, model=model, epochs=epochs, seed=seed),
    )
    if run.status == "interrupted":
        sys.exit(130)
    if {"test", "validation"} & set(run.folder.split().values()):
        _evaluate(run, progress, as_json=as_json)
    else:
        progress.info("No test or validation images: nothing is evaluated. Try `resnetlab evaluate RUN DATA`.")
    progress.info(f"run folder {run.path}")


def evaluate(
    run_folder: RunFolder,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Other data of the same classes.", show_default="the run's own")
    ] = None,
    allow_losses: AllowLosses = False,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a run on its own test images, or on other data: images that it was trained on are left out."""
    from resnetlab import tasks

    run = tasks.load(run_folder, backend=backend, device=device)
    _evaluate(run, terminal(as_json=as_json), data, allow_losses=allow_losses, as_json=as_json)


def _evaluate(
    run: Run, progress: Progress, data: str | None = None, *, allow_losses: bool = False, as_json: bool
) -> None:
    found = run.evaluate(data, allow_losses=allow_losses, progress=progress)
    if as_json:
        named = {} if data is None else {"data": data}
        print_json({"run": str(run.path), **named, **found.to_json()})
    else:
        progress.info((f"\n{found.subset} images\n" if found.subset else "") + found.summary())


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
        Path | None, typer.Option("--run", help="Where to put the run.", show_default="runs/SOURCE")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A name from `resnetlab models`.", show_default="recognised")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="image_size, crop_pct, interpolation or preprocessing."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Of a file with several sets of weights, the one to take.", show_default="the live weights"),
    ] = None,
    shortcut_padding: Annotated[
        str | None,
        typer.Option(help="Where zero-padded shortcuts have their zeros: both sides, or end.", show_default="usual"),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="A text file with a class name in each line.", show_default="the source's")
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
        run=run_folder or Path("runs") / import_name(source),
        model=model,
        key=key,
        class_names=None if class_names is None else _read_class_names(class_names),
        shortcut_padding=shortcut_padding,  # type: ignore[arg-type]  # checked there
        backend=backend,
        device=device,
        **fields(settings),
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
    """The recipe's fields from --set, and from the options that stand for one."""
    from resnetlab.recipes import parse_settings

    changes = parse_settings(settings or [])
    given = {key: value for key, value in options.items() if value is not None}
    if both := sorted(set(changes) & set(given)):
        raise UsageError(f"Received both --{both[0]} and --set {both[0]}=: give one of them.")
    return given | changes


def _read_class_names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"--class-names {path} cannot be read: {error}.") from None
