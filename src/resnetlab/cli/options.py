"""What several commands have in common on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def _be_verbose(verbose: bool) -> None:
    if verbose:
        os.environ["RESNETLAB_VERBOSE"] = "1"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"


Data = Annotated[str, typer.Argument(metavar="DATA", help="animals10, cifar10, digits, or a folder of class folders.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `resnetlab train`.")]
Backend = Annotated[str | None, typer.Option(help="tensorflow, jax or torch.", show_default="the first installed")]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
AllowLosses = Annotated[
    bool, typer.Option("--allow-losses", help="Go on where a class loses most of its images (see `resnetlab audit`).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Show the backend's log, and tracebacks.", callback=_be_verbose, is_eager=True),
]
