"""The whole state of a training run in one file: weights, optimizer slots, running metrics and the step number.

Keras saves weights and optimizer, but neither its random states nor the metrics of a half-finished epoch, and not
atomically. Sample order and augmentation need no state: they are functions of (seed, step).
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnetlab.atomic import atomic_file
from resnetlab.errors import ResnetlabError


def state_variables(model: keras.Model) -> list[keras.Variable]:
    """Every variable that a training step reads and writes, in a fixed order; the optimizer must be built."""
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


def save(path: Path, model: keras.Model, progress: dict[str, Any]) -> None:
    """Write the state, and `progress` (plain JSON) with it."""
    arrays = {f"{i:05d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(state_variables(model))}
    names = [v.path for v in state_variables(model)]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, names=np.array(names), progress=np.array(json.dumps(progress)), **arrays)


def read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The progress that was saved, and the state for `restore`.

    Raises:
        ResnetlabError: no such file, or a damaged one.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # it leaves a damaged one open
            arrays = [file[f"{i:05d}"] for i in range(len(file["names"]))]
            progress: dict[str, Any] = json.loads(str(file["progress"]))
    except FileNotFoundError:
        raise ResnetlabError(f"{path} does not exist: the run ended before its first checkpoint. Start anew.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResnetlabError(f"{path} is damaged ({error}); the weights beside it can still be used.") from None
    return progress, arrays


def restore(model: keras.Model, arrays: list[np.ndarray]) -> None:
    """Restore a state into a model of the same structure. Raises ResnetlabError if the structure differs."""
    variables = state_variables(model)
    received, expected = [a.shape for a in arrays], [tuple(v.shape) for v in variables]
    if received != expected:
        raise ResnetlabError(
            f"The checkpoint has the state of another model ({len(received)} variables, expected {len(expected)}, or "
            "shapes that differ). Resume with the recipe that the run was started with."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
