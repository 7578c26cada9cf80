"""The weights of a network, kept while it is trained for a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np


@contextmanager
def preserved_weights(network: keras.Model) -> Iterator[None]:
    """Within the context the network may be trained; after it, its variables are as they were."""
    initial = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.variables]
    try:
        yield
    finally:
        for variable, value in zip(network.variables, initial, strict=True):
            variable.assign(value)
