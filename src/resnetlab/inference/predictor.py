"""Prediction with the network of a run folder, on images as they come."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnetlab.data.images import ImageProblem, decode, fit_square
from resnetlab.data.sources import IMAGE_SUFFIXES
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.evaluation.logits import BATCH_SIZE, predict_logits
from resnetlab.evaluation.metrics import softmax
from resnetlab.run import Run
from resnetlab.training.fit import network_for


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
    """The best network of a run, ready to take RGB bytes."""

    def __init__(self, run: Run) -> None:
        facts = run.facts()
        # Weights are float32 whatever the precision of training was, and so is prediction: it runs anywhere.
        self.recipe = run.recipe().changed(precision="float32")
        self.class_names: tuple[str, ...] = tuple(facts["class_names"])
        self.network: keras.Model = network_for(self.recipe, len(self.class_names))
        weights = run.weights()
        try:
            with warnings.catch_warnings():  # beside its error, Keras warns of each part that does not fit
                warnings.simplefilter("ignore", UserWarning)
                self.network.load_weights(weights)
        except (OSError, ValueError, KeyError) as error:
            raise ResnetlabError(f"{weights} cannot be loaded into {self.recipe.model}: {error}.") from None

    def logits(self, images: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Logits (n, num_classes) of packed images (n, pack_size, pack_size, 3)."""
        indices = np.arange(len(images)) if indices is None else indices
        return predict_logits(self.network, images, indices, size=self.recipe.image_size)

    def predict(self, paths: Iterable[Path], *, top: int = 5) -> Iterator[Prediction]:
        """Predictions in the order of `paths`. A file that cannot be read is reported, and the rest go on."""
        remaining = iter(paths)
        while batch := list(islice(remaining, BATCH_SIZE)):
            images: list[np.ndarray] = []
            problems: dict[int, str] = {}
            for place, path in enumerate(batch):
                try:
                    size = self.recipe.pack_size
                    images.append(fit_square(decode(path, size=size).image, size, self.recipe.interpolation))
                except ImageProblem as problem:
                    problems[place] = str(problem)
            ranked = iter(self.rank(np.stack(images), top=top) if images else ())
            for place, path in enumerate(batch):
                if place in problems:
                    yield Prediction(str(path), problem=problems[place])
                else:
                    yield Prediction(str(path), classes=next(ranked))

    def rank(self, images: np.ndarray, *, top: int = 5) -> list[tuple[tuple[str, float], ...]]:
        """The `top` classes of each packed image with their probabilities, most probable first."""
        probabilities = softmax(self.logits(images))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            tuple((self.class_names[k], float(row[k])) for k in best)
            for row, best in zip(probabilities, order, strict=True)
        ]


def expand(arguments: Iterable[str]) -> list[Path]:
    """Files, folders (searched through for images) and globs to image files.

    A file that is named is kept whatever its ending, so that a problem with it is reported.

    Raises:
        UsageError: an argument that matches nothing.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not found:
                raise UsageError(f"Folder {argument}: received no image, expected files like *.jpg or *.png in it.")
        elif path.exists():
            found = [path]
        else:
            found = sorted(p for match in glob.glob(argument, recursive=True) if (p := Path(match)).is_file())
            if not found:
                raise UsageError(f"No file matches {argument!r}. Expected image files, folders, or a quoted glob.")
        paths += found
    return paths
