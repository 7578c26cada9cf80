"""The whole state of training in one file: weights, optimizer slots, running metrics, and what `progress` holds.

Keras saves weights and optimizer, but neither its random states nor the metrics of a half-finished epoch, and not
atomically. Sample order and augmentation need no state: they are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnetlab.atomic import atomic_file, flush
from resnetlab.errors import ResnetlabError, first_informative_line
from resnetlab.run_folder import RunFolder
from resnetlab.untrusted import check_archive, parse_json

KEPT = 3  # the newest of a run
FORMER = "checkpoint.npz"  # up to version 0.1 there was one, in the run folder

State = list[np.ndarray]


def state_variables(model: keras.Model) -> list[keras.Variable]:
    """Every variable that a training step reads and writes, in a fixed order; the optimizer must be built."""
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


def current_state(model: keras.Model) -> State:
    """A copy of the values of all state variables."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in state_variables(model)]


def write(path: Path, model: keras.Model, state: State, progress: dict[str, Any]) -> None:
    """Write a checkpoint with its checksum; `progress` is plain JSON."""
    text = json.dumps(progress)
    arrays: dict[str, Any] = {f"{i:05d}": array for i, array in enumerate(state)}
    arrays["names"] = np.array([v.path for v in state_variables(model)])
    arrays |= {"progress": np.array(text), "sha256": np.array(_checksum(text, state))}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read(path: Path) -> tuple[dict[str, Any], State]:
    """The progress that was saved, and the state for `restore`.

    Raises:
        ResnetlabError: no such file, or a damaged one.
    """
    try:
        check_archive(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # it leaves a damaged one open
            state = [file[f"{i:05d}"] for i in range(len(file["names"]))]
            text = str(file["progress"])
            if "sha256" in file and str(file["sha256"]) != _checksum(text, state):  # none in version 0.1
                raise ValueError("its checksum differs")
            progress: dict[str, Any] = parse_json(text)
    except ResnetlabError:
        raise
    except FileNotFoundError:
        raise ResnetlabError(f"{path} does not exist.") from None
    except Exception as error:  # whatever NumPy, zipfile and zlib raise for damaged bytes
        raise ResnetlabError(f"{path} is damaged: {first_informative_line(error)}.") from None
    return progress, state


def _checksum(progress: str, state: State) -> str:
    digest = hashlib.sha256(progress.encode())
    for array in state:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def restore(model: keras.Model, state: State) -> None:
    """Restore a state into a model of the same structure. Raises ResnetlabError if the structure differs."""
    variables = state_variables(model)
    received, expected = [a.shape for a in state], [tuple(v.shape) for v in variables]
    if received != expected:
        raise ResnetlabError(
            f"The checkpoint has the state of another model ({len(received)} variables, expected {len(expected)}, or "
            "shapes that differ). Resume with the recipe that the run was started with."
        )
    for variable, array in zip(variables, state, strict=True):
        variable.assign(array)


class Checkpoints:
    """The checkpoints of a run: the newest few, so that a damaged one can be replaced by the one before it."""

    def __init__(self, run: RunFolder) -> None:
        self.folder, self.former = run.checkpoints, run.path / FORMER
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def files(self) -> list[Path]:
        """Those that exist, the newest first."""
        found = sorted(self.folder.glob("step-*.npz"), key=lambda path: path.name, reverse=True)
        return [*found, self.former] if self.former.exists() else found

    def save(self, model: keras.Model, progress: dict[str, Any], *, background: bool = False) -> None:
        """Write a checkpoint of the step `progress["step"]`, and remove the oldest ones.

        In the `background`, the state is copied, and an error is raised by the next call.

        Raises:
            WriteError: this one, or the one before it, cannot be written. Those that exist are whole.
        """
        self.wait()
        if not self.folder.exists():
            self.folder.mkdir()
            flush(self.folder.parent)
        path, state = self.folder / f"step-{progress['step']:09d}.npz", current_state(model)

        def write_and_prune() -> None:
            write(path, model, state, progress)
            later = [file for file in self.files() if file != self.former and file.name > path.name]
            for file in later:  # of a run with other images, whose epochs had more steps
                file.unlink(missing_ok=True)
            for file in self.files()[KEPT:]:
                file.unlink(missing_ok=True)

        self._pending = self._writer.submit(write_and_prune)
        if not background:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def newest(self, warn: Callable[[str], None]) -> tuple[dict[str, Any], State]:
        """The newest checkpoint that is whole. Damaged ones that are newer are removed, with a warning.

        Raises:
            ResnetlabError: none is whole.
        """
        problems = []
        for file in self.files():
            try:
                found = read(file)
            except ResnetlabError as error:
                problems.append((file, str(error)))
                continue
            for damaged, problem in problems:
                warn(f"{problem} The checkpoint before it is used, of step {found[0]['step']}.")
                damaged.unlink(missing_ok=True)
            return found
        reasons = " ".join(problem for _, problem in problems) or f"{self.folder} has no checkpoint."
        raise ResnetlabError(
            f"There is nothing to resume. {reasons} Start a new run; if this one has good weights, with "
            f"`--weights {shlex.quote(str(self.folder.parent))}`."
        )
