"""Commands that tell what there is: `resnetlab models`, `audit`, `doctor` and `compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from resnetlab.cli.options import Data, Json, Verbose
from resnetlab.cli.shared import counting, listed, open_data, recipe_for


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the stages of this one.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the architectures; with NAME, its stages with their shapes."""
    from resnetlab.models import VARIANTS, architecture, summarize

    rows = [architecture(name)] if name else list(VARIANTS.values())
    facts: list[dict[str, Any]] = [
        {
            "name": arch.name,
            "parameters": summarize(arch).parameters_and_statistics
            if arch.counts_statistics
            else summarize(arch).parameters,
            "multiply_adds": summarize(arch).multiply_adds,
            "size": arch.reference_size,
            "depth": summarize(arch).depth,
            "paper": arch.paper,
        }
        for arch in rows
    ]
    if name:
        facts[0]["stages"] = [
            {"name": stage, "blocks": blocks, "shape": [side, side, channels]}
            for stage, blocks, side, channels in summarize(rows[0]).stages
        ]
    if as_json:
        print(json.dumps(facts[0] if name else facts, indent=2))
        return
    if not name:
        print(f"{'name':18} {'parameters':>12} {'multiply-adds':>14}  {'at':>4}  {'depth':>5}  paper")
    for row in facts:
        billions = f"{row['multiply_adds'] / 1e9:.3f} G"
        text = f"{row['parameters']:12,} {billions:>14}  {row['size']:4}  {row['depth']:5}  {row['paper']}"
        if not name:
            print(f"{row['name']:18} {text}")
            continue
        print(f"{row['name']}  ({row['paper']})")
        print(f"{row['parameters']:,} parameters for {rows[0].num_classes} classes, depth {row['depth']}")
        print(f"{billions} multiply-adds at {row['size']}x{row['size']}\n")
        print(f"{'end point':10} {'blocks':>6}  shape (height, width, channels)")
        for stage, blocks, side, channels in summarize(rows[0]).stages:
            print(f"{stage:10} {'' if stage == 'stem' else blocks:>6}  {side} x {side} x {channels}")
        print(f"{'head':10} {'':6}  {rows[0].num_classes} logits")


def audit(data: Data, as_json: Json = False, verbose: Verbose = False) -> None:
    """Decode every image of a data set: what can be used, what is set aside and why, what occurs twice."""
    from resnetlab.data.audit import audit as examine
    from resnetlab.data.sources import resolve

    source = resolve(data)
    with counting("decoding", quiet=as_json) as progress:
        found = examine(source, progress=progress)
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else found.summary())


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Check what training needs: driver, CUDA, cuDNN, frameworks, processor, memory. Exit code 0 if it can run."""
    from rich.console import Console

    from resnetlab import doctor as physician

    report = physician.examine()  # before anything is configured: the user's settings are judged, not ours
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        Console().print(physician.render(report))
    sys.exit(report.exit_code)


def compare(
    data: Data = "digits",
    model: Annotated[str | None, typer.Option(help="A name from `resnetlab models`.", show_default="recipe's")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name or file.", show_default="the data's")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")
    ] = None,
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
    from resnetlab.compare import compare as comparison

    chosen = recipe_for(data, recipe, model, settings)
    source, pack = open_data(data, chosen, quiet=as_json, allow_losses=True)
    comparison.run(
        data,
        chosen,
        images=len(pack.indices("train")),
        source_name=source.name,
        devices=listed(devices),
        backends=listed(backends),
        batch_sizes=listed(batch_sizes, int),
        repeats=repeats,
        budget=budget,
        output=output,
        as_json=as_json,
    )
