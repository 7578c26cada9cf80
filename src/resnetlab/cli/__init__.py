"""The command line: parse, call the public API, print. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import codecs
import io
import os
import sys

import typer

from resnetlab.cli import inference, overview, training
from resnetlab.errors import ResnetlabError

app = typer.Typer(
    name="resnetlab",
    help="ResNets from scratch in Keras 3: train, evaluate, predict, and compare CPU with GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    training.train,
    training.evaluate,
    inference.predict,
    inference.export,
    overview.models,
    overview.audit,
    overview.doctor,
    overview.compare,
):
    app.command()(command)
app.command("import")(training.import_weights)
app.command("port", hidden=True)(training.port)  # its name up to version 0.1


ASCII = str.maketrans("─━│┃┌┐└┘├┤┬┴┼╭╮╰╯╶╴╸╺═║•·…–—−×±≤≥→←≈²°’‘“”█", "--||+++++++++++++----=|*..---x+<>><~2o''\"\"#")


def _as_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: signs of tables as ASCII, and a name that the terminal cannot show by its codes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


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
        print(f"resnetlab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `resnetlab models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a name that is too long, a folder that is not ours to read
        if os.environ.get("RESNETLAB_VERBOSE"):
            raise
        print(f"resnetlab: {error}. See where with --verbose.", file=sys.stderr)
        sys.exit(1)
