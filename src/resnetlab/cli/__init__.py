"""The command line: parse, call the public API, print. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from resnetlab.cli import inference, overview, serving, training
from resnetlab.errors import ProcessLost, ResnetlabError

app = typer.Typer(
    name="resnetlab",
    help="ResNets from scratch in Keras 3: train, evaluate, predict, and compare CPU with GPU.",
    epilog="Start with: resnetlab train digits, or resnetlab train FOLDER with a folder of images for each class.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # plain text: nothing is cut at 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: tuple[tuple[str, Callable[..., None], str, str], ...] = (
    ("train", training.train, "Train a network on images, and evaluate it.", "train photos --model resnet34"),
    ("evaluate", training.evaluate, "Evaluate a run on test images.", "evaluate runs/photos-resnet18-20260101-120000"),
    ("predict", inference.predict, "Classify images.", "predict RUN holiday/*.jpg --csv predictions.csv"),
    (
        "explain",
        inference.explain,
        "Explain predictions with class activation maps.",
        "explain RUN holiday/*.jpg --method layer-cam",
    ),
    ("export", inference.export, "Export the network to another runtime.", "export RUN --format onnx --precision int8"),
    ("serve", serving.serve, "Serve predictions over HTTP, with a page.", "serve runs/photos"),
    (
        "import",
        training.import_weights,
        "Import weights trained elsewhere.",
        "import resnet18.pth --run runs/r18",
    ),
    ("audit", overview.audit, "Check every image of a data set.", "audit photos"),
    ("pack", overview.pack, "Decode a data set once, and write it in shards.", "pack photos s3://bucket/photos"),
    ("compare", overview.compare, "Measure CPU against GPU on your data.", "compare photos --batch-sizes 8,32,128"),
    ("doctor", overview.doctor, "Check driver, CUDA, frameworks, processor.", "doctor --json"),
    ("models", overview.models, "List the architectures.", "models resnet50"),
    ("recipes", overview.recipes, "List the recipes and their keys.", "recipes photos"),
    (
        "report",
        overview.report,
        "Write an HTML report of one run, or compare several.",
        "report runs/first runs/second",
    ),
    ("runs", overview.runs, "List the runs and their results.", "runs"),
)
for name, command, summary, example in COMMANDS:
    app.command(name, short_help=summary, epilog=f"Example: resnetlab {example}")(command)
app.command("port", hidden=True)(training.port)  # its name up to version 0.1


def _show_version(wanted: bool) -> None:
    if wanted:
        import resnetlab

        print(f"resnetlab {resnetlab.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """ResNets from scratch in Keras 3: train, evaluate, predict, and compare CPU with GPU."""


ASCII = str.maketrans("─━│┃┌┐└┘├┤┬┴┼╭╮╰╯╶╴╸╺═║•·…–—−×±≤≥→←≈²°’‘“”█", "--||+++++++++++++----=|*..---x+<>><~2o''\"\"#")


def _as_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: box-drawing characters become ASCII, other characters backslash escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _print_error(text: str) -> None:
    from resnetlab.progress import terminal_width, wrap

    print(wrap(text, terminal_width(sys.stderr)), file=sys.stderr)


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    codecs.register_error("resnetlab", _as_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="resnetlab")
    try:
        app()
    except ResnetlabError as error:
        if os.environ.get("RESNETLAB_VERBOSE"):
            raise
        _print_error(f"resnetlab: {error}")
        if isinstance(error, ProcessLost):  # JAX would wait for the others at exit, and abort with a stack trace
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `resnetlab models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a name that is too long, a folder that is not ours to read
        if os.environ.get("RESNETLAB_VERBOSE"):
            raise
        _print_error(f"resnetlab: {error}. See where with --verbose.")
        sys.exit(1)
