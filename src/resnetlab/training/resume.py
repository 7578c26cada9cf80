"""Checks and notes for resuming a run: which fields may change, and what a finished run allows."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from resnetlab.data.pack import Pack
from resnetlab.errors import UsageError
from resnetlab.recipes import BASE, Recipe
from resnetlab.run_folder import RunFolder


def check_resumable(folder: RunFolder, changes: Mapping[str, Any]) -> None:
    """Raise UsageError, before anything is decoded, where the run cannot be resumed with these changes."""
    if other := sorted(set(changes) - {"epochs"}):
        raise UsageError(
            f"A resumed run keeps its own recipe: received {', '.join(other)}, and only epochs may change. To train "
            "otherwise from its weights: `resnetlab train DATA --weights RUN`."
        )
    recipe, info, named = folder.recipe(), folder.info(), shlex.quote(str(folder.path))
    if info.status == "diverged":
        raise UsageError(
            f"{folder.path} diverged: resuming it would repeat the same steps. Start a new run with a lower rate, "
            f"such as --set learning_rate={recipe.learning_rate / 10:g}, from scratch or, if it has good weights, with "
            f"--weights {named}."
        )
    if not changes:
        return
    epochs, done = recipe.changed(**changes).epochs, info.epoch
    if epochs <= done and epochs != recipe.epochs:
        raise UsageError(f"Received epochs={epochs}, expected more than the {done} that {folder.path} has finished.")
    if info.status == "finished" and done < recipe.epochs:
        raise UsageError(
            f"{folder.path} was ended by early stopping after epoch {done} of {recipe.epochs}: more epochs do not "
            f"resume it. Train from its weights: `resnetlab train DATA --weights {named}`."
        )


def fingerprint(recipe: Recipe, pack: Pack) -> dict[str, Any]:
    """What a checkpoint belongs to: the recipe without the number of epochs, and a hash of the training images."""
    indices = pack.indices("train")
    images = [[pack.hashes[i], int(pack.labels[i])] for i in indices]
    digest = hashlib.sha256(json.dumps([pack.class_names, images]).encode("utf-8", "backslashreplace"))
    return {"recipe": recipe.model_dump(mode="json", exclude={"epochs"}), "data": digest.hexdigest()}


def require_same_origin(saved: Mapping[str, Any] | None, current: Mapping[str, Any], *, force: bool) -> None:
    """Raise UsageError where a checkpoint belongs to another recipe or to other images; checkpoints of 0.1 pass."""
    if saved is None or force:
        return
    now = current["recipe"]
    usual = BASE.model_dump(mode="json")  # a key may be newer than the checkpoint
    before = {key: usual[key] for key in now if key in usual} | saved["recipe"]
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if saved["data"] != current["data"]:
        changed.append("the training images")
    if changed:
        raise UsageError(
            f"Since the checkpoint was written, these have changed: {'; '.join(changed)}. Restore them, or resume with "
            "--force-resume: the run is then no longer what its recipe says."
        )


def extend(run: RunFolder, recipe: Recipe, pack: Pack, changes: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """The recipe to resume with, and notes on it; imports Keras."""
    info = run.info()
    changed = recipe.changed(**changes)
    if changed.epochs == recipe.epochs:
        return recipe, _finished(run, recipe) if info.status == "finished" else []
    from resnetlab.training.build import make_stream
    from resnetlab.training.optimizers import Schedule

    steps, step = make_stream(recipe, pack).steps_per_epoch, info.step
    before, after = (Schedule.of(r, steps).at(step + 1) for r in (recipe, changed))
    note = f"epochs {recipe.epochs} -> {changed.epochs}: "
    sides = [each.training_side(epoch) for each, epoch in ((recipe, max(info.epoch, 1)), (changed, info.epoch + 1))]
    more = (
        [f"{note}the images of the next epoch have a side of {sides[1]}, after {sides[0]}"]
        if sides[1] < sides[0]
        else []
    )
    if math.isclose(before, after, rel_tol=1e-6, abs_tol=1e-12):
        return changed, [*more, f"{note}the learning rate at the next step is as it was, {after:.3g}"]
    return changed, [
        *more,
        f"{note}schedule {recipe.schedule} depends on the number of epochs, so the learning rate at the next step "
        f"jumps from {before:.3g} to {after:.3g}; this differs from a single run of {changed.epochs} epochs",
    ]


def _finished(run: RunFolder, recipe: Recipe) -> list[str]:
    named = shlex.quote(str(run.path))
    done = run.info().epoch
    why = f"by early stopping after epoch {done} of {recipe.epochs}" if done < recipe.epochs else f"all {done} epochs"
    more = "" if done < recipe.epochs else f"resnetlab train --resume {named} --epochs {2 * done}, or "
    return [
        f"this run is finished ({why}): there is nothing to resume, and it is evaluated again. To go further: {more}"
        f"resnetlab train DATA --weights {named}"
    ]
