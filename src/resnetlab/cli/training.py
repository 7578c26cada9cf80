"""`resnetlab train` and `resnetlab evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab import environment, results
from resnetlab.cli.options import AllowLosses, Backend, Data, Device, Json, RunFolder, Verbose
from resnetlab.cli.resume import check_resumable, extended
from resnetlab.cli.shared import open_data, recipe_for, reopen, split_rows, start
from resnetlab.cli.weights import given_weights, network_from, what_weights_fix
from resnetlab.errors import ResnetlabError, UsageError

if TYPE_CHECKING:
    from resnetlab.data.pack import Pack
    from resnetlab.recipes import Recipe
    from resnetlab.run import Run


def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=Data.__metadata__[0].help)] = None,
    model: Annotated[str | None, typer.Option(help="A name from `resnetlab models`.", show_default="recipe's")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="quick, animals, cifar, cifar-quick, finetune, imagenet, strikes-back-a3, or a .toml or .json file.",
            show_default="the data's",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|SOURCE",
            help="Begin with the weights of a run, or of a SOURCE of `resnetlab import`; recipe `finetune`.",
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
    from resnetlab.run import Run

    if epochs is not None:
        if any(setting.partition("=")[0].strip() == "epochs" for setting in settings or []):
            raise UsageError("Received both --epochs and --set epochs=: give one of them.")
        settings = [*(settings or []), f"epochs={epochs}"]
    origin: Run | None = None  # of the weights to begin with
    notes: list[str] = []
    network, with_head = None, False
    if resume is not None:
        if recipe or model or weights or run_folder or seed is not None:
            raise UsageError(
                "--resume goes on with the run's own recipe: leave --recipe, --model, --weights, --run and --seed out. "
                "To train otherwise from its weights: `resnetlab train DATA --weights RUN`."
            )
        check_resumable(resume, settings or [])
        run, chosen, source, pack = reopen(resume, data, quiet=as_json)
        chosen, notes = extended(run, chosen, pack, settings or [])
        before = run.read_json("environment.json")["settings"].get("KERAS_BACKEND")
        used = start(backend or before, device, precision=chosen.precision)
    else:
        if data is None:
            raise UsageError("Missing DATA: animals10, cifar10, digits, or a folder of class folders.")
        if run_folder:
            Run.require_vacant(run_folder)  # before anything is decoded
        if weights is None:
            chosen = recipe_for(data, recipe, model, settings)
        else:
            origin = given_weights(weights, backend=backend, device=device)
            chosen = recipe_for(data, recipe or "finetune", model, settings, fixed=what_weights_fix(origin))
        chosen = chosen if seed is None else chosen.changed(seed=seed)
        inherited = {} if origin is None else origin.history()
        source, pack = open_data(data, chosen, quiet=as_json, inherited=inherited, allow_losses=allow_losses)
        if origin is not None:
            notes = _inheritance(origin, inherited, chosen, pack)
        used = start(backend, device, precision=chosen.precision)
        from resnetlab.training.fit import require_validation
        from resnetlab.training.transfer import require_weights

        require_validation(chosen, pack)  # before there is a run folder
        if origin is None:
            require_weights(chosen)
        else:
            network, with_head = network_from(origin, chosen, pack.class_names)
        run = Run.create(
            run_folder or Run.new_folder(source.name, chosen.model),
            recipe=chosen,
            environment=environment.snapshot(),
            facts={
                "data": str(Path(data).resolve()) if Path(data).is_dir() else data,
                "source": source.name,
                "commit": results.commit(),
                "pack": pack.key,
                "class_names": list(pack.class_names),
                "model": chosen.model,
                "allow_losses": allow_losses,
                "weights": None if origin is None else str(origin.path.resolve()),
            },
        )
        if origin is not None:
            run.write_ancestors(origin)
        run.write_split(split_rows(pack))
        run.write_json("audit.json", pack.audit)

    from rich.console import Console

    from resnetlab.training.fit import train as fit
    from resnetlab.training.progress import TerminalProgress

    run.update(**used)
    counts = ", ".join(f"{len(pack.indices(s)):,} {s}" for s in ("train", "validation", "test"))
    console = Console(stderr=as_json, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(f"{chosen.model} on {source.name}: {len(pack.class_names)} classes, {counts} images")
    console.print(f"on the {used['device'].upper()} ({used['device_name']}), {used['backend']}, {chosen.precision}")
    console.print(f"run folder {run.path}")
    if origin is not None:
        console.print(
            f"begins with the weights of {origin.path}, {'and its head' if with_head else 'under a new head'}"
        )
    for note in notes:
        console.print(note)
    with TerminalProgress(console) as progress:
        status = fit(pack, chosen, run, progress=progress, resume=resume is not None, network=network)
    if status == "interrupted":
        sys.exit(130)
    if len(pack.indices("test")) or len(pack.indices("validation")):
        _evaluate_run(run, pack, as_json=as_json, console=console)
    else:
        console.print("No test or validation images: nothing is evaluated. Try `resnetlab evaluate RUN DATA`.")
    console.print(f"run folder {run.path}")


def _inheritance(origin: Run, inherited: dict[str, str], recipe: Recipe, pack: Pack) -> list[str]:
    """What the runs that the weights come from mean for the split. Raises where they leave nothing to test on."""
    from resnetlab.data.split import UNUSED
    from resnetlab.run import DIGITS

    notes = []
    if (origin.path / "port.json").is_file() and (note := origin.read_json("port.json").get("note")):
        notes.append(note)
    if origin.has_unknown_origin():
        notes.append(
            "what the imported weights were trained on is not known: images held out here may have been among it"
        )
    before = [inherited.get(digest[:DIGITS]) for digest in pack.hashes]
    if known := sum(subset is not None for subset in before):
        notes.append(
            f"{known:,} images were in the runs that the weights come from, and keep their subset; others are new"
        )
    if unused := len(pack.indices(UNUSED)):
        notes.append(
            f"{unused:,} held-out images of the data are left out: the weights were trained on, or selected by, them"
        )
    if recipe.test and known and not len(pack.indices("test")):
        raise ResnetlabError(
            f"No image is left to test on: the weights of {origin.path} were trained on, or selected by, those that "
            f"would be ({before.count('train'):,} of {len(before):,} images trained on). Add images, begin with other "
            "weights, or do without a test with --set test=0."
        )
    return notes


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
    from rich.console import Console

    from resnetlab.run import Run

    console = Console(stderr=as_json, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if data is None:
        run, _, _, pack = reopen(run_folder, None, quiet=as_json)
        start(backend, device)
        _evaluate_run(run, pack, as_json=as_json, console=console)
    else:
        run = Run.open(run_folder)
        start(backend, device)
        _evaluate_elsewhere(run, data, as_json=as_json, console=console, allow_losses=allow_losses)


def _evaluate_run(run: Run, pack: Pack, *, as_json: bool, console: Any) -> None:
    """Evaluate on the run's test images (validation images, said so, where it has none) and draw the pictures."""
    from resnetlab.evaluation.metrics import evaluate_logits
    from resnetlab.inference.predictor import Predictor
    from resnetlab.report import plots

    subset = next((s for s in ("test", "validation") if len(pack.indices(s))), None)
    if subset is None:
        raise ResnetlabError("The run has neither test nor validation images to evaluate on. Give other DATA.")
    indices = pack.indices(subset)
    logits = Predictor(run).logits(pack.images, indices)
    found = evaluate_logits(logits, pack.labels[indices], pack.class_names)
    result = {"subset": subset, **found.to_json()}
    run.write_json("evaluation.json", result)
    run.save("predictions.npz", lambda path: _savez(path, logits=logits, labels=pack.labels[indices], indices=indices))
    if run.metrics():
        plots.curves(run.metrics(), run.path / "curves.png")
    plots.confusion(found.confusion, pack.class_names, run.path / "confusion.png")
    plots.reliability(found.bins, run.path / "reliability.png")
    if as_json:
        print(json.dumps({"run": str(run.path), **result}, indent=2, ensure_ascii=False))
    else:
        console.print(f"\n{subset} images\n{found.summary()}", markup=False)


