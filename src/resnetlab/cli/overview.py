"""`resnetlab models`, `recipes`, `runs`, `report`, `audit`, `pack`, `doctor` and `compare`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.options import (
    AllowLosses,
    Backend,
    Data,
    Device,
    ImageSize,
    Json,
    Model,
    Recipe,
    Settings,
    Verbose,
    print_json,
    terminal,
)
from resnetlab.cli.training import fields
from resnetlab.errors import UsageError

if TYPE_CHECKING:
    from resnetlab.listing import Variant


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the stages of this one.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the architectures; with NAME, its stages with their shapes."""
    from resnetlab import listing

    found = listing.variants(name)
    if as_json:
        print_json(_to_json(found[0], stages=True) if name else [_to_json(each, stages=False) for each in found])
        return
    if name:
        _print_stages(found[0])
        return
    print(f"{'name':18} {'parameters':>12} {'multiply-adds':>14}  {'at':>4}  {'depth':>5}  paper")
    for each in found:
        billions = f"{each.multiply_adds / 1e9:.3f} G"
        print(f"{each.name:18} {each.parameters:12,} {billions:>14}  {each.image_size:4}  {each.depth:5}  {each.paper}")


def _to_json(variant: Variant, *, stages: bool) -> dict[str, Any]:
    keys = ("name", "parameters", "multiply_adds", "depth", "paper")
    value: dict[str, Any] = {key: getattr(variant, key) for key in keys} | {"size": variant.image_size}
    if stages:
        value["stages"] = [
            {"name": stage, "blocks": blocks, "shape": [side, side, channels]}
            for stage, blocks, side, channels in variant.stages
        ]
    return value


def _print_stages(variant: Variant) -> None:
    print(
        f"{variant.name}  ({variant.paper})\n"
        f"{variant.parameters:,} parameters for {variant.num_classes} classes, depth {variant.depth}\n"
        f"{variant.multiply_adds / 1e9:.3f} G multiply-adds at {variant.image_size}x{variant.image_size}\n\n"
        f"{'end point':10} {'blocks':>6}  shape (height, width, channels)"
    )
    for stage, blocks, side, channels in variant.stages:
        print(f"{stage:10} {'' if stage == 'stem' else blocks:>6}  {side} x {side} x {channels}")
    print(f"{'head':10} {'':6}  {variant.num_classes} logits")


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show every key of this one; base has the defaults.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the recipes; with NAME, each of its keys with value, range, default and meaning."""
    from resnetlab.progress import terminal_width, wrap
    from resnetlab.recipes import BASE, RECIPES, describe_fields, recipe

    width = terminal_width() or 80
    if name is None:
        if as_json:
            print_json({key: value.model_dump(mode="json") for key, value in ({"base": BASE} | RECIPES).items()})
            return
        column = max(map(len, RECIPES))
        for key, value in ({"base": BASE} | RECIPES).items():
            text = value.description or "the default of every key"
            print(wrap(f"{key:{column}} {text}", width, indent=column + 1))
        return
    chosen = BASE if name == BASE.name else recipe(name)
    if as_json:
        print_json(chosen.model_dump(mode="json"))
        return
    about = chosen.description or ("the default of every key" if name == BASE.name else "a recipe file")
    print(wrap(f"{chosen.name}: {about}\n", width))
    print(wrap("A key is changed by --set KEY=VALUE; * marks what differs from the default.\n", width))
    for field in describe_fields(chosen):
        changed = "" if field.value == field.default else f" (default {field.default})"
        print(wrap(f"{'*' if changed else ' '} {field.name:17} {field.value}{changed}", width, indent=4))
        print(wrap(f"    {field.description}; {field.expected}", width, indent=4))


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look for run folders.")] = Path("runs"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the runs below a folder, the newest first: what was trained, for how long, and how good it is."""
    from resnetlab import listing
    from resnetlab.progress import terminal_width, wrap

    found = listing.list_runs(folder)
    if as_json:
        print_json([asdict(each) | {"path": str(each.path)} for each in found])
        return
    if not found:
        print(f"No runs below {folder}. Train one: resnetlab train DATA.")
    for each in found:
        results = [f"{each.epochs} epochs" if each.epochs else "no epochs"]
        results += [f"validation {each.validation_top1:.1%}"] if each.validation_top1 is not None else []
        results += [f"{each.subset} {each.top1:.1%}"] if each.top1 is not None else []
        text = f"    {each.model} on {each.data}, recipe {each.recipe}: {', '.join(results)}"
        print(f"{each.path}  {each.status}  {each.when}")
        print(wrap(text, terminal_width() or 80))


