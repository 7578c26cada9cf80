"""The functions of the public API: audit, train, plan_training, pack, load, from_pretrained, compare, compare_runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from resnetlab.cluster import Cluster
from resnetlab.data.audit import Audit
from resnetlab.data.audit import audit as examine
from resnetlab.data.loading import describe_split, open_data
from resnetlab.data.sources import resolve
from resnetlab.devices import Placement
from resnetlab.errors import UsageError
from resnetlab.jobs import (
    PathOrStr,
    choose_recipe,
    create_job,
    follows,
    prepare,
    require_determinism,
    resume_job,
    run_job,
    time_step,
)
from resnetlab.listing import list_runs
from resnetlab.progress import Progress, format_duration, make_progress
from resnetlab.recipes import INPUT_KEYS, Recipe, RecipeFields
from resnetlab.report import loggers
from resnetlab.run import Run
from resnetlab.run_folder import RunFolder, is_run_folder
from resnetlab.training.interval import Interval
from resnetlab.weights.importing import import_to_cache, import_weights

if TYPE_CHECKING:
    from resnetlab.comparison.compare import Comparison


def audit(
    data: PathOrStr,
    *,
    recipe: PathOrStr | Recipe | None = None,
    progress: Progress | str | None = "auto",
    **fields: Unpack[RecipeFields],
) -> Audit:
    """Decode every image: what can be used, what is set aside and why, what occurs twice, how it is split.

    Args:
        data: as in `train`.
        recipe, fields: as in `train`; they determine the split.

    Raises:
        UsageError: no such folder; an unknown name, or a value out of range.
        ResnetlabError: the folder cannot be used for training, such as with a class that has no usable image.

    >>> found = rl.audit("photos")
    >>> found.class_names, len(found.usable)
    (('cat', 'dog'), 60)
    """
    report = make_progress(progress)
    chosen = choose_recipe(str(data), recipe, fields, report=report)
    source = resolve(str(data), progress=report.count)
    found = examine(source, progress=lambda done, total: report.count("decoding", done, total))
    return replace(found, split=describe_split(source, chosen))


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
    devices: int | Literal["all"] = 1,
    cluster: Cluster | None = None,
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
        checkpoint_every: how often a checkpoint is written: "5m", "90s", or a number of steps, "500"; and after each
            epoch. A killed process loses the work since the last checkpoint that was completely written.
        deterministic: allow only kernels that give the same result each time, so that two runs are bit-identical on
            a GPU too. On TensorFlow and PyTorch its cost is measured and reported. A resumed run keeps its setting.
        devices: how many share each batch, or "all"; not on PyTorch. Neither the batches nor the result depend on
            their number (on TensorFlow they do where images are mixed); `batch_size` is that of all together, and a
            multiple of their number.
        cluster: this process is one of several that train the run together on JAX, each with its devices. Process 0
            writes the run folder; the others must see it to resume.
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
    placement = Placement(backend, device, devices, cluster, deterministic)
    report = make_progress(None if follows(placement) else progress)
    log = loggers.check_loggers(log)
    every = Interval.parse(checkpoint_every)
    options: dict[str, Any] = {"placement": placement, "report": report}
    if resume is not None:
        if (recipe, weights, run) != (None, None, None) or log:
            raise UsageError(
                "A resumed run keeps its own recipe, weights, folder and loggers: leave them out. To train "
                "with another recipe from its weights: `resnetlab train DATA --weights RUN`."
            )
        folder = _resumed_folder(resume)
        with nullcontext() if follows(placement) else folder.training_lock():  # before anything in it is changed
            if allow_losses:
                folder.update(allow_losses=True)
            job = resume_job(folder, data, fields, force=force_resume, **options)
            report.info(f"run folder {job.folder.path}")
            run_job(job, report, every, resume=True, force=force_resume)
    elif force_resume:
        raise UsageError("force_resume is for resumed runs: give resume too.")
    else:
        run = None if run is None else Path(run).expanduser()
        if run is not None and not follows(placement):
            RunFolder.require_empty(run)
        prepared = prepare(data, recipe, weights, fields, allow_losses=allow_losses, **options)
        if deterministic:
            require_determinism(prepared, report)
        job = create_job(prepared, str(data), run, log, allow_losses=allow_losses, placement=placement)
        report.info(f"run folder {job.folder.path}")
        run_job(job, report, every, resume=False, force=False)
    return Run(job.folder, backend=job.started.backend, device=device, pack=job.pack)


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
        RunFolder.require_empty(Path(run).expanduser())
    prepared = prepare(
        data, recipe, weights, fields, allow_losses=allow_losses, placement=Placement(backend, device), report=report
    )
    step, stream = time_step(prepared, seconds)
    return TrainingPlan(
        recipe=prepared.recipe,
        images={subset: len(prepared.pack.indices(subset)) for subset in ("train", "validation", "test")},
        steps_per_epoch=stream.steps_per_epoch,
        images_per_second=prepared.recipe.batch_size / step,
        seconds=step * stream.steps_per_epoch * _equivalent_epochs(prepared.recipe),
    )


def pack(
    data: PathOrStr,
    target: PathOrStr,
    *,
    recipe: PathOrStr | Recipe | None = None,
    shard_megabytes: int = 256,
    allow_losses: bool = False,
    progress: Progress | str | None = "auto",
    **fields: Unpack[RecipeFields],
) -> int:
    """Decode images as a recipe needs them, and write them in shards, from which `train` and `evaluate` read.

    Args:
        data: as in `train`.
        target: a folder, or a URL of a file system that fsspec knows, such as "s3://bucket/photos".
        recipe: as in `train`; the shards are for this recipe and others with the same size of images.
        shard_megabytes: about the size of a shard.
        allow_losses: a class may lose most of its images to the audit.

    Returns:
        How many shards were written.
    """
    from resnetlab.data.pack import write_shards

    if shard_megabytes < 1:
        raise UsageError(f"Received shard_megabytes={shard_megabytes}, expected at least 1.")
    report = make_progress(progress)
    chosen = choose_recipe(str(data), recipe, fields, report=report)
    row = chosen.pack_size**2 * 3 * (2 if chosen.whole_images else 1)
    source = resolve(str(data))
    for note in source.notes:
        report.info(note)
    shards, images = write_shards(
        source,
        chosen,
        str(target),
        rows=max(1, shard_megabytes * 1_000_000 // row),
        allow_losses=allow_losses,
        decoded=lambda done, total: report.count("decoding", done, total),
        written=lambda done, total: report.count("writing", done, total),
    )
    report.info(f"{images:,} images of {chosen.pack_size}x{chosen.pack_size} in {shards:,} shards at {target}")
    return shards


def _equivalent_epochs(recipe: Recipe) -> float:
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
    return Run(RunFolder.open(Path(run).expanduser()), backend=backend, device=device)


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
    if is_run_folder(source):
        if (run, model, key, class_names, shortcut_padding) != (None,) * 5 or settings:
            raise UsageError(f"{source} is a run already, and is used as it is: leave the other arguments out.")
        return load(source, backend=backend, device=device)
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
        folder = import_weights(str(source), Path(run).expanduser(), key, options, backend=backend, device=device)
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
    """Measure CPU and GPU, backends, precisions and batch sizes on your data: images/s of training and prediction,
    what limits them, and the fastest options of `train`.

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
        UsageError: fewer than two runs; a folder that is not a run folder.
        ResnetlabError: the same run twice.
    """
    from resnetlab.report.page import write_comparison

    if len(runs) < 2:
        raise UsageError(f"Received {len(runs)} runs, expected at least 2.")
    write_comparison([_run_folder(run) for run in runs], Path(path))
    return Path(path)


def _run_folder(run: PathOrStr | Run) -> RunFolder:
    return run.folder if isinstance(run, Run) else RunFolder.open(Path(run).expanduser())


def _resumed_folder(run: PathOrStr | Run) -> RunFolder:
    """The run to resume; "latest" is the newest one below runs/, where there is no folder of this name."""
    if run != "latest" or Path("latest").exists():
        return _run_folder(run)
    trained = [found for found in list_runs() if found.status != "imported"]
    if not trained:
        raise UsageError("There is no run below runs/ to resume. Give its folder, or train a new one.")
    return RunFolder.open(trained[0].path)
