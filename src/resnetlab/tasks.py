"""The tasks of the public API: train, load, from_pretrained, compare, variants. The command line calls these too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from resnetlab.data.loading import check_inheritance, open_data, open_run_data, split_rows
from resnetlab.devices import Started, start
from resnetlab.errors import UsageError
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import VARIANTS, architecture
from resnetlab.progress import Progress, make_progress
from resnetlab.recipes import BASE, INPUT_KEYS, RECIPES, Recipe, RecipeFields
from resnetlab.recipes import recipe as find_recipe
from resnetlab.run import Run
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.training.resume import check_resumable, extend
from resnetlab.weights.importing import import_to_cache, import_weights

if TYPE_CHECKING:
    import keras

    from resnetlab.comparison.compare import Comparison
    from resnetlab.data.pack import Pack

PathOrStr = str | PathLike[str]
DEFAULT_RECIPES = {"digits": "quick", "cifar10": "cifar-quick"}  # of other data: "animals"


@dataclass(frozen=True)
class _Job:
    """A run that is ready to be trained, and what to report of it."""

    folder: RunFolder
    recipe: Recipe
    pack: Pack
    started: Started
    notes: list[str]
    network: keras.Model | None = None  # with its initial weights; None for random ones


def train(
    data: PathOrStr | None = None,
    *,
    recipe: PathOrStr | Recipe | None = None,
    weights: PathOrStr | Run | None = None,
    run: PathOrStr | None = None,
    resume: PathOrStr | Run | None = None,
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
        data: a folder of class folders, or "animals10", "cifar10" or "digits". With `resume` only where it was moved.
        recipe: a recipe's name, a .toml or .json file, or a `Recipe`; by default the data's.
        weights: initial weights: a run, or a source as of `from_pretrained`. The default recipe is then "finetune".
        run: folder of the run; by default runs/DATA-MODEL-TIME.
        resume: a run to continue with its own recipe; of its fields, only `epochs` may change.
        allow_losses: a class may lose most of its images to the audit.
        backend: "tensorflow", "jax" or "torch"; by default the one that runs, $KERAS_BACKEND, or the first installed.
        device: "auto", "cpu" or "gpu".
        progress: "auto" (a bar in a notebook or a terminal), None (only logged), or an object like `Progress`.
        fields: of the recipe, to change: `model="resnet18"`, `epochs=20`, `image_size=64`, ...

    Raises:
        UsageError: an unknown name, a value out of range, arguments that exclude each other, a folder in the way.
        ResnetlabError: training diverged (the weights of the best epoch stay); no image is left to test on; the
            backend or the GPU is not there.

    >>> run = rl.train("photos", model="resnet-tiny", image_size=32, batch_size=8, epochs=8, early_stopping=0)
    >>> run.class_names, len(run.history)
    (('cat', 'dog'), 8)
    """
    report = make_progress(progress)
    start_on: dict[str, Any] = {"backend": backend, "device": device, "report": report}
    if resume is not None:
        if (recipe, weights, run) != (None, None, None):
            raise UsageError(
                "A resumed run keeps its own recipe, weights and folder: leave recipe, weights and run out. To train "
                "otherwise from its weights: `resnetlab train DATA --weights RUN`."
            )
        job = _resume(_run_folder(resume), data, fields, **start_on)
    else:
        job = _create(data, recipe, weights, fields, folder=run, allow_losses=allow_losses, **start_on)
    _describe(job, report)
    from resnetlab.training import trainer

    trainer.train(job.pack, job.recipe, job.folder, progress=report, resume=resume is not None, network=job.network)
    return Run(job.folder, backend=job.started.backend, device=device)


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
        key: of a file with several sets of weights, the one to take; by default the live weights.
        class_names: one for each logit; by default the source's.
        shortcut_padding: where zero-padded shortcuts have their zeros, "both" sides or the "end"; by default as usual
            in the source's family.
        backend, device: as in `load`.
        settings: image_size, crop_pct, interpolation and preprocessing, where the source does not state them.

    Raises:
        UsageError: no such source; an unknown name; a folder that is not empty.
        ResnetlabError: damaged; not the weights of any network here; it cannot be downloaded.

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
        data, recipe, fields: as of `train`.
        devices: of "cpu" and "gpu"; by default both, where there is a GPU.
        backends: of "tensorflow", "jax" and "torch"; by default those that are installed.
        batch_sizes: by default a quarter of the recipe's, the recipe's and four times it (16 times on a GPU).
        repeats: of each measurement.
        budget: seconds for each measurement.
        output: folder for the table, the chart and the JSON; by default runs/compare-TIME.
        progress: as of `train`.

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