def _evaluate_elsewhere(run: Run, spec: str, *, as_json: bool, console: Any, allow_losses: bool) -> None:
    """Evaluate on other data, without the images that the run was trained on."""
    import numpy as np

    from resnetlab.evaluation.metrics import evaluate_logits
    from resnetlab.inference.predictor import Predictor
    from resnetlab.run import DIGITS

    predictor = Predictor(run)
    source, pack = open_data(spec, predictor.recipe, quiet=as_json, allow_losses=allow_losses)
    strange = sorted(set(pack.class_names) - set(predictor.class_names))
    if strange:
        raise UsageError(
            f"{source.location} has classes that the run does not know: {', '.join(strange[:5])}. "
            f"Expected some of: {', '.join(predictor.class_names[:20])}."
        )
    history = run.history()
    before = np.array([history.get(digest[:DIGITS], "") for digest in pack.hashes])
    kept = np.flatnonzero(before != "train")
    own_test = np.intersect1d(kept, pack.indices("test")) if any(s.subset for s in source.samples) else kept
    kept = own_test if len(own_test) else kept
    if left_out := len(pack.labels) - len(kept):
        console.print(f"{left_out} of {len(pack.labels)} images left out: trained on, or not of the data's test part")
    if not len(kept):
        raise ResnetlabError(
            f"The run was trained on every image of {source.location}: nothing is left to evaluate on."
        )
    if chose := int((before[kept] == "validation").sum()):
        console.print(f"{chose} of these {len(kept)} images are validation images: the best epoch was chosen by them")
    if run.has_unknown_origin():
        console.print("what the imported weights were trained on is not known: these images may have been among it")
    place = np.array([predictor.class_names.index(name) for name in pack.class_names])
    found = evaluate_logits(predictor.logits(pack.images, kept), place[pack.labels[kept]], predictor.class_names)
    if as_json:
        print(json.dumps({"run": str(run.path), "data": spec, **found.to_json()}, indent=2, ensure_ascii=False))
    else:
        console.print(found.summary(), markup=False)


def _savez(path: Path, **arrays: Any) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
