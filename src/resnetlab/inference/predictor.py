"""Predict with the network of a run folder, on images of any size and format."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resnetlab.data.preprocess import ImageProblem, Pixels, load_image
from resnetlab.data.shards import Images
from resnetlab.environment import usable_cores
from resnetlab.errors import UsageError, unknown_name
from resnetlab.evaluation.logits import BATCH_SIZE, centre_crop, predict_logits
from resnetlab.inference.engines import Engine, exported_engine, keras_engine, load_network
from resnetlab.inference.export import default_folder, export, is_current, load_settings
from resnetlab.inference.images import ImageInput
from resnetlab.run_folder import RunFolder

if TYPE_CHECKING:
    import keras

ENGINES = ("keras", "onnx", "openvino")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: of the file; None for an image in memory.
        label: the most probable class; None where the image cannot be used.
        probability: of `label`.
        top: the most probable classes and their probabilities, best first.
        problem: why the image cannot be used; None for all others.
        true_label: the class of an image of the run's own data; otherwise None.
    """

    path: str | None
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    problem: str | None = None
    true_label: str | None = None

    @classmethod
    def of(cls, path: str | None, top: tuple[tuple[str, float], ...], *, true_label: str | None = None) -> Prediction:
        label, probability = top[0]
        return cls(path, label, probability, top, true_label=true_label)

    def to_json(self) -> dict[str, Any]:
        if self.problem is not None:
            return {"path": self.path, "problem": self.problem}
        known = {} if self.true_label is None else {"true": self.true_label}
        classes = [{"class": name, "probability": p} for name, p in self.top]
        return {"path": self.path, **known, "classes": classes}


class Predictor:
    """The best network of a run, ready to take RGB bytes.

    Engines other than Keras use the run's own export in their format and precision. It is created and verified at the
    first use, and again when the weights have changed; only then is Keras loaded.

    Raises:
        UsageError: an unknown engine; an unsupported precision; int8 without an existing export, as it needs data.
        ResnetlabError: no weights yet, or damaged ones; a package is missing; the export failed.
    """

    def __init__(self, run: RunFolder, *, engine: str = "keras", precision: str = "float32") -> None:
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        if engine == "keras" and precision != "float32":
            raise UsageError(f"Received precision {precision!r} with the engine keras, which predicts in float32.")
        self.run = run
        # Weights are float32 whatever the precision of training was, and so is prediction: it runs anywhere.
        self.recipe = run.recipe().changed(precision="float32")
        self.class_names = run.info().class_names
        self.engine: Engine = (
            keras_engine(self.network, self.recipe.test_size)
            if engine == "keras"
            else exported_engine(_exported(run, engine, precision))
        )

    @cached_property
    def network(self) -> keras.Model:
        """The Keras network, independent of the engine."""
        return load_network(self.run)

    def logits(self, images: Images, indices: np.ndarray | None = None, *, mirrored: bool = False) -> np.ndarray:
        """Keras's logits (n, num_classes) of packed images (n, pack_size, pack_size, 3), whichever the engine."""
        indices = np.arange(len(images)) if indices is None else indices
        return predict_logits(self.network, images, indices, size=self.recipe.test_size, mirrored=mirrored)

    def predict(self, images: Iterable[ImageInput], *, top: int = 5) -> Iterator[Prediction]:
        """Predictions in the order of `images`; one that cannot be used has a `problem`, and the others are predicted.

        The images of the next two batches are decoded while one is computed; memory does not grow with their number.
        """
        if top < 1:
            raise UsageError(f"Received top={top}, expected at least 1.")
        decoded = self.read(images)
        while batch := list(islice(decoded, BATCH_SIZE)):
            usable = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
            ranked = iter(self.rank(np.stack(usable), top=top) if usable else ())
            for path, pixels in batch:
                if isinstance(pixels, str):
                    yield Prediction(path, problem=pixels)
                else:
                    yield Prediction.of(path, next(ranked))

    def read(self, images: Iterable[ImageInput]) -> Iterator[tuple[str | None, Pixels | str]]:
        """The path and the packed pixels of each image, or its problem; decoded in threads, two batches ahead."""
        return ahead(self._read, images, count=2 * BATCH_SIZE)

    def rank(self, images: np.ndarray, *, top: int = 5) -> list[tuple[tuple[str, float], ...]]:
        """The `top` classes of each packed image with their probabilities, most probable first."""
        rows: list[tuple[tuple[str, float], ...]] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = centre_crop(images[start : start + BATCH_SIZE], self.recipe.test_size)
            rows += ranked(self.engine(np.ascontiguousarray(batch)), self.class_names, top)
        return rows

    def _read(self, image: ImageInput) -> tuple[str | None, Pixels | str]:
        """The pixels of an image (image_size, image_size, 3), or the problem with it."""
        if image.problem:
            return image.path, image.problem
        try:
            return image.path, load_image(image.content, **load_settings(self.recipe))
        except ImageProblem as problem:
            return image.path, str(problem)


def ranked(probabilities: np.ndarray, class_names: Sequence[str], top: int) -> list[tuple[tuple[str, float], ...]]:
    """The `top` classes of each row of probabilities (n, classes), most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        tuple((class_names[k], float(row[k])) for k in best) for row, best in zip(probabilities, order, strict=True)
    ]


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, count: int) -> Iterator[Result]:
    """`map` in threads, in order, at most `count` items ahead of the consumer.

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


def _exported(run: RunFolder, format: str, precision: str) -> Path:
    """The run's export in this format and precision, created now if there is none for its current weights."""
    folder = default_folder(run, format, precision)
    if not is_current(folder, run):
        if precision == "int8":
            raise UsageError(
                f"{run.path} has no int8 export of its weights, which needs the training images. "
                f"Do: resnetlab export {shlex.quote(str(run.path))} --format {format} --precision int8."
            )
        export(run, format, precision=precision)
    return folder
