"""`resnetlab models`, `audit`, `doctor` and `compare`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.options import Data, Json, Model, Recipe, Settings, Verbose, print_json, terminal
from resnetlab.cli.training import fields
from resnetlab.errors import UsageError

if TYPE_CHECKING:
    from resnetlab.tasks import Variant


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the stages of this one.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the architectures; with NAME, its stages with their shapes."""
    from resnetlab import tasks

    found = tasks.variants(name)
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


def audit(data: Data, as_json: Json = False, verbose: Verbose = False) -> None:
    """Decode every image of a data set: what can be used, what is set aside and why, what occurs twice."""
    from resnetlab.data.audit import audit as examine
    from resnetlab.data.sources import resolve

    progress = terminal(as_json=as_json)
    found = examine(resolve(data), progress=lambda done, total: progress.count("decoding", done, total))
    if as_json:
        print_json(found.to_json())
    else:
        print(found.summary())


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Check what training needs: driver, CUDA, cuDNN, frameworks, processor, memory. Exit code 0 if it can run."""
    from rich.console import Console

    from resnetlab import doctor as physician

    report = physician.examine()  # before anything is configured: it is about the user's settings, not ours
    if as_json:
        print_json(report.to_json())
    else:
        Console().print(physician.render(report))
    sys.exit(report.exit_code)


def compare(
    data: Data = "digits",
    model: Model = None,
    recipe: Recipe = None,
    settings: Settings = None,
    devices: Annotated[str | None, typer.Option(help="cpu, gpu, or cpu,gpu.", show_default="all there are")] = None,
    backends: Annotated[str | None, typer.Option(help="Of tensorflow,jax,torch.", show_default="all installed")] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Such as 8,32,128.", show_default="around the recipe's")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Of each measurement.", min=1)] = 3,
    budget: Annotated[float, typer.Option(help="Seconds for each measurement of a rate.", min=0.1)] = 2.0,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the table, chart and JSON.", show_default="runs/compare-TIME")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure CPU against GPU on your data, in one run: how long an epoch takes, from which batch size, and why."""
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


def _listed(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    """The items of a comma-separated option."""
    try:
        return None if text is None else [kind(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UsageError(f"Received {text!r}, expected whole numbers separated by commas, such as 8,32,128.") from None
