"""The tasks of the public API: train, load, from_pretrained, compare, variants. The command line calls these too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from resnetlab.data.loading import check_inheritance, describe_split, open_data, open_run_data, split_rows
from resnetlab.devices import Started, resolve_precision, start
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import VARIANTS, architecture
from resnetlab.progress import Progress, format_duration, make_progress
from resnetlab.recipes import BASE, INPUT_KEYS, RECIPES, Recipe, RecipeFields
from resnetlab.recipes import recipe as find_recipe
from resnetlab.report import loggers
from resnetlab.run import Run
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.training.interval import Interval
from resnetlab.training.resume import check_resumable, extend
from resnetlab.weights.importing import import_to_cache, import_weights

if TYPE_CHECKING:
    import keras

    from resnetlab.comparison.compare import Comparison
    from resnetlab.data.pack import Pack
    from resnetlab.data.sources import Source
    from resnetlab.data.stream import Stream

PathOrStr = str | PathLike[str]
DEFAULT_RECIPES = {"digits": "quick", "cifar10": "cifar-quick", "animals10": "animals"}  # of a folder: "photos"


@dataclass(frozen=True)
class _Job:
    """A run that is ready to be trained, and the notes to report about it."""

    folder: RunFolder
    recipe: Recipe
    pack: Pack
    started: Started
    network: keras.Model | None = None  # with its initial weights; None for random ones


def train(
    data: PathOrStr | None = None,
    *,
    recipe: PathOrStr | Recipe | None = None,
    weights: PathOrStr | Run | None = None,
    run: PathOrStr | None = None,
    resume: PathOrStr | Run | None = None,
    force_resume: bool = False,
    checkpoint_every: str = "5m",
    deterministic: bool = False,
    log: str | Sequence[str] | None = (),
    allow_losses: bool = False,
    backend: str | None = None,
    device: str = "auto",
    progress: Progress | str | None = "auto",
    **fields: Unpack[RecipeFields],
) -> Run:
    """Train a residual network on images, and keep everything in a run folder.

    In the main thread, the first SIGINT or SIGTERM ends training after the step in progress: the returned run has the
    status "interrupted", and `resume` continues it exactly.

    Args:
        data: a folder of class folders, or "animals10", "cifar10" or "digits". Omit it with `resume`, unless moved.
        recipe: a recipe's name, a .toml or .json file, or a `Recipe`; the default depends on the data.
        weights: initial weights: a run, or a `source` of `from_pretrained`. The default recipe is then "finetune".
        run: folder of the run; by default runs/DATA-MODEL-TIME.
        resume: a run to continue with its own recipe; of its fields, only `epochs` may change. "latest" is the newest
            below runs/.
        force_resume: continue although recipe.json or the images were changed since.
        checkpoint_every: what a killed process loses at most: "5m", "90s", or a number of steps, "500". There is a
            checkpoint after each epoch too.
        deterministic: allow only kernels that give the same result each time, so that two runs are equal to the bit on
            a GPU too. What it costs on this device is measured and reported. A resumed run keeps its own setting.
        log: of "tensorboard", "wandb", "mlflow" and "csv": where epochs, evaluation and plots are logged too. A
            resumed run keeps its own.
        allow_losses: a class may lose most of its images to the audit.
        backend: "tensorflow", "jax" or "torch"; by default the one that runs, $KERAS_BACKEND, or the first installed.
        device: "auto", "cpu" or "gpu".
        progress: "auto" (a bar in a notebook or a terminal), None (only logged), or an object like `Progress`.
        fields: recipe fields to override: `model="resnet18"`, `epochs=20`, `image_size=64`, ...

    Raises:
        UsageError: an unknown name, a value out of range, arguments that exclude each other, a folder in the way.
        ResnetlabError: training diverged (the weights of the best epoch stay); no image is left to test on; the
            backend or the GPU is not there.

    >>> run = rl.train("photos", model="resnet-tiny", image_size=32, batch_size=8, epochs=8, early_stopping=0)
    >>> run.class_names, len(run.history)
    (('cat', 'dog'), 8)
    """
    report = make_progress(progress)
    log = loggers.check_loggers(log)
    every = Interval.parse(checkpoint_every)
    start_on: dict[str, Any] = {"backend": backend, "device": device, "report": report}
    if resume is not None:
        if (recipe, weights, run) != (None, None, None) or log:
            raise UsageError(
                "A resumed run keeps its own recipe, weights, folder and loggers: leave them out. To train "
                "with another recipe from its weights: `resnetlab train DATA --weights RUN`."
            )
        job = _resume(_resumed_folder(resume), data, fields, force=force_resume, **start_on)
    elif force_resume:
        raise UsageError("force_resume is for resumed runs: give resume too.")
    else:
        if run is not None:
            RunFolder.require_empty(Path(run))
        prepared = _prepare(
            data, recipe, weights, fields, allow_losses=allow_losses, deterministic=deterministic, **start_on
        )
        if deterministic:
            _require_determinism(prepared, report)
        job = _create(prepared, str(data), run, log, allow_losses=allow_losses, deterministic=deterministic)
    report.info(f"run folder {job.folder.path}")
    _train(job, report, every, resume=resume is not None, force=force_resume)
    return Run(job.folder, backend=job.started.backend, device=device)


@dataclass(frozen=True)
class TrainingPlan:
    """What `train` would do with the same arguments.

    Attributes:
        recipe: every hyperparameter.
        images: number of images of each subset.
        steps_per_epoch: training steps: images over batch size, rounded.
        images_per_second: measured over some seconds of training.
        seconds: expected duration of all epochs, without validation.
    """

    recipe: Recipe
    images: dict[str, int]
    steps_per_epoch: int
    images_per_second: float
    seconds: float

    @property
    def summary(self) -> str:
        return (
            f"{self.recipe.epochs} epochs of {self.steps_per_epoch:,} steps: about {format_duration(self.seconds)} at "
            f"{self.images_per_second:,.0f} images/s, without validation"
        )


def plan_training(
    data: PathOrStr | None,
    *,
    recipe: PathOrStr | Recipe | None = None,
    weights: PathOrStr | Run | None = None,
    run: PathOrStr | None = None,
    allow_losses: bool = False,
    backend: str | None = None,
    device: str = "auto",
    progress: Progress | str | None = "auto",
    seconds: float = 5.0,
    **fields: Unpack[RecipeFields],
) -> TrainingPlan:
    """Prepare a training run, time some of its steps, and keep nothing.

    Args:
        seconds: for timing.
        others: as in `train`.
    """
    if not seconds > 0:
        raise UsageError(f"Received seconds={seconds}, expected more than 0.")
    report = make_progress(progress)
    if run is not None:
        RunFolder.require_empty(Path(run))
    prepared = _prepare(
        data, recipe, weights, fields, allow_losses=allow_losses, backend=backend, device=device, report=report
    )
    step, stream = _time_step(prepared, seconds)
    return TrainingPlan(
        recipe=prepared.recipe,
        images={subset: len(prepared.pack.indices(subset)) for subset in ("train", "validation", "test")},
        steps_per_epoch=stream.steps_per_epoch,
        images_per_second=prepared.recipe.batch_size / step,
        seconds=step * stream.steps_per_epoch * _epochs_of_the_largest_images(prepared.recipe),
    )


def _time_step(prepared: _Prepared, seconds: float) -> tuple[float, Stream]:
    """Seconds of a training step on the largest images, measured for so long; and the batches."""
    from resnetlab.comparison.timing import FitTimer
    from resnetlab.models.from_recipe import build_network
    from resnetlab.training.trainer import make_stream, make_trainer

    stream = make_stream(prepared.recipe, prepared.pack)
    network = prepared.network or build_network(prepared.recipe, len(prepared.pack.class_names))
    trainer = make_trainer(network, prepared.recipe.changed(progressive=()), stream)
    timer = FitTimer(trainer, prepared.started.device)
    timer.call(stream.batches(0), 1)  # traces and compiles
    one = timer.steps(partial(stream.batches, 0), 1).seconds
    steps = max(1, min(stream.steps_per_epoch, int(seconds / one)))
    return timer.steps(partial(stream.batches, 0), steps).seconds / steps, stream


def _require_determinism(prepared: _Prepared, report: Progress) -> None:
    """Allow only deterministic kernels from now on, and report what they cost."""
    from resnetlab import backend

    if backend.NAME == "jax":
        backend.require_determinism()
        report.info("deterministic kernels; what they cost is not measured on JAX, whose setting is per process")
        return
    before, _ = _time_step(prepared, seconds=2)
    backend.require_determinism()
    after, _ = _time_step(prepared, seconds=2)
    report.info(f"deterministic kernels: a step takes {after / before:.2f} times as long as without")


def _epochs_of_the_largest_images(recipe: Recipe) -> float:
    """The number of epochs, where those of smaller images count in proportion to their pixels."""
    sides = (recipe.training_side(epoch) for epoch in range(1, recipe.epochs + 1))
    return sum((side / recipe.image_size) ** 2 for side in sides)


def load(run: PathOrStr, *, backend: str | None = None, device: str = "auto") -> Run:
    """Open a run folder.

    Args:
        run: folder, made by `train`, `from_pretrained` or the command line.
        backend: "tensorflow", "jax" or "torch"; by default the one that runs, $KERAS_BACKEND, or the first installed.
        device: "auto", "cpu" or "gpu".

    Raises:
        UsageError: no run folder.

    >>> rl.load(run.path).status
    'finished'
    """
    return Run(RunFolder.open(Path(run)), backend=backend, device=device)


def from_pretrained(
    source: PathOrStr,
    *,
    run: PathOrStr | None = None,
    model: str | None = None,
    key: str | None = None,
    class_names: Sequence[str] | None = None,
    shortcut_padding: Literal["both", "end"] | None = None,
    backend: str | None = None,
    device: str = "auto",
    **settings: Any,
) -> Run:
    """Import weights that were trained elsewhere, checked against their own implementation where it is installed.

    Args:
        source: a PyTorch checkpoint, a .safetensors, .h5 or .keras file, a folder with config.json, a name on the
            Hugging Face hub, a network of keras.applications ("ResNet50"), or a run folder.
        run: folder of the run; by default one in the cache, which is reused.
        model: an architecture's name, where the shapes of the weights are ambiguous.
        key: which weights to read from a file with several sets; by default those that are not averaged.
        class_names: one for each logit; by default the source's.
        shortcut_padding: where zero-padded shortcuts add their zero channels: on "both" sides or at the "end"; by
            default the convention of the source's family.
        backend, device: as in `load`.
        settings: image_size, crop_pct, interpolation and preprocessing, where the source does not state them.

    Raises:
        UsageError: no such source; an unknown name; a folder that is not empty.
        ResnetlabError: the source is damaged, cannot be downloaded, or has the weights of no known architecture.

    >>> rl.from_pretrained(run.path).class_names
    ('cat', 'dog')
    """
    path = Path(source).expanduser()
    if (path / "run.json").is_file():
        return load(path, backend=backend, device=device)
    if shortcut_padding not in (None, "both", "end"):
        raise UsageError(f"Received shortcut_padding={shortcut_padding!r}, expected 'both' or 'end'.")
    if others := sorted(set(settings) - set(INPUT_KEYS)):
        raise UsageError(f"Received {', '.join(others)}; expected {', '.join(INPUT_KEYS)}.")
    options: dict[str, Any] = {
        "model": model,
        "settings": settings,
        "class_names": None if class_names is None else tuple(class_names),
        "shortcut_padding": shortcut_padding,
    }
    if run is None:
        folder = import_to_cache(str(source), key, options, backend=backend, device=device)
    else:
        folder = import_weights(str(source), Path(run), key, options, backend=backend, device=device)
    return Run(folder, backend=backend, device=device)


def compare(
    data: PathOrStr = "digits",
    *,
    recipe: PathOrStr | Recipe | None = None,
    devices: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    repeats: int = 3,
    budget: float = 2.0,
    output: PathOrStr | None = None,
    progress: Progress | str | None = "auto",
    **fields: Unpack[RecipeFields],
) -> Comparison:
    """Measure CPU against GPU on your data: images/s of training and prediction, and what limits them.

    Each configuration is measured in a process of its own.

    Args:
        data, recipe, fields: as in `train`.
        devices: any of "cpu" and "gpu"; by default both if there is a GPU.
        backends: any of "tensorflow", "jax" and "torch"; by default those that are installed.
        batch_sizes: by default a quarter of the recipe's, the recipe's and four times it (16 times on a GPU).
        repeats: number of repeats of each measurement.
        budget: seconds for each measurement.
        output: folder for the table, the chart and the JSON; by default runs/compare-TIME.
        progress: as in `train`.

    Returns:
        The measurements, a table of them, and a summary in sentences.

    Raises:
        UsageError: an unknown name, or a value out of range.

    >>> found = rl.compare("digits", batch_sizes=[8], backends=["tensorflow"], repeats=1, budget=0.1)
    >>> {row["device"] for row in found.rows}
    {'cpu'}
    """
    from resnetlab.comparison import compare as comparison

    report = make_progress(progress)
    chosen = choose_recipe(str(data), recipe, dict(fields), report=report)
    source, pack = open_data(str(data), chosen, progress=report, allow_losses=True)
    return comparison.run(
        str(data),
        chosen,
        images=len(pack.indices("train")),
        source_name=source.name,
        devices=devices,
        backends=backends,
        batch_sizes=batch_sizes,
        repeats=repeats,
        budget=budget,
        output=None if output is None else Path(output),
        progress=report,
    )


def compare_runs(runs: Sequence[PathOrStr | Run], path: PathOrStr = "comparison.html") -> Path:
    """Write a page about several runs: their curves, their results, and the settings in which they differ.

    Raises:
        UsageError: fewer than two runs; a folder that is no run.
        ResnetlabError: the same run twice.
    """
    from resnetlab.report.page import write_comparison

    if len(runs) < 2:
        raise UsageError(f"Received {len(runs)} runs, expected at least 2.")
    write_comparison([_run_folder(run) for run in runs], Path(path))
    return Path(path)


@dataclass(frozen=True)
class RunSummary:
    """A run folder in a few words.

    Attributes:
        path: of the folder.
        model, data, recipe: names.
        status: "started", "interrupted", "finished", "diverged" or "imported".
        epochs: number of finished epochs.
        validation_top1: of the best epoch; None without validation images.
        subset, top1: of the last evaluation: "test" or "validation", and the accuracy; None without one.
        when: start of the run, in local time.
    """

    path: Path
    model: str
    data: str
    recipe: str
    status: str
    epochs: int
    validation_top1: float | None
    subset: str | None
    top1: float | None
    when: str


def list_runs(folder: PathOrStr = "runs") -> list[RunSummary]:
    """The runs in a folder and below it, the newest first. A folder whose run.json cannot be read is left out."""
    found = []
    for file in Path(folder).glob("**/run.json"):
        try:
            run = RunFolder.open(file.parent)
            info, recipe, records = run.info(), run.recipe(), run.metrics()
            began = (run.path / "environment.json").stat().st_mtime
        except (ResnetlabError, OSError):
            continue
        best = records[info.best_epoch - 1] if 0 < info.best_epoch <= len(records) else {}
        evaluated = _last_evaluation(run)
        summary = RunSummary(
            path=run.path,
            model=info.model,
            data=info.source,
            recipe=recipe.name,
            status=info.status,
            epochs=len(records),
            validation_top1=best.get("val_top1"),
            subset=evaluated.get("subset"),
            top1=evaluated.get("top1"),
            when=f"{datetime.fromtimestamp(began):%Y-%m-%d %H:%M}",
        )
        found.append((began, str(run.path), summary))
    return [summary for *_, summary in sorted(found, key=lambda each: each[:2], reverse=True)]


def _last_evaluation(run: RunFolder) -> dict[str, Any]:
    """Subset and top-1 of evaluation.json; nothing where there is none, or it is damaged."""
    try:
        found = run.read_json("evaluation.json")
        return {"subset": str(found["subset"]), "top1": float(found["top1"])}
    except (ResnetlabError, OSError, KeyError, TypeError, ValueError):
        return {}


@dataclass(frozen=True)
class Variant:
    """An architecture and its size.

    Attributes:
        name: model name for `build` and `train`.
        paper: paper or project that introduced it.
        parameters: as its paper or reference counts them.
        multiply_adds: of one forward pass at `image_size`.
        image_size: image side in pixels that `multiply_adds` refers to.
        depth: number of layers with weights on the longest path.
        num_classes: number of classes that `parameters` refers to.
        stages: name, number of blocks, side and channels of each end point.
    """

    name: str
    paper: str
    parameters: int
    multiply_adds: int
    image_size: int
    depth: int
    num_classes: int
    stages: tuple[tuple[str, int, int, int], ...]


def variants(name: str | None = None) -> list[Variant]:
    """List all architectures, or only the one called `name`. Imports no Keras.

    >>> rl.variants("resnet50")[0].parameters
    25557032
    """
    found = []
    for arch in [architecture(name)] if name else VARIANTS.values():
        summary = summarize(arch)
        parameters = summary.parameters_and_statistics if arch.counts_statistics else summary.parameters
        found.append(
            Variant(
                name=arch.name,
                paper=arch.paper,
                parameters=parameters,
                multiply_adds=summary.multiply_adds,
                image_size=arch.reference_size,
                depth=summary.depth,
                num_classes=arch.num_classes,
                stages=tuple(summary.stages),
            )
        )
    return found


# ------------------------------------------------------------------------------------------ the steps of training


def choose_recipe(
    data: str,
    recipe: PathOrStr | Recipe | None,
    changes: Mapping[str, Any],
    *,
    report: Progress,
    fixed: Mapping[str, Any] | None = None,
) -> Recipe:
    """The requested recipe, or the default one for the data, with its changes applied.

    Args:
        fixed: fields that the initial weights determine; `changes` override them, except for the model.
    """
    if recipe is None:
        asked = RECIPES[DEFAULT_RECIPES.get(data, "photos")]
    else:
        asked = recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe))
    chosen = asked.changed(**(dict(fixed or {}) | dict(changes)))
    arch = architecture(chosen.model)  # an unknown name, or images too small for it, before anything is decoded
    for side in (chosen.image_size, chosen.test_size, *(side for side, _ in chosen.progressive)):
        try:
            summarize(arch, side)
        except UsageError as error:
            raise UsageError(f"Received images of {side}x{side} pixels. {error}") from None
    if fixed is None:
        return chosen
    if chosen.model != fixed["model"]:
        raise UsageError(f"Received model {chosen.model!r}, expected {fixed['model']!r}, the model of the weights.")
    size = asked.image_size
    if chosen.image_size == fixed["image_size"] and size not in (chosen.image_size, BASE.image_size):
        report.warning(
            f"Recipe {asked.name} has image_size={size}, but image_size={chosen.image_size} of the weights is used. "
            f"To train at {size}: --set image_size={size}."
        )
    return chosen


@dataclass(frozen=True)
class _Prepared:
    """Everything about a new run that is known before it has a folder."""

    recipe: Recipe
    source: Source
    pack: Pack
    started: Started
    origin: RunFolder | None  # of the initial weights
    network: keras.Model | None  # with its initial weights; None for random ones


def _prepare(
    data: PathOrStr | None,
    recipe: PathOrStr | Recipe | None,
    weights: PathOrStr | Run | None,
    changes: Mapping[str, Any],
    *,
    allow_losses: bool,
    deterministic: bool = False,
    backend: str | None,
    device: str,
    report: Progress,
) -> _Prepared:
    """Every error that can be found before training is raised here."""
    if data is None:
        raise UsageError("Missing DATA: animals10, cifar10, digits, or a folder of class folders.")
    data = str(data)
    origin = None if weights is None else _initial_weights(weights, backend=backend, device=device)
    if origin is None:
        chosen = choose_recipe(data, recipe, changes, report=report)
    else:
        fixed = {key: getattr(origin.recipe(), key) for key in ("model", "eval_size", *INPUT_KEYS)}
        chosen = choose_recipe(data, recipe or "finetune", changes, report=report, fixed=fixed)
    inherited = {} if origin is None else origin.used_images()
    source, pack = open_data(data, chosen, progress=report, inherited=inherited, allow_losses=allow_losses)
    notes = [] if origin is None else check_inheritance(origin, inherited, chosen, pack)
    started = start(backend, device, progress=report, precision=chosen.precision, deterministic=deterministic)
    chosen = chosen.changed(precision=resolve_precision(chosen.precision))
    from resnetlab.training import transfer
    from resnetlab.training.trainer import require_validation

    require_validation(chosen, pack)
    network = None
    if origin is None:
        transfer.require_weights(chosen)
    else:
        with_head = origin.info().class_names == pack.class_names
        trained = Run(origin, backend=started.backend, device=device).model
        network = transfer.build_from(trained, chosen, len(pack.class_names), with_head=with_head)
    initial = "from scratch"
    if origin is not None:
        initial = f"from the weights of {origin.path} ({'and its head' if with_head else 'under a new head'})"
    _describe(report, chosen, source, pack, started, initial, notes, inherited=bool(inherited))
    return _Prepared(chosen, source, pack, started, origin, network)


def _create(
    prepared: _Prepared,
    data: str,
    folder: PathOrStr | None,
    log: Sequence[str],
    *,
    allow_losses: bool,
    deterministic: bool,
) -> _Job:
    """The folder of a new run."""
    recipe, pack, origin = prepared.recipe, prepared.pack, prepared.origin
    run = RunFolder.create(
        Path(folder) if folder is not None else RunFolder.new_folder(prepared.source.name, recipe.model),
        recipe=recipe,
        info=RunInfo(
            model=recipe.model,
            class_names=pack.class_names,
            source=prepared.source.name,
            data=_location(data),
            pack=pack.key,
            allow_losses=allow_losses,
            deterministic=deterministic,
            log=tuple(log),
            weights=None if origin is None else str(origin.path.resolve()),
            **asdict(prepared.started),
        ),
    )
    if origin is not None:
        run.write_ancestors(origin)
    run.write_split(split_rows(pack))
    run.write_json("audit.json", pack.audit)
    return _Job(run, recipe, pack, prepared.started, prepared.network)


def _resume(
    folder: RunFolder,
    data: PathOrStr | None,
    changes: Mapping[str, Any],
    *,
    force: bool,
    backend: str | None,
    device: str,
    report: Progress,
) -> _Job:
    check_resumable(folder, changes)
    source, pack = open_run_data(folder, None if data is None else str(data), progress=report, allow_changes=force)
    recipe, info = folder.recipe(), folder.info()
    options: dict[str, Any] = {"precision": recipe.precision, "deterministic": info.deterministic}
    started = start(backend or info.backend, device, progress=report, **options)
    if info.deterministic:
        from resnetlab import backend as running

        running.require_determinism()
    changed, notes = extend(folder, recipe, pack, changes)
    moved = {} if data is None else {"data": _location(str(data))}  # its images are those of the run's split
    folder.update(**asdict(started), **moved)
    how = f"resumed after {len(folder.metrics())} epochs"
    _describe(report, changed, source, pack, started, how, notes, inherited=bool(folder.ancestors()))
    return _Job(folder, changed, pack, started)


def _train(job: _Job, report: Progress, every: Interval, *, resume: bool, force: bool) -> None:
    from resnetlab.training import trainer

    opened = loggers.open_loggers(job.folder)
    report = loggers.LoggedProgress(report, opened) if opened else report
    try:
        trainer.train(
            job.pack,
            job.recipe,
            job.folder,
            progress=report,
            resume=resume,
            force=force,
            network=job.network,
            every=every,
        )
    finally:
        for logger in opened:
            logger.close()


def _location(data: str) -> str:
    return str(Path(data).resolve()) if Path(data).is_dir() else data


def _describe(
    report: Progress,
    recipe: Recipe,
    source: Source,
    pack: Pack,
    started: Started,
    initial: str,
    notes: Sequence[str],
    *,
    inherited: bool,
) -> None:
    """What is trained, from which weights, on which images, and where: before anything is computed."""
    report.info(
        f"{recipe.model} {initial}, recipe {recipe.name}: {recipe.image_size}x{recipe.image_size}, "
        f"batch {recipe.batch_size}, {recipe.epochs} epochs, {recipe.precision}"
    )
    counts = ", ".join(f"{len(pack.indices(s)):,} {s}" for s in ("train", "validation", "test"))
    report.info(f"{source.name}: {len(pack.class_names)} classes, {counts} images")
    report.info(describe_split(source, recipe, pack, inherited=inherited))
    if recipe.batch_size > len(pack.indices("train")):
        report.warning(
            f"batch_size={recipe.batch_size} is more than the training images: a step sees some of them repeatedly"
        )
    report.info(f"on the {started.device.upper()} ({started.device_name}), {started.backend}")
    for note in notes:
        report.info(note)


def _run_folder(run: PathOrStr | Run) -> RunFolder:
    return run.folder if isinstance(run, Run) else RunFolder.open(Path(run))


def _resumed_folder(run: PathOrStr | Run) -> RunFolder:
    """The run to resume; "latest" is the newest one below runs/, where there is no folder of this name."""
    if run != "latest" or Path("latest").exists():
        return _run_folder(run)
    trained = [found for found in list_runs() if found.status != "imported"]
    if not trained:
        raise UsageError("There is no run below runs/ to resume. Give its folder, or train a new one.")
    return RunFolder.open(trained[0].path)


# ------------------------------------------------------------------------------------------------ weights in


def _initial_weights(weights: PathOrStr | Run, *, backend: str | None, device: str) -> RunFolder:
    """The run folder of initial weights, imported if necessary; weights without a head are accepted."""
    if isinstance(weights, Run):
        return weights.folder
    path = Path(weights).expanduser()
    if (path / "run.json").is_file():
        return RunFolder.open(path)
    return import_to_cache(str(weights), None, {"new_head": True}, backend=backend, device=device)
