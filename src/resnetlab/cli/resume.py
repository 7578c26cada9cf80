"""What `resnetlab train --resume` may change of a run, and what it says of one that has ended."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from resnetlab.errors import UsageError

if TYPE_CHECKING:
    from resnetlab.data.pack import Pack
    from resnetlab.recipes import Recipe
    from resnetlab.run import Run


def check_resumable(folder: Path, settings: list[str]) -> None:
    """Raise UsageError, before anything is decoded, where the run cannot be resumed with these settings."""
    from resnetlab.recipes import parse_settings
    from resnetlab.run import Run

    if other := sorted(set(parse_settings(settings)) - {"epochs"}):
        raise UsageError(
            f"--resume goes on with the run's own recipe: received --set {', '.join(other)}, and only epochs may "
            "change. To train otherwise from its weights: `resnetlab train DATA --weights RUN`."
        )
    run = Run.open(folder)
    recipe, facts, named = run.recipe(), run.facts(), shlex.quote(str(folder))
    if facts.get("status") == "diverged":
        raise UsageError(
            f"{folder} diverged: to resume it would repeat the same steps. Begin a new run with a lower rate, such as "
            f"--set learning_rate={recipe.learning_rate / 10:g}, from scratch or, if an epoch was good, with "
            f"--weights {named}."
        )
    if not settings:
        return
    epochs = recipe.with_settings(settings).epochs
    done = int(facts.get("epoch", 0))
    if epochs <= done and epochs != recipe.epochs:
        raise UsageError(f"Received epochs={epochs}, expected more than the {done} that {folder} has finished.")
    if facts.get("status") == "finished" and done < recipe.epochs:
        raise UsageError(
            f"{folder} was ended by early stopping after epoch {done} of {recipe.epochs}: more epochs do not resume "
            f"it. Train on from its weights: `resnetlab train DATA --weights {named}`."
        )


def extended(run: Run, recipe: Recipe, pack: Pack, settings: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe to resume with, kept in the run, and what to report of it; imports Keras."""
    facts = run.facts()
    changed = recipe.with_settings(settings)
    if changed.epochs == recipe.epochs:
        return recipe, _finished(run, recipe) if facts.get("status") == "finished" else []
    from resnetlab.training.fit import stream_for
    from resnetlab.training.optimizers import Schedule

    steps, step = stream_for(recipe, pack).steps_per_epoch, int(facts.get("step", 0))
    before, after = (float(Schedule.of(r, steps)(step)) for r in (recipe, changed))
    run.write_json("recipe.json", changed.model_dump(mode="json"))
    note = f"epochs {recipe.epochs} -> {changed.epochs}: "
    if math.isclose(before, after, rel_tol=1e-6, abs_tol=1e-12):
        return changed, [f"{note}the learning rate at the next step is as it was, {after:.3g}"]
    return changed, [
        f"{note}schedule {recipe.schedule} depends on the number of epochs, so the learning rate at the next step "
        f"jumps from {before:.3g} to {after:.3g}; this is not what one run of {changed.epochs} epochs would have been"
    ]


def _finished(run: Run, recipe: Recipe) -> list[str]:
    named = shlex.quote(str(run.path))
    done = int(run.facts().get("epoch", recipe.epochs))
    why = f"by early stopping after epoch {done} of {recipe.epochs}" if done < recipe.epochs else f"all {done} epochs"
    more = "" if done < recipe.epochs else f"resnetlab train --resume {named} --epochs {2 * done}, or "
    return [
        f"this run is finished ({why}): there is nothing to resume, and it is evaluated again. To train on: {more}"
        f"resnetlab train DATA --weights {named}"
    ]
