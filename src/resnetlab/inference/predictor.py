"""Prediction with the network of a run folder, on images as they come."""

from __future__ import annotations

import glob
import shlex
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resnetlab.data.preprocess import ImageProblem, Pixels, load_image
from resnetlab.data.walk import is_clutter, is_skipped, listed_endings, scan
from resnetlab.environment import usable_cores
from resnetlab.errors import UsageError, unknown
from resnetlab.evaluation.logits import BATCH_SIZE, centre_crop, predict_logits
from resnetlab.inference.engines import Engine, exported_engine, keras_engine, load_network
from resnetlab.inference.export import default_folder, export, is_current, load_settings
from resnetlab.run import Run

if TYPE_CHECKING:
    import keras

ENGINES = ("keras", "onnx", "openvino")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, most probable first; or the problem that kept it from being read."""

    path: str
    classes: tuple[tuple[str, float], ...] = ()
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.problem:
            return {"path": self.path, "problem": self.problem}
        return {"path": self.path, "classes": [{"class": name, "probability": p} for name, p in self.classes]}


class Predictor:
    """The best network of a run, ready to take RGB bytes.

    Engines other than Keras run the run's own export of that format and precision. It is made, and verified, when it is
    first asked for, and again when the weights have changed; only then is Keras loaded.

    Raises:
        UsageError: an unknown engine; a precision that it has not; int8 that was not exported before, which needs data.
        ResnetlabError: no weights yet, or damaged ones; a package is missing; the export failed.
    """

    def __init__(self, run: Run, *, engine: str = "keras", precision: str = "float32") -> None:
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        if engine == "keras" and precision != "float32":
            raise UsageError(f"Received precision {precision!r} with the engine keras, which predicts in float32.")
        self.run = run
        # Weights are float32 whatever the precision of training was, and so is prediction: it runs anywhere.
        self.recipe = run.recipe().changed(precision="float32")
        self.class_names: tuple[str, ...] = tuple(run.facts()["class_names"])
        self.engine: Engine = (
            keras_engine(self.network, self.recipe.test_size)
            if engine == "keras"
            else exported_engine(_exported(run, engine, precision))
        )

    @cached_property
    def network(self) -> keras.Model:
        """The network in Keras, whichever the engine."""
        return load_network(self.run)

    def logits(self, images: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Keras's logits (n, num_classes) of packed images (n, pack_size, pack_size, 3), whichever the engine."""
        indices = np.arange(len(images)) if indices is None else indices
        return predict_logits(self.network, images, indices, size=self.recipe.test_size)

    def predict(self, paths: Iterable[Path], *, top: int = 5) -> Iterator[Prediction]:
        """Predictions in the order of `paths`. A file that cannot be read is reported, and the rest go on.

        The files of the next two batches are decoded while one is computed; memory does not grow with their number.
        """
        decoded = ahead(self._read, paths, count=2 * BATCH_SIZE)
        while batch := list(islice(decoded, BATCH_SIZE)):
            images = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
            ranked = iter(self.rank(np.stack(images), top=top) if images else ())
            for path, pixels in batch:
                if isinstance(pixels, str):
                    yield Prediction(str(path), problem=pixels)
                else:
                    yield Prediction(str(path), classes=next(ranked))

    def rank(self, images: np.ndarray, *, top: int = 5) -> list[tuple[tuple[str, float], ...]]:
        """The `top` classes of each packed image with their probabilities, most probable first."""
        rows: list[tuple[tuple[str, float], ...]] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = centre_crop(images[start : start + BATCH_SIZE], self.recipe.test_size)
            probabilities = self.engine(np.ascontiguousarray(batch))
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
            rows += [
                tuple((self.class_names[k], float(row[k])) for k in best)
                for row, best in zip(probabilities, order, strict=True)
            ]
        return rows

    def _read(self, path: Path) -> tuple[Path, Pixels | str]:
        """The pixels of a file (image_size, image_size, 3), or the problem with it."""
        try:
            return path, load_image(path, **load_settings(self.recipe))
        except ImageProblem as problem:
            return path, str(problem)


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, count: int) -> Iterator[Result]:
    """`map` in threads, in order: at most `count` items are taken that the consumer has not had yet.

    Threads, as Pillow decodes without the interpreter's lock.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="ahead")
    try:
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(remaining, count))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:  # the consumer may have stopped early
        pool.shutdown(cancel_futures=True)


def _exported(run: Run, format: str, precision: str) -> Path:
    """The run's export of this kind, made now if there is none of the weights it has."""
    folder = default_folder(run, format, precision)
    if not is_current(folder, run):
        if precision == "int8":
            raise UsageError(
                f"{run.path} has no int8 export of its weights, which needs the training images. "
                f"Do: resnetlab export {shlex.quote(str(run.path))} --format {format} --precision int8."
            )
        export(run, format, precision=precision)
    return folder


def expand(arguments: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Files, folders (walked through as for training, see `data.walk`) and globs to image files, with notes.

    A file that is named is kept whatever its ending, so that a problem with it is reported; what systems leave
    behind ("Thumbs.db", "@eaDir") is left out even so, for a shell's "*" names it too.

    Raises:
        UsageError: an argument that matches nothing.
    """
    paths: list[Path] = []
    notes: list[str] = []
    ignored: Counter[str] = Counter()
    for argument in arguments:
        path = Path(argument)
        if path.exists() and is_clutter(path.name):
            notes.append(f"left out: {argument}, a name that is never data")
        elif path.is_dir():
            tree = scan(path)
            others = tree.other_endings()
            if not tree.num_images:
                only = f", only {listed_endings(others)}" if others else ""
                raise UsageError(f"Folder {argument}: received no image{only}; expected files like *.jpg in it.")
            ignored += others
            paths += tree.image_paths()
        elif path.exists():
            paths.append(path)
        else:
            found = _matches(argument)
            if not found:
                raise UsageError(f"No file matches {argument!r}. Expected image files, folders, or a quoted glob.")
            paths += found
    if ignored:
        notes.append(f"ignored: files that are no images by their ending: {listed_endings(ignored)}")
    if not paths:
        raise UsageError(f"Received no image: {'; '.join(notes)}. Expected image files, folders, or a quoted glob.")
    return paths, notes


def _matches(pattern: str) -> list[Path]:
    """Files that match a glob, without those in places that the walk skips, unless the pattern names them."""
    named = set(Path(pattern).parts)
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    return [p for p in matches if p.is_file() and not any(is_skipped(part) for part in p.parts if part not in named)]
