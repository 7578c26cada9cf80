"""`resnetlab import`, and the weights that `resnetlab train --weights` begins with."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab import environment
from resnetlab.cli.options import Backend, Device, Json, Verbose
from resnetlab.cli.shared import start
from resnetlab.errors import ResnetlabError, UsageError, unknown

if TYPE_CHECKING:
    import keras

    from resnetlab.recipes import Recipe
    from resnetlab.run import Run


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
    """Make a run of other people's weights: to predict, evaluate, export, and train on from."""
    from resnetlab.recipes import INPUT_KEYS, parse_settings

    if shortcut_padding not in (None, "both", "end"):
        raise unknown("shortcut padding", str(shortcut_padding), ("both", "end"))
    names = None
    if class_names is not None:
        try:
            names = tuple(line.strip() for line in class_names.read_text("utf-8").splitlines() if line.strip())
        except (OSError, ValueError) as error:
            raise UsageError(f"--class-names {class_names} cannot be read: {error}.") from None
    changes = parse_settings(settings or [])
    if strange := set(changes) - set(INPUT_KEYS):
        raise UsageError(f"Received --set {', '.join(sorted(strange))}; expected {', '.join(INPUT_KEYS)}.")
    run_folder = run_folder or Path("runs") / _name_of(source)
    run = _ported(
        source,
        run_folder,
        key=key,
        model=model,
        settings=changes,
        class_names=names,
        shortcut_padding=shortcut_padding,
        backend=backend,
        device=device,
    )

    told, facts, recipe = run.read_json("port.json"), run.facts(), run.recipe()
    if as_json:
        print(json.dumps({"run": str(run.path), "model": facts["model"], **told}, indent=2, ensure_ascii=False))
        return
    check = told["check"]
    classes = f"{len(facts['class_names'])} classes"
    print(f"{facts['model']}, {classes}, from {told['arrays']} arrays as {told['family']} names them")
    print(
        f"images      {recipe.image_size}x{recipe.image_size}, the middle of {recipe.pack_size}, {recipe.interpolation}"
        + (f"; assumed, for the source does not say: {', '.join(told['assumed'])}" if told["assumed"] else "")
    )
    if told["note"]:
        print(f"note        {told['note']}")
    print(f"licence     {told['licence'] or 'not stated by the source: see where the weights come from'}")
    if check["against"]:
        print(f"checked     logits differ from those of {check['against']} by {check['difference']:.1e} of their scale")
    else:
        print(f"unchecked   {check['why']}")
    print(f"run folder  {run.path}")


@functools.wraps(import_weights)
def port(*arguments: Any, **options: Any) -> None:
    print("`resnetlab port` is now called `resnetlab import`.", file=sys.stderr)
    import_weights(*arguments, **options)


def _ported(
    source: str,
    folder: Path,
    *,
    key: str | None = None,
    shortcut_padding: Any = None,
    new_head: bool = False,
    model: str | None = None,
    settings: dict[str, object] | None = None,
    class_names: tuple[str, ...] | None = None,
    backend: str | None,
    device: str,
) -> Run:
    from resnetlab.models.checkpoints import read
    from resnetlab.run import Run

    Run.require_vacant(folder)
    environment.configure(backend=backend, device=device)  # keras.applications' download imports Keras
    checkpoint = read(source, key=key)  # and a .pth file PyTorch, which must come before TensorFlow
    start(backend, device)
    from resnetlab.models.porting import port_to_run

    return port_to_run(
        checkpoint,
        folder,
        model=model,
        settings=settings,
        class_names=class_names,
        shortcut_padding=shortcut_padding,
        new_head=new_head,
    )


def given_weights(spec: str, *, backend: str | None, device: str) -> Run:
    """The run of `--weights`: a run folder, or what `resnetlab import` would make of it, kept in the cache."""
    from resnetlab.data.pack import default_cache_dir
    from resnetlab.run import Run

    path = Path(spec).expanduser()
    if (path / "run.json").is_file():
        return Run.open(path)
    stats = [
        (file.name, file.stat()) for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if path.exists()
    ]
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]  # other weights there are another port
    key = f"{path.resolve()} {seen}" if stats else spec
    kept = default_cache_dir() / "ported" / f"{_name_of(spec)}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if kept.is_dir():
        return Run.open(kept)
    try:
        return _ported(spec, kept, new_head=True, backend=backend, device=device)
    except ResnetlabError:
        if kept.is_dir():  # another process has just made the same
            return Run.open(kept)
        raise


def what_weights_fix(run: Run) -> dict[str, Any]:
    """What of a recipe must be as it was when the weights were trained, or is best so."""
    from resnetlab.recipes import INPUT_KEYS

    recipe = run.recipe()
    return {key: getattr(recipe, key) for key in ("model", "eval_size", *INPUT_KEYS)}


def network_from(run: Run, recipe: Recipe, class_names: tuple[str, ...]) -> tuple[keras.Model, bool]:
    """A recipe's network with the weights of a run, and whether its head has them too: it knows these classes already.

    What does not fit is told here, before there is a run folder.
    """
    from resnetlab.inference.predictor import Predictor
    from resnetlab.training.fit import network_for
    from resnetlab.training.transfer import freeze, load_backbone

    trained = Predictor(run)
    with_head = trained.class_names == class_names
    network = network_for(recipe, len(class_names))
    load_backbone(network, trained.network, with_head=with_head)
    freeze(network, recipe, 0, 1)
    return network, with_head


def _name_of(source: str) -> str:
    path = Path(source).expanduser()
    name = path.stem if path.is_file() else path.resolve().name
    return re.sub(r"[^\w.-]+", "-", name)
