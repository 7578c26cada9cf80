"""What several commands have in common on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from resnetlab.progress import TerminalProgress


def _be_verbose(verbose: bool) -> None:
    if verbose:
        os.environ["RESNETLAB_VERBOSE"] = "1"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"


Data = Annotated[str, typer.Argument(metavar="DATA", help="animals10, cifar10, digits, or a folder of class folders.")]
OptionalData = Annotated[str | None, typer.Argument(metavar="DATA", help=Data.__metadata__[0].help)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `resnetlab train`.")]
Model = Annotated[str | None, typer.Option(help="A name from `resnetlab models`.", show_default="recipe's")]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="quick, animals, cifar, cifar-quick, finetune, imagenet, strikes-back-a3, or a .toml or .json file.",
        show_default="the data's",
    ),
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")]
Backend = Annotated[str | None, typer.Option(help="tensorflow, jax or torch.", show_default="the first installed")]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
AllowLosses = Annotated[
    bool, typer.Option("--allow-losses", help="Accept a class that loses most of its images (`resnetlab audit`).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Show the backend's log, and tracebacks.", callback=_be_verbose, is_eager=True),
]


def terminal(*, as_json: bool, messages: bool = True) -> TerminalProgress:
    """Progress on stdout, or on stderr where stdout is for JSON, or (not `messages`) for a command's own lines."""
    from rich.console import Console

    from resnetlab.progress import TerminalProgress

    return TerminalProgress(Console(stderr=as_json or not messages))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
