"""The command line: parse, delegate, print. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab import environment, results
from resnetlab.errors import ResnetlabError, UsageError

if TYPE_CHECKING:
    from resnetlab.data.pack import Pack
    from resnetlab.data.sources import Source
    from resnetlab.inference.predictor import Predictor
    from resnetlab.recipes import Recipe
    from resnetlab.run import Run

app = typer.Typer(
    name="resnetlab",
    help="ResNets from scratch in Keras 3: train, evaluate, predict, and compare CPU with GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _be_verbose(verbose: bool) -> None:
    if verbose:
        os.environ["RESNETLAB_VERBOSE"] = "1"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"


Data = Annotated[str, typer.Argument(metavar="DATA", help="animals10, cifar10, digits, or a folder of class folders.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `resnetlab train`.")]
Backend = Annotated[str | None, typer.Option(help="tensorflow, jax or torch.", show_default="the first installed")]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Show the backend's log, and tracebacks.", callback=_be_verbose, is_eager=True),
]


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is shown by its codes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=Data.__metadata__[0].help)] = None,
    model: Annotated[str | None, typer.Option(help="A name from `resnetlab models`.", show_default="recipe's")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="quick, animals, cifar, cifar-quick, imagenet, strikes-back-a3, or a .toml or .json file.",
            show_default="the data's",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")
    ] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Where to put the run.", show_default="runs/DATA-MODEL-TIME")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and augmentation.", show_default="recipe's")
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a residual network, evaluate it on the test images, and keep everything in a run folder."""
    from resnetlab.run import Run

    if resume is not None:
        if recipe or model or settings or run_folder or seed is not None:
            raise UsageError(
                "--resume goes on with the run's own recipe: leave --recipe, --model, --set and --run out."
            )
        run, chosen, source, pack = _reopen(resume, data, quiet=as_json)
        _start(backend or run.read_json("environment.json")["settings"].get("KERAS_BACKEND"), device)
    else:
        if data is None:
            raise UsageError("Missing DATA: animals10, cifar10, digits, or a folder of class folders.")
        chosen = _recipe_for(data, recipe, model, settings)
        chosen = chosen if seed is None else chosen.changed(seed=seed)
        if run_folder:
            Run.require_vacant(run_folder)  # before anything is decoded
        source, pack = _open_data(data, chosen, quiet=as_json)
        _start(backend, device)
        from resnetlab.training.fit import require_validation

        require_validation(chosen, pack)  # before there is a run folder
        run = Run.create(
            run_folder or Run.default_path(source.name, chosen.model),
            recipe=chosen,
            environment=environment.snapshot(),
            facts={
                "data": str(Path(data).resolve()) if Path(data).is_dir() else data,
                "source": source.name,
                "commit": results.commit(),
                "pack": pack.key,
                "class_names": list(pack.class_names),
                "model": chosen.model,
            },
        )
        run.write_split(_split_rows(pack))
        run.write_json("audit.json", pack.audit)

    from rich.console import Console

    from resnetlab.training.fit import train as fit
    from resnetlab.training.progress import TerminalProgress

    counts = ", ".join(f"{len(pack.indices(s)):,} {s}" for s in ("train", "validation", "test"))
    console = Console(stderr=as_json, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(f"{chosen.model} on {source.name}: {len(pack.class_names)} classes, {counts} images")
    console.print(f"run folder {run.path}")
    with TerminalProgress(console) as progress:
        status = fit(pack, chosen, run, progress=progress, resume=resume is not None)
    if status == "interrupted":
        sys.exit(130)
    if len(pack.indices("test")) or len(pack.indices("validation")):
        _evaluate_run(run, pack, as_json=as_json, console=console)
    else:
        console.print("No test or validation images: nothing is evaluated. Try `resnetlab evaluate RUN DATA`.")
    console.print(f"run folder {run.path}")


@app.command()
def evaluate(
    run_folder: RunFolder,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Other data of the same classes.", show_default="the run's own")
    ] = None,
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
        run, _, _, pack = _reopen(run_folder, None, quiet=as_json)
        _start(backend, device)
        _evaluate_run(run, pack, as_json=as_json, console=console)
    else:
        run = Run.open(run_folder)
        _start(backend, device)
        _evaluate_elsewhere(run, data, as_json=as_json, console=console)


@app.command()
def predict(
    run_folder: RunFolder,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted globs.")
    ] = None,
    held_out: Annotated[
        int, typer.Option(help="Predict this many of the run's own test images, and show their true classes.", min=0)
    ] = 0,
    top: Annotated[int, typer.Option(help="Classes to show for each image.", min=1)] = 3,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in images. A file that cannot be read is reported, and the rest go on."""
    from resnetlab.run import Run

    run = Run.open(run_folder)
    if bool(images) == bool(held_out):
        raise UsageError("Give either images, folders or globs to predict, or --held-out N.")
    if held_out:
        _predict_held_out(run, held_out, top=top, as_json=as_json, backend=backend, device=device)
        return

    _start(backend, device)
    from resnetlab.inference.predictor import Predictor, expand

    paths = expand(images or [])
    width = max(len(str(path)) for path in paths)
    problems = 0
    for prediction in Predictor(run).predict(paths, top=top):
        problems += prediction.problem is not None
        if as_json:
            print(json.dumps(prediction.to_json(), ensure_ascii=False))
        elif prediction.problem:
            print(f"{prediction.path:{width}}  cannot be used: {prediction.problem}")
        else:
            print(f"{prediction.path:{width}}  {_ranking(prediction.classes)}")
    if problems:
        raise ResnetlabError(f"{problems} of {len(paths)} files could not be used; the others are above.")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the stages of this one.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the architectures; with NAME, its stages with their shapes."""
    from resnetlab.models.architectures import ARCHITECTURES, architecture

    rows = [architecture(name)] if name else list(ARCHITECTURES.values())
    facts: list[dict[str, Any]] = [
        {
            "name": arch.name,
            "parameters": arch.parameters(statistics=arch.counts_statistics),
            "multiply_adds": arch.multiply_adds(),
            "size": arch.reference_size,
            "depth": arch.depth,
            "paper": arch.paper,
        }
        for arch in rows
    ]
    if name:
        facts[0]["stages"] = [
            {"name": stage, "blocks": blocks, "shape": [side, side, channels]}
            for stage, blocks, side, channels in rows[0].stages()
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
        for stage, blocks, side, channels in rows[0].stages():
            print(f"{stage:10} {'' if stage == 'stem' else blocks:>6}  {side} x {side} x {channels}")
        print(f"{'head':10} {'':6}  {rows[0].num_classes} logits")


@app.command()
def audit(data: Data, as_json: Json = False, verbose: Verbose = False) -> None:
    """Decode every image of a data set: what can be used, what is set aside and why, what occurs twice."""
    from resnetlab.data.audit import audit as examine
    from resnetlab.data.sources import resolve

    source = resolve(data)
    with _counting("decoding", quiet=as_json) as progress:
        found = examine(source, progress=progress)
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else found.summary())


@app.command()
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


@app.command()
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

    chosen = _recipe_for(data, recipe, model, settings)
    source, pack = _open_data(data, chosen, quiet=as_json)
    comparison.run(
        data,
        chosen,
        images=len(pack.indices("train")),
        source_name=source.name,
        devices=_listed(devices),
        backends=_listed(backends),
        batch_sizes=_listed(batch_sizes, int),
        repeats=repeats,
        budget=budget,
        output=output,
        as_json=as_json,
    )


# What several commands share.


def _recipe_for(data: str, recipe: str | None, model: str | None, settings: list[str] | None) -> Recipe:
    """The recipe that was asked for, or the data's own, with its changes."""
    from resnetlab.models import architecture
    from resnetlab.recipes import RECIPES
    from resnetlab.recipes import recipe as find_recipe

    defaults = {"digits": "quick", "cifar10": "cifar-quick"}
    chosen = find_recipe(recipe) if recipe else RECIPES[defaults.get(data, "animals")]
    chosen = chosen.changed(**({"model": model} if model else {})).with_settings(settings or [])
    architecture(chosen.model)  # an unknown name is told before anything is decoded
    return chosen


def _listed(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    """The items of a comma-separated option."""
    try:
        return None if text is None else [kind(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UsageError(f"Received {text!r}, expected whole numbers separated by commas, such as 8,32,128.") from None


def _start(backend: str | None, device: str) -> None:
    """Settle backend and device, and check that the device is there."""
    environment.start(backend=backend, device=device)
    if device == "gpu":
        from resnetlab import kernels

        if not kernels.gpus():
            from resnetlab.doctor import why_no_gpu

            raise ResnetlabError(f"--device gpu: {kernels.BACKEND} sees no GPU. {why_no_gpu()} See `resnetlab doctor`.")


def _open_data(spec: str, recipe: Recipe, *, quiet: bool) -> tuple[Source, Pack]:
    """The data's packed images, made now or reused."""
    from resnetlab.data.pack import default_cache_dir, pack
    from resnetlab.data.sources import resolve

    source = resolve(spec)
    with _counting("decoding", quiet=quiet) as progress:
        packed = pack(
            source,
            size=recipe.pack_size,
            interpolation=recipe.interpolation,
            cache_dir=default_cache_dir(),
            validation=recipe.validation,
            test=recipe.test,
            seed=recipe.seed,
            progress=progress,
        )
    set_aside = len(packed.audit["set_aside"])
    if set_aside and not quiet:
        print(f"{set_aside} of {packed.audit['found']} images are set aside: see `resnetlab audit {spec}`")
    return source, packed


def _reopen(folder: Path, data: str | None, *, quiet: bool) -> tuple[Run, Recipe, Source, Pack]:
    """A run with its data, which must be what it was when the run began."""
    from resnetlab.run import Run

    run = Run.open(folder)
    recipe, facts = run.recipe(), run.facts()
    source, pack = _open_data(data or facts["data"], recipe, quiet=quiet)
    if run.split() != {digest: subset for _, _, subset, digest in _split_rows(pack)}:
        raise ResnetlabError(
            f"The images of {source.location} are not those that {folder} was trained on: files were added, removed or "
            "changed. Restore them, or evaluate on them as other data: `resnetlab evaluate RUN DATA`."
        )
    return run, recipe, source, pack


def _split_rows(pack: Pack) -> list[tuple[str, str, str, str]]:
    return [
        (name, pack.class_names[label], str(subset), digest[:16])
        for name, label, subset, digest in zip(pack.names, pack.labels, pack.subset, pack.hashes, strict=True)
    ]


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


def _evaluate_elsewhere(run: Run, spec: str, *, as_json: bool, console: Any) -> None:
    """Evaluate on other data, without the images that the run was trained on."""
    import numpy as np

    from resnetlab.evaluation.metrics import evaluate_logits
    from resnetlab.inference.predictor import Predictor

    predictor = Predictor(run)
    source, pack = _open_data(spec, predictor.recipe, quiet=as_json)
    strange = sorted(set(pack.class_names) - set(predictor.class_names))
    if strange:
        raise UsageError(
            f"{source.location} has classes that the run does not know: {', '.join(strange[:5])}. "
            f"Expected some of: {', '.join(predictor.class_names[:20])}."
        )
    seen = {digest for digest, subset in run.split().items() if subset == "train"}
    kept = np.array([i for i, digest in enumerate(pack.hashes) if digest[:16] not in seen], int)
    own_test = np.intersect1d(kept, pack.indices("test")) if any(s.subset for s in source.samples) else kept
    kept = own_test if len(own_test) else kept
    if left_out := len(pack.labels) - len(kept):
        console.print(f"{left_out} of {len(pack.labels)} images left out: trained on, or not of the data's test part")
    if not len(kept):
        raise ResnetlabError(
            f"The run was trained on every image of {source.location}: nothing is left to evaluate on."
        )
    place = np.array([predictor.class_names.index(name) for name in pack.class_names])
    found = evaluate_logits(predictor.logits(pack.images, kept), place[pack.labels[kept]], predictor.class_names)
    if as_json:
        print(json.dumps({"run": str(run.path), "data": spec, **found.to_json()}, indent=2, ensure_ascii=False))
    else:
        console.print(found.summary(), markup=False)


def _predict_held_out(run: Run, count: int, *, top: int, as_json: bool, backend: str | None, device: str) -> None:
    """Predict `count` of the run's own test images."""
    import numpy as np

    _, _, _, pack = _reopen(run.path, None, quiet=as_json)
    _start(backend, device)
    from resnetlab.inference.predictor import Predictor

    predictor: Predictor = Predictor(run)
    indices = pack.indices("test")
    if not len(indices):
        raise ResnetlabError("The run has no test images to predict.")
    chosen = np.random.default_rng(0).permutation(indices)[:count]
    for i, classes in zip(chosen, predictor.rank(pack.images[chosen], top=top), strict=True):
        truth = pack.class_names[pack.labels[i]]
        if as_json:
            record = {
                "path": pack.names[i],
                "true": truth,
                "classes": [{"class": c, "probability": p} for c, p in classes],
            }
            print(json.dumps(record, ensure_ascii=False))
        else:
            mark = "right" if classes[0][0] == truth else "wrong"
            print(f"{pack.names[i]:30} is {truth:12} {mark:6} {_ranking(classes)}")


def _ranking(classes: tuple[tuple[str, float], ...]) -> str:
    return "  ".join(f"{name} {probability:.1%}" for name, probability in classes)


def _savez(path: Path, **arrays: Any) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


class _counting:
    """A bar for work that counts `(done, total)`; it appears on stderr, and only in a terminal."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self.what, self.quiet = what, quiet

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn(self.what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=self.quiet or not console.is_terminal)
        task = self.bar.add_task(self.what, total=None)
        self.bar.start()
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


if __name__ == "__main__":
    main()
