"""What several commands do: find the recipe, settle the backend, open the data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab import environment
from resnetlab.errors import ResnetlabError, UsageError

if TYPE_CHECKING:
    from resnetlab.data.pack import Pack
    from resnetlab.data.sources import Source
    from resnetlab.recipes import Recipe
    from resnetlab.run import Run


def recipe_for(
    data: str,
    recipe: str | None,
    model: str | None,
    settings: list[str] | None,
    *,
    fixed: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe that was asked for, or the data's own, with its changes; `fixed` is what given weights ask for."""
    from resnetlab.models import architecture
    from resnetlab.recipes import BASE, RECIPES
    from resnetlab.recipes import recipe as find_recipe

    defaults = {"digits": "quick", "cifar10": "cifar-quick"}
    asked = find_recipe(recipe) if recipe else RECIPES[defaults.get(data, "animals")]
    fixed = fixed or {}
    chosen = asked.changed(**({"model": model} if model else {}) | fixed).with_settings(settings or [])
    architecture(chosen.model)  # an unknown name is told before anything is decoded
    if fixed and (model or chosen.model) != fixed["model"]:
        raise UsageError(
            f"Received the model {model or chosen.model!r}, expected {fixed['model']!r}: the weights are of it."
        )
    size = asked.image_size
    if fixed and chosen.image_size == fixed["image_size"] and size not in (chosen.image_size, BASE.image_size):
        print(
            f"Recipe {asked.name} has images of {size}; taken is {chosen.image_size}, as the weights had. "
            f"Keep it with --set image_size={size}.",
            file=sys.stderr,
        )
    return chosen


def listed(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    """The items of a comma-separated option."""
    try:
        return None if text is None else [kind(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UsageError(f"Received {text!r}, expected whole numbers separated by commas, such as 8,32,128.") from None


def start(backend: str | None, device: str, *, precision: str = "float32") -> dict[str, Any]:
    """Settle backend and device, and warn of a GPU that is not used, or not suited to `precision`.

    Returns:
        What a run records of it: {"backend", "device" ("cpu" or "gpu"), "device_name"}.

    Raises:
        ResnetlabError: a GPU was asked for, and the backend sees none.
    """
    environment.start(backend=backend, device=device)
    from resnetlab import doctor, kernels

    used = kernels.device()
    report = doctor.examine(frameworks=()) if device != "cpu" else None
    if used == "cpu" and report is not None:
        reason = doctor.why_no_gpu(report, backend=kernels.BACKEND) or (
            f"The driver lists a GPU and nothing was found in {kernels.BACKEND}'s way."
        )
        if device == "gpu":
            raise ResnetlabError(f"--device gpu: {kernels.BACKEND} sees no GPU. {reason} See `resnetlab doctor`.")
        if report.facts.nvidia.gpus:
            name = report.facts.nvidia.gpus[0].name
            print(
                f"warning: {name} is not used, {kernels.BACKEND} computes on the CPU. {reason} See `resnetlab doctor`, "
                "or say --device cpu.",
                file=sys.stderr,
            )
    if used == "gpu" and report is not None and precision == "bfloat16":
        for gpu in report.facts.nvidia.gpus[:1]:
            if not gpu.has_bfloat16:
                print(
                    f"warning: {gpu.name} (compute capability {gpu.compute_capability}) has no bfloat16, which it "
                    "emulates slowly. Use --set precision=float16.",
                    file=sys.stderr,
                )
    if used == "gpu" and (idle := environment.idle_gpus()):
        print(f"One GPU is used; {len(idle)} more ({', '.join(idle)}) stay idle.", file=sys.stderr)
    names = kernels.gpus() if used == "gpu" else []
    return {
        "backend": kernels.BACKEND,
        "device": used,
        "device_name": (names or [environment.cpu_name()])[0],
    }


def open_data(
    spec: str,
    recipe: Recipe,
    *,
    quiet: bool,
    inherited: Mapping[str, str] | None = None,
    allow_losses: bool = False,
) -> tuple[Source, Pack]:
    """The data's packed images, made now or reused.

    `inherited` is as in `split`; with `allow_losses` a class may lose most of its images.
    """
    from resnetlab.data.audit import ignored_text
    from resnetlab.data.pack import pack_for
    from resnetlab.data.sources import resolve

    source = resolve(spec)
    for note in source.notes:
        print(note, file=sys.stderr)
    if source.ignored:
        print(f"ignored: {ignored_text(source.ignored_endings)}", file=sys.stderr)
    with counting("decoding", quiet=quiet) as progress:
        packed = pack_for(source, recipe, inherited=inherited, allow_losses=allow_losses, progress=progress)
    for name, loss in packed.audit["losses"].items():
        print(f"warning: the class {name!r}: {loss}", file=sys.stderr)
    set_aside = len(packed.audit["set_aside"])
    if set_aside and not quiet:
        print(f"{set_aside} of {packed.audit['found']} images are set aside: see `resnetlab audit {shlex.quote(spec)}`")
    suspicious = len(packed.audit["suspicious"])
    if suspicious and not quiet:
        print(f"{suspicious} images show next to nothing, and are used: see `resnetlab audit {shlex.quote(spec)}`")
    return source, packed


def reopen(folder: Path, data: str | None, *, quiet: bool) -> tuple[Run, Recipe, Source, Pack]:
    """A run with its data, which must be what it was when the run began."""
    from resnetlab.run import Run

    run = Run.open(folder)
    recipe, facts = run.recipe(), run.facts()
    if data is None and facts["data"] is None:
        raise UsageError(
            f"{folder} was ported, and has no data of its own. Name some: `resnetlab evaluate RUN DATA`; to train on "
            "from it: `resnetlab train DATA --weights RUN`."
        )
    if data is None and Path(facts["data"]).is_absolute() and not Path(facts["data"]).is_dir():
        raise ResnetlabError(
            f"The data of {folder} is no longer at {facts['data']}. Name where it is now as DATA: `resnetlab train "
            "DATA --resume RUN`, `resnetlab evaluate RUN DATA`."
        )
    allow_losses = facts.get("allow_losses", True)  # runs of before there was a choice allowed them
    source, pack = open_data(
        data or facts["data"], recipe, quiet=quiet, inherited=run.ancestors(), allow_losses=allow_losses
    )
    if run.split() != {digest: subset for _, _, subset, digest in split_rows(pack)}:
        named = shlex.quote(str(folder))
        raise ResnetlabError(
            f"The images of {source.location} are not those that {folder} was trained on: files were added, removed or "
            f"changed. Restore them, train on them from this run's weights: `resnetlab train DATA --weights {named}`, "
            f"or evaluate on them as other data: `resnetlab evaluate {named} DATA`."
        )
    return run, recipe, source, pack


def split_rows(pack: Pack) -> list[tuple[str, str, str, str]]:
    return [
        (name, pack.class_names[label], str(subset), digest[:16])
        for name, label, subset, digest in zip(pack.names, pack.labels, pack.subset, pack.hashes, strict=True)
    ]


class counting:
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
