"""What several commands have in common on the command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from resnetlab.progress import TerminalProgress


def _be_verbose(verbose: bool) -> None:
    if verbose:
        os.environ["RESNETLAB_VERBOSE"] = "1"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"


DATA_HELP = (
    "A folder with a folder of images for each class; or animals10, cifar10, digits; or the TARGET of `resnetlab pack`."
)
Data = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
OptionalData = Annotated[str | None, typer.Argument(metavar="DATA", help=DATA_HELP)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `resnetlab train` or `import`.")]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="An architecture of `resnetlab models`; default: the recipe's.")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A recipe of `resnetlab recipes`, or a .toml or .json file; default: photos for a folder, otherwise the "
        "data set's own.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: see `resnetlab recipes base`."),
]
Backend = Annotated[
    str | None, typer.Option(metavar="NAME", help="tensorflow, jax or torch; default: the first installed.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or gpu.")]
AllowLosses = Annotated[
    bool, typer.Option("--allow-losses", help="Continue where most images of a class are unusable (`resnetlab audit`).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Show the backend's log, and tracebacks.", callback=_be_verbose, is_eager=True),
]

# Of `train`.
Epochs = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Passes over the images; may be raised with --resume.")
]
BatchSize = Annotated[int | None, typer.Option(metavar="N", min=1, help="Images per training step.")]
Accumulate = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Compute each batch in N parts, for less memory; auto: as few as fit the GPU."),
]
ImageSize = Annotated[int | None, typer.Option(metavar="N", help="Side of the images in pixels.")]
LearningRate = Annotated[float | None, typer.Option(metavar="RATE", help="The peak learning rate.")]
Precision = Annotated[
    str | None, typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16 (with loss scaling).")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of initial weights, split, order and augmentation.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|SOURCE",
        help="Fine-tune: initial weights of a run, or of a SOURCE of `resnetlab import`; default: random.",
    ),
]
NewRun = Annotated[
    Path | None, typer.Option("--run", metavar="FOLDER", help="Run folder; default: runs/DATA-MODEL-TIME.")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN", help="Resume an interrupted run, or a finished one with more --epochs; latest: the newest run."
    ),
]
ForceResume = Annotated[
    bool, typer.Option("--force-resume", help="Resume even if recipe.json or the images have changed.")
]
CheckpointEvery = Annotated[
    str, typer.Option(metavar="TIME", help="How often a checkpoint is written: 5m, 90s, or a number of steps.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Deterministic kernels only, for bit-identical runs on a GPU too.")
]
Devices = Annotated[str, typer.Option(metavar="N", help="GPUs that share each batch, or all; not on PyTorch.")]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Address of process 0, where several train together; auto: from Slurm or Cloud TPU.",
    ),
]
NumProcesses = Annotated[int | None, typer.Option(metavar="N", help="How many processes train together.")]
ProcessId = Annotated[int | None, typer.Option(metavar="I", help="The number of this process, from 0.")]
Log = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Log to tensorboard, wandb, mlflow or csv; may be repeated.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be trained and how long it takes, and stop.")]


def terminal(*, as_json: bool, messages: bool = True) -> TerminalProgress:
    """Progress on stdout, or on stderr where stdout is for JSON, or (not `messages`) for a command's own lines."""
    from rich.console import Console

    from resnetlab.progress import TerminalProgress

    return TerminalProgress(Console(stderr=as_json or not messages))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Valid JSON in every terminal: where it is not UTF-8, other characters are escaped."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").startswith("utf")
    print(json.dumps(value, indent=indent, ensure_ascii=not utf8))
