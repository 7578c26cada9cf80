"""What several processes or devices that train one run must do together: pause at the same step, and evaluate.

Each process makes its rows of every batch (`data/stream.py`), and the backend adds up the gradients; batch-norm
statistics are those of the whole batch. So a run does not depend on how many devices share the work.
"""

from __future__ import annotations

import keras
import numpy as np

from resnetlab import backend
from resnetlab.data.pack import Pack
from resnetlab.errors import UsageError
from resnetlab.evaluation.logits import predict_logits
from resnetlab.models.from_recipe import build_network
from resnetlab.recipes import Recipe

ASK_EVERY = 10  # steps: to ask the other processes at each would slow them


def require_whole_parts(recipe: Recipe) -> None:
    """Raise UsageError where the devices cannot have equal parts of what is computed at once."""
    if recipe.batch_size // recipe.parts % backend.replicas():
        each = f" in {recipe.parts} parts" if recipe.parts > 1 else ""
        raise UsageError(
            f"Received batch_size={recipe.batch_size}{each} for {backend.replicas()} devices, expected a multiple of "
            "their number: each has an equal part of every batch."
        )
    if backend.mirrored() and (recipe.accumulate != 1 or recipe.precision == "float16"):
        asked = "accumulate" if recipe.accumulate != 1 else "float16"
        raise UsageError(f"{asked} is not for several devices on TensorFlow: use --backend jax, or one device.")


class ProcessGroup:
    """Decisions and results that are the same in all processes; where there is one, they are its own."""

    def __init__(self) -> None:
        self.rank, self.size = backend.process()
        self.is_single = self.size == 1
        self._own: keras.Model | None = None

    def any(self, wanted: bool) -> bool:
        """Whether one process wants it; all must ask."""
        return wanted if self.is_single else bool(backend.gather(np.array([wanted])).any())

    def should_pause(self, wanted: bool, steps: int) -> bool:
        """Whether to pause after so many steps; several processes decide it every few steps."""
        return wanted if self.is_single else steps % ASK_EVERY == 0 and self.any(wanted)

    def logits(self, network: keras.Model, recipe: Recipe, pack: Pack, indices: np.ndarray) -> np.ndarray:
        """Logits of `pack.images[indices]`; each process computes a part of them, once for each image."""
        if self.is_single and not backend.mirrored():
            return predict_logits(network, pack.images, indices, size=recipe.test_size, multiple=backend.replicas())
        values = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.variables]
        with backend.one_device():
            if self._own is None:
                self._own = build_network(recipe, len(pack.class_names))
            for variable, value in zip(self._own.variables, values, strict=True):
                variable.assign(value)
            equal = np.resize(indices, -(-len(indices) // self.size) * self.size)  # the first ones again at the end
            mine = predict_logits(self._own, pack.images, equal[self.rank :: self.size], size=recipe.test_size)
        return np.swapaxes(backend.gather(mine), 0, 1).reshape(len(equal), -1)[: len(indices)]
