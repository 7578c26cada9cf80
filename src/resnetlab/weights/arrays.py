"""The weights of a network by name, whatever holds them."""

from __future__ import annotations

from typing import Any

import numpy as np


def collect_arrays(reference: Any) -> dict[str, np.ndarray]:
    """Names and arrays of a `keras.Model` ("conv1_conv/kernel") or of a PyTorch state dict ("conv1.weight")."""
    import keras

    if isinstance(reference, keras.Model):
        return {
            f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
            for layer in reference.layers
            for variable in layer.weights
        }
    return {
        name: tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)
        for name, tensor in reference.items()
    }
