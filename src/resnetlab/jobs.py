"""The steps of a training task: recipe, data, initial weights, run folder, and training itself."""

from __future__ import annotations

import atexit
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab.data.loading import check_inheritance, describe_split, open_data, open_run_data, split_rows
from resnetlab.data.stream import steps_per_epoch
from resnetlab.devices import Placement, Started, resolve_precision, start
from resnetlab.errors import ResnetlabError, UsageError, is_out_of_memory
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import architecture
from resnetlab.progress import Progress
from resnetlab.recipes import BASE, INPUT_KEYS, RECIPES, Recipe, stated_keys
from resnetlab.recipes import recipe as find_recipe
from resnetlab.report import loggers
from resnetlab.run import Run
from resnetlab.run_folder import DIGITS, RunFolder, RunInfo, is_run_folder
from resnetlab.training.interval import Interval
from resnetlab.training.resume import check_resumable, extend
from resnetlab.weights.importing import import_to_cache

if TYPE_CHECKING:
    import keras

    from resnetlab.data.pack import Pack
    from resnetlab.data.sources import Source
    from resnetlab.data.stream import Stream

PathOrStr = str | PathLike[str]
FEW_STEPS = 50  # the running statistics of a batch norm need about as many
DEFAULT_RECIPES = {"digits": "quick", "cifar10": "cifar-quick", "animals10": "animals"}  # of a folder: "photos"


