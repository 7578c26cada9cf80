"""The network that a server serves: of a run, with overlays, or of an export, without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from resnetlab.data.preprocess import Pixels, load_image
from resnetlab.inference.engines import Engine, export_facts, exported_engine
from resnetlab.inference.export import load_settings
from resnetlab.inference.predictor import Predictor
from resnetlab.inference.verification import LoadSettings
from resnetlab.run_folder import as_written

Draw = Callable[[np.ndarray, Sequence[int]], list[Image.Image]]
NONE_OF_AN_EXPORT = "an export has no gradients: serve the run folder instead"
TURNED_OFF = "they were turned off when the server was started"


@dataclass(frozen=True)
class ServedModel:
    """A network ready to predict.

    Attributes:
        name: of the architecture.
        folder: name of the folder of the run or export.
        class_names: one for each probability.
        settings: arguments of `load_image`.
        engine_name, precision: what computes.
        engine: from images to probabilities.
        draw: Grad-CAM of one class of each image over it; None where there is none.
        no_overlays: why there is none.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]
    settings: LoadSettings
    engine_name: str
    precision: str
    engine: Engine
    draw: Draw | None = None
    no_overlays: str | None = None

    @property
    def image_size(self) -> int:
        return self.settings["centre_crop"]

    def decode(self, content: bytes, *, max_pixels: int) -> Pixels:
        """The network's input of an image file; raises ImageProblem."""
        return load_image(content, **self.settings, pixel_limit=max_pixels)

    def warm_up(self, largest: int) -> None:
        """Compute a batch of each size that is compiled, and an overlay: failures are seen early; no request waits."""
        grey = np.repeat(self.grey_image[None], largest, axis=0)
        compiled = {1 << power for power in range(largest.bit_length())} if self.engine_name == "keras" else set()
        for count in sorted({1, largest} | compiled):
            self.engine(grey[:count])
        if self.draw is not None:
            self.draw(grey[:1], [0])

    @property
    def grey_image(self) -> Pixels:
        """An input of the network, to try whether it computes."""
        return np.full((self.image_size, self.image_size, 3), 127, np.uint8)


def of_run(predictor: Predictor, engine: str, precision: str, *, explainer: Predictor | None) -> ServedModel:
    """The network of a run.

    Args:
        predictor: with this engine and precision.
        explainer: with Keras, for overlays; None to serve without.
    """
    draw: Draw | None = None
    if explainer is not None:
        from resnetlab.inference.explanation import overlays  # which imports Keras

        draw = partial(overlays, explainer)
    return ServedModel(
        name=predictor.recipe.model,
        folder=predictor.run.path.resolve().name,
        class_names=tuple(map(as_written, predictor.class_names)),
        settings=load_settings(predictor.recipe),
        engine_name=engine,
        precision=precision,
        engine=_in_powers_of_two(predictor.engine) if engine == "keras" else predictor.engine,
        draw=draw,
        no_overlays=None if draw else TURNED_OFF,
    )


def of_export(folder: Path) -> ServedModel:
    """The network of an export. Raises ResnetlabError where the folder is none, or its runtime is missing."""
    engine = exported_engine(folder)
    facts = export_facts(folder)
    return ServedModel(
        name=facts["model"],
        folder=folder.resolve().name,
        class_names=tuple(map(as_written, facts["class_names"])),
        settings=facts["preprocessing"],
        engine_name=facts["format"],
        precision=facts["precision"],
        engine=engine,
        no_overlays=NONE_OF_AN_EXPORT,
    )


def _in_powers_of_two(engine: Engine) -> Engine:
    """Pad batches to 1, 2, 4, ... images: a backend compiles the network for every new batch size."""

    def padded(images: np.ndarray) -> np.ndarray:
        missing = (1 << (len(images) - 1).bit_length()) - len(images)
        return engine(np.concatenate([images, np.repeat(images[:1], missing, axis=0)]))[: len(images)]

    return padded