@dataclass(frozen=True)
class Variant:
    """An architecture and its size.

    Attributes:
        name: for `build` and `train`.
        paper: where it is from.
        parameters: as its paper or reference counts them.
        multiply_adds: of one forward pass at `image_size`.
        image_size: side in pixels of the images that it is counted at.
        depth: number of layers with weights on the longest path.
        num_classes: that it is counted with.
        stages: of each end point its name, number of blocks, side and channels.
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
    """The architectures that `build` and `train` know, or the one of that name. Imports no Keras.

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
    """The recipe that was asked for, or the data's own, with its changes.

    Args:
        fixed: fields that initial weights determine; of these only the image size may be changed.
    """
    if recipe is None:
        asked = RECIPES[DEFAULT_RECIPES.get(data, "animals")]
    else:
        asked = recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe))
    chosen = asked.changed(**(dict(fixed or {}) | dict(changes)))
    architecture(chosen.model)  # an unknown name is an error before anything is decoded
    if fixed is None:
        return chosen
    if chosen.model != fixed["model"]:
        raise UsageError(f"Received the model {chosen.model!r}, expected {fixed['model']!r}: the weights are of it.")
    size = asked.image_size
    if chosen.image_size == fixed["image_size"] and size not in (chosen.image_size, BASE.image_size):
        report.warning(
            f"Recipe {asked.name} has images of {size}; taken is {chosen.image_size}, as the weights had. "
            f"Keep it with --set image_size={size}."
        )
    return chosen


def _create(
    data: PathOrStr | None,
    recipe: PathOrStr | Recipe | None,
    weights: PathOrStr | Run | None,
    changes: Mapping[str, Any],
    *,
    folder: PathOrStr | None,
    allow_losses: bool,
    backend: str | None,
    device: str,
    report: Progress,
) -> _Job:
    """A new run. Every error that can be found before training is raised before there is a folder."""
    if data is None:
        raise UsageError("Missing DATA: animals10, cifar10, digits, or a folder of class folders.")
    data = str(data)
    if folder is not None:
        RunFolder.require_vacant(Path(folder))
    origin = None if weights is None else _initial_weights(weights, backend=backend, device=device)
    if origin is None:
        chosen = choose_recipe(data, recipe, changes, report=report)
    else:
        fixed = {key: getattr(origin.recipe(), key) for key in ("model", "eval_size", *INPUT_KEYS)}
        chosen = choose_recipe(data, recipe or "finetune", changes, report=report, fixed=fixed)
    inherited = {} if origin is None else origin.used_images()
    source, pack = open_data(data, chosen, progress=report, inherited=inherited, allow_losses=allow_losses)
    notes = [] if origin is None else check_inheritance(origin, inherited, chosen, pack)
    started = start(backend, device, progress=report, precision=chosen.precision)
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
        notes.insert(0, f"initial weights of {origin.path}, {'and its head' if with_head else 'under a new head'}")
    run = RunFolder.create(
        Path(folder) if folder is not None else RunFolder.new_folder(source.name, chosen.model),
        recipe=chosen,
        info=RunInfo(
            model=chosen.model,
            class_names=pack.class_names,
            source=source.name,
            data=_location(data),
            pack=pack.key,
            allow_losses=allow_losses,
            weights=None if origin is None else str(origin.path.resolve()),
            **asdict(started),
        ),
    )
    if origin is not None:
        run.write_ancestors(origin)
    run.write_split(split_rows(pack))
    run.write_json("audit.json", pack.audit)
    return _Job(run, chosen, pack, started, notes, network)


def _resume(
    folder: RunFolder,
    data: PathOrStr | None,
    changes: Mapping[str, Any],
    *,
    backend: str | None,
    device: str,
    report: Progress,
) -> _Job:
    check_resumable(folder, changes)
    _, pack = open_run_data(folder, None if data is None else str(data), progress=report)
    recipe = folder.recipe()
    started = start(backend or folder.info().backend, device, progress=report, precision=recipe.precision)
    changed, notes = extend(folder, recipe, pack, changes)
    moved = {} if data is None else {"data": _location(str(data))}  # its images are those of the run's split
    folder.update(**asdict(started), **moved)
    return _Job(folder, changed, pack, started, notes)


def _location(data: str) -> str:
    return str(Path(data).resolve()) if Path(data).is_dir() else data


def _describe(job: _Job, report: Progress) -> None:
    counts = ", ".join(f"{len(job.pack.indices(s)):,} {s}" for s in ("train", "validation", "test"))
    info = job.folder.info()
    report.info(f"{job.recipe.model} on {info.source}: {len(info.class_names)} classes, {counts} images")
    started = job.started
    report.info(f"on the {started.device.upper()} ({started.device_name}), {started.backend}, {job.recipe.precision}")
    report.info(f"run folder {job.folder.path}")
    for note in job.notes:
        report.info(note)


def _run_folder(run: PathOrStr | Run) -> RunFolder:
    return run.folder if isinstance(run, Run) else RunFolder.open(Path(run))


# ------------------------------------------------------------------------------------------------ weights in


def _initial_weights(weights: PathOrStr | Run, *, backend: str | None, device: str) -> RunFolder:
    """The run folder of initial weights; they need no head."""
    if isinstance(weights, Run):
        return weights.folder
    path = Path(weights).expanduser()
    if (path / "run.json").is_file():
        return RunFolder.open(path)
    return import_to_cache(str(weights), None, {"new_head": True}, backend=backend, device=device)