def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run, or several to compare.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; default: report.html in the run folder, or comparison.html here."),
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Write a page about a run, or about several side by side: one HTML file that needs no network."""
    from resnetlab import tasks

    runs = [tasks.load(folder, backend=backend, device=device) for folder in run_folders]
    if len(runs) == 1:
        print(runs[0].report(output))
    else:
        print(tasks.compare_runs(runs, output or Path("comparison.html")))


def audit(
    data: Data,
    recipe: Recipe = None,
    settings: Settings = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Decode every image: what can be used, what is set aside and why, what occurs twice, how it is split."""
    from resnetlab import tasks

    progress = terminal(as_json=as_json)
    found = tasks.audit(data, recipe=recipe, progress=progress, **fields(settings))
    if as_json:
        print_json(found.to_json())
    else:
        progress.info(found.summary())


def pack(
    data: Data,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder, or a URL such as s3://bucket/photos.")],
    recipe: Recipe = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    shard_megabytes: Annotated[int, typer.Option(metavar="N", min=1, help="About the size of a shard.")] = 256,
    allow_losses: AllowLosses = False,
    verbose: Verbose = False,
) -> None:
    """Decode images once, as a recipe needs them, and write them in shards; then: resnetlab train TARGET."""
    from resnetlab import tasks

    tasks.pack(
        data,
        target,
        recipe=recipe,
        shard_megabytes=shard_megabytes,
        allow_losses=allow_losses,
        progress=terminal(as_json=False),
        **fields(settings, image_size=image_size),
    )


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Check what training needs: driver, CUDA, cuDNN, frameworks, processor, memory. Exit code 0 if it can run."""
    from rich.console import Console

    from resnetlab.doctor import examine, render

    report = examine()  # before `configure`, so that it sees the user's settings and not ours
    if as_json:
        print_json(report.to_json())
    else:
        Console().print(render(report))
    sys.exit(report.exit_code)


def compare(
    data: Data = "digits",
    model: Model = None,
    recipe: Recipe = None,
    settings: Settings = None,
    devices: Annotated[str | None, typer.Option(metavar="NAMES", help="cpu, gpu, or cpu,gpu; default: all.")] = None,
    backends: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Any of tensorflow,jax,torch; default: all installed.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Such as 8,32,128; default: around the recipe's.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="Repeats of each measurement.", min=1)] = 3,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds of each measurement.", min=0.1)] = 2.0,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For table, chart and JSON; default: runs/compare-TIME.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure devices, backends and precisions on your data: time of an epoch, what limits it, the fastest options."""
    from resnetlab import tasks

    progress = terminal(as_json=as_json)
    found = tasks.compare(
        data,
        recipe=recipe,
        devices=_listed(devices),
        backends=_listed(backends),
        batch_sizes=_listed(batch_sizes, int),
        repeats=repeats,
        budget=budget,
        output=output,
        progress=progress,
        **fields(settings, model=model),
    )
    if as_json:
        print_json(found.result)
    else:
        progress.info("\n".join([found.table, "", *found.summary, f"\nTable, chart and JSON: {found.path}"]))
    if found.interrupted:
        sys.exit(130)


def _listed(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    """The items of a comma-separated option."""
    try:
        return None if text is None else [kind(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UsageError(f"Received {text!r}, expected whole numbers separated by commas, such as 8,32,128.") from None