@dataclass(frozen=True)
class Job:
    """A run that is ready to be trained."""

    folder: RunFolder
    recipe: Recipe
    pack: Pack
    started: Started
    network: keras.Model | None = None  # with its initial weights; None for random ones


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
        fixed: fields that the initial weights determine; `changes`, and what a recipe file states, override them,
            except for the model.
    """
    if recipe is None:
        known = data in DEFAULT_RECIPES and not Path(data).is_dir()  # a folder of this name comes first
        asked = RECIPES[DEFAULT_RECIPES[data] if known else "photos"]
    else:
        asked = recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe))
    own = set() if fixed is None or isinstance(recipe, Recipe) else stated_keys(str(recipe or ""))
    of_weights = {key: value for key, value in (fixed or {}).items() if key not in own}
    if "image_size" in own | changes.keys():
        of_weights.pop("eval_size", None)  # it belongs to the size of the weights
    chosen = asked.changed(**(_applicable(of_weights, changes.get("crop", asked.crop)) | dict(changes)))
    arch = architecture(chosen.model)  # an unknown name, or images too small for it, before anything is decoded
    if chosen.stochastic_depth and arch.shortcut == "none":
        raise UsageError(f"{arch.name} has no shortcuts: expected stochastic_depth=0, not {chosen.stochastic_depth}.")
    for side in (chosen.image_size, chosen.test_size, *(side for side, _ in chosen.progressive)):
        try:
            summarize(arch, side)
        except UsageError as error:
            raise UsageError(f"Received images of {side}x{side} pixels. {error}") from None
    if fixed is None:
        return chosen
    if chosen.model != fixed["model"]:
        raise UsageError(f"Received model {chosen.model!r}, expected {fixed['model']!r}, the model of the weights.")
    for key in ("eval_size", *INPUT_KEYS):
        value, used = getattr(asked, key), getattr(chosen, key)
        if key not in changes and value not in (used, getattr(BASE, key)):
            report.warning(
                f"Recipe {asked.name} has {key}={value}, but {key}={used} of the weights is used. To train with the "
                f"recipe's: --set {key}={value}."
            )
    return chosen


def _applicable(fixed: Mapping[str, Any], crop: str) -> dict[str, Any]:
    """Without what applies to crops of larger images only, where there are none."""
    return {key: value for key, value in fixed.items() if crop == "resized" or key not in ("crop_pct", "eval_size")}


@dataclass(frozen=True)
class Prepared:
    """Everything about a new run that is known before it has a folder."""

    recipe: Recipe
    source: Source
    pack: Pack
    started: Started
    origin: RunFolder | None  # of the initial weights
    network: keras.Model | None  # with its initial weights; None for random ones


def prepare(
    data: PathOrStr | None,
    recipe: PathOrStr | Recipe | None,
    weights: PathOrStr | Run | None,
    changes: Mapping[str, Any],
    *,
    allow_losses: bool,
    placement: Placement,
    report: Progress,
) -> Prepared:
    """Every error that can be found before training is raised here."""
    if data is None:
        raise UsageError("Missing DATA: animals10, cifar10, digits, or a folder of class folders.")
    data = str(data)
    device = placement.device
    origin = None if weights is None else _initial_weights(weights, placement)
    if origin is None:
        chosen = choose_recipe(data, recipe, changes, report=report)
    else:
        before = origin.recipe()
        fixed = {key: getattr(before, key) for key in ("model", "eval_size", *INPUT_KEYS)}
        if before.crop != "resized":
            fixed["crop_pct"] = 1.0  # the network has seen whole images
        chosen = choose_recipe(data, recipe or "finetune", changes, report=report, fixed=fixed)
    inherited = {} if origin is None else origin.used_images()
    source, pack = open_data(data, chosen, progress=report, inherited=inherited, allow_losses=allow_losses)
    notes = [] if origin is None else [*origin.import_notes(), *check_inheritance(origin, inherited, chosen, pack)]
    started = start(placement, progress=report, precision=chosen.precision)
    chosen = chosen.changed(precision=resolve_precision(chosen.precision))
    from resnetlab.training import transfer
    from resnetlab.training.processes import require_whole_parts
    from resnetlab.training.trainer import require_validation

    require_validation(chosen, pack)
    require_whole_parts(chosen)
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
    if chosen.accumulate == "auto":
        chosen = chosen.changed(accumulate=parts_that_fit(chosen, pack, network))
    known = bool(inherited.keys() & {digest[:DIGITS] for digest in pack.hashes})
    _describe(report, chosen, source, pack, started, initial, notes, inherited=known)
    return Prepared(chosen, source, pack, started, origin, network)


def create_job(
    prepared: Prepared,
    data: str,
    folder: PathOrStr | None,
    log: Sequence[str],
    *,
    allow_losses: bool,
    placement: Placement,
) -> Job:
    """The folder of a new run; of several processes, all but the first have one of their own, which is removed."""
    recipe, pack, origin = prepared.recipe, prepared.pack, prepared.origin
    if follows(placement):
        path = temporary_folder()
    else:
        path = Path(folder) if folder is not None else RunFolder.new_folder(prepared.source.name, recipe.model)
    run = RunFolder.create(
        path,
        recipe=recipe,
        info=RunInfo(
            model=recipe.model,
            class_names=pack.class_names,
            source=prepared.source.name,
            data=_location(data),
            pack=pack.key,
            allow_losses=allow_losses,
            deterministic=placement.deterministic,
            log=() if follows(placement) else tuple(log),
            weights=None if origin is None else str(origin.path.resolve()),
            **asdict(prepared.started),
        ),
    )
    if origin is not None:
        run.write_ancestors(origin)
    run.write_split(split_rows(pack))
    run.write_json("audit.json", pack.audit)
    return Job(run, recipe, pack, prepared.started, prepared.network)


def resume_job(
    folder: RunFolder,
    data: PathOrStr | None,
    changes: Mapping[str, Any],
    *,
    force: bool,
    placement: Placement,
    report: Progress,
) -> Job:
    check_resumable(folder, changes)
    if follows(placement):
        folder = RunFolder(_copy(folder.path))
    source, pack = open_run_data(folder, None if data is None else str(data), progress=report, allow_changes=force)
    recipe, info = folder.recipe(), folder.info()
    placement = replace(placement, backend=placement.backend or info.backend, deterministic=info.deterministic)
    started = start(placement, progress=report, precision=recipe.precision)
    from resnetlab import backend

    backend.gather(np.zeros(1))  # the others have copied the folder
    if info.deterministic:
        backend.require_determinism()
    changed, notes = extend(folder, recipe, pack, changes)
    moved = {} if data is None else {"data": _location(str(data))}  # its images are those of the run's split
    folder.update(**asdict(started), **moved)
    how = f"resumed after {len(folder.metrics())} epochs"
    _describe(report, changed, source, pack, started, how, notes, inherited=bool(folder.ancestors()))
    return Job(folder, changed, pack, started)


def _copy(folder: Path) -> Path:
    """A copy of a run folder, from which the first process may be removing what killed ones have left."""
    return Path(
        shutil.copytree(folder, temporary_folder(), dirs_exist_ok=True, ignore=shutil.ignore_patterns(".tmp-*"))
    )


def run_job(job: Job, report: Progress, every: Interval, *, resume: bool, force: bool) -> None:
    from resnetlab import backend
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
        backend.end_distribution()  # evaluation and prediction follow, on one device
        for logger in opened:
            loggers.attempt(logger.close, logger, report)


def follows(placement: Placement) -> bool:
    """Whether another process of the cluster writes the run folder."""
    return placement.cluster is not None and placement.cluster.process_id > 0


def temporary_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="resnetlab-process-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


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
        f"batch {recipe.batch_size}{f' in {recipe.parts} parts' if recipe.parts > 1 else ''}, {recipe.epochs} epochs, "
        f"{recipe.precision}"
    )
    counts = ", ".join(f"{len(pack.indices(s)):,} {s}" for s in ("train", "validation", "test"))
    report.info(f"{source.name}: {len(pack.class_names)} classes, {counts} images")
    split = describe_split(source, recipe, pack, inherited=inherited)
    report.info("split: " + split.replace("\n", "\n       "))
    if recipe.batch_size > len(pack.indices("train")):
        report.warning(
            f"batch_size={recipe.batch_size} is more than the training images: a step sees some of them repeatedly"
        )
    shared = f", {started.devices} devices" if started.devices > 1 else ""
    shared += f" of {started.processes} processes" if started.processes > 1 else ""
    report.info(f"on the {started.device.upper()} ({started.device_name}), {started.backend}{shared}")
    for note in notes:
        report.info(note)
    if recipe.frozen_epochs == recipe.epochs:
        what = "the head is" if recipe.frozen_stages is None else f"what follows stage {recipe.frozen_stages} is"
        report.info(f"only {what} trained, in all {recipe.epochs} epochs: frozen_epochs={recipe.frozen_epochs}")
    patience = recipe.early_stopping * steps_per_epoch(len(pack.indices("train")), recipe.batch_size)
    if recipe.early_stopping and patience < FEW_STEPS:
        report.warning(
            f"Early stopping may end training after {patience} steps without a lower loss of the "
            f"{len(pack.indices('validation')):,} validation images: too few to tell. Use a smaller --batch-size, "
            "initial --weights, or --set early_stopping=0."
        )


def _initial_weights(weights: PathOrStr | Run, placement: Placement) -> RunFolder:
    """The run folder of initial weights, imported if necessary; weights without a head are accepted.

    Raises:
        UsageError: several devices or processes, which an import would start as one.
    """
    if isinstance(weights, Run):
        return weights.folder
    if is_run_folder(weights):
        return RunFolder.open(Path(weights).expanduser())
    if placement.is_distributed:
        named = shlex.quote(str(weights))
        raise UsageError(
            f"On several devices or processes, initial weights are those of a run. Import {weights} first: `resnetlab "
            f"import {named} --run runs/weights`, then `--weights runs/weights`."
        )
    options = {"new_head": True}
    return import_to_cache(str(weights), None, options, backend=placement.backend, device=placement.device)


def parts_that_fit(recipe: Recipe, pack: Pack, network: keras.Model | None) -> int:
    """In how few parts a batch fits the memory of the GPU, found by training steps; 1 on a CPU.

    Raises:
        ResnetlabError: not even single images fit, or pairs where images are mixed.
    """
    from resnetlab import backend
    from resnetlab.models.from_recipe import build_network
    from resnetlab.models.state import preserved_weights
    from resnetlab.training.build import first_step_of_all, make_stream, make_trainer
    from resnetlab.training.memory import divisors, out_of_memory, release_tensors

    if backend.process()[1] > 1:
        raise UsageError('accumulate="auto" tries steps on one machine: give several processes a number.')
    if backend.device() == "cpu":
        return 1
    failure: Exception | None = None
    for parts in divisors(recipe.batch_size):
        rows = recipe.batch_size // parts
        if rows % backend.replicas() or (rows == 1 and (recipe.mixup or recipe.cutmix)):  # which need a second image
            continue
        tried = recipe.changed(accumulate=parts, progressive=())
        stream = make_stream(tried, pack)
        model = network or build_network(tried, len(pack.class_names))
        try:
            with preserved_weights(model):
                step = first_step_of_all(tried, stream)
                make_trainer(model, tried, stream, step=step).train_on_batch(*stream.batch(0))
            return parts
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release_tensors(error)
            failure = error
    assert failure is not None
    raise ResnetlabError(out_of_memory(tried, failure, None)) from failure


def time_step(prepared: Prepared, seconds: float) -> tuple[float, Stream]:
    """Seconds of a training step of the whole network on the largest images, measured for so long; and the batches."""
    from resnetlab import backend
    from resnetlab.comparison.timing import FitTimer
    from resnetlab.data.stream import as_item
    from resnetlab.models.from_recipe import build_network
    from resnetlab.models.state import preserved_weights
    from resnetlab.training.build import first_step_of_all, make_stream, make_trainer

    stream = make_stream(prepared.recipe, prepared.pack)
    network = prepared.network or build_network(prepared.recipe, len(prepared.pack.class_names))
    recipe = prepared.recipe.changed(progressive=())
    parts = stream.accumulate
    with preserved_weights(network):
        trainer = make_trainer(network, recipe, stream, step=first_step_of_all(recipe, stream))
        timer = FitTimer(trainer, prepared.started.device, backend.feed(as_item(stream.batch(0))))
        timer.call(stream.batches(0), 1)  # traces and compiles
        one = timer.steps(partial(stream.batches, 0), parts).seconds
        steps = max(1, min(stream.steps_per_epoch, int(seconds / one)))
        return timer.steps(partial(stream.batches, 0), steps * parts).seconds / steps, stream


def require_determinism(prepared: Prepared, report: Progress) -> None:
    """Allow only deterministic kernels from now on, and report what they cost."""
    from resnetlab import backend

    if backend.NAME == "jax":
        backend.require_determinism()
        report.info("deterministic kernels; what they cost is not measured on JAX, whose setting is per process")
        return
    before, _ = time_step(prepared, seconds=2)
    backend.require_determinism()
    after, _ = time_step(prepared, seconds=2)
    report.info(f"deterministic kernels: a step takes {after / before:.2f} times as long as without")
