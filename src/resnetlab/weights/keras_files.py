"""Keras's files, read as data: HDF5 weights and models of any version, and .keras archives. No model is built."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from resnetlab.errors import ResnetlabError
from resnetlab.models.variants import VARIANTS
from resnetlab.untrusted import MAX_BYTES, check_hdf5, hdf5_datasets, parse_json, read_member

_HEADS = (None, "linear", "softmax")  # activations
_KERAS_ORDER = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        return _hdf5(file, path)


def read_keras(path: Path) -> tuple[dict[str, np.ndarray], str | None, dict[str, Any]]:
    """The weights in a .keras file, and model name and preprocessing of our own. The Keras model is never built."""
    with zipfile.ZipFile(path) as archive:
        config = parse_json(read_member(archive, "config.json", max_bytes=MAX_BYTES >> 6))
        _require_plain_layers(config, path)
        content = io.BytesIO(read_member(archive, "model.weights.h5", max_bytes=MAX_BYTES))
        return _hdf5(content, path), *_read_own_config(config)


def _read_own_config(config: Any) -> tuple[str | None, dict[str, Any]]:
    """The name in `VARIANTS` and the preprocessing in a Keras model's description, where `build` made it."""
    network = config.get("config", {}) if isinstance(config, dict) else {}
    normalize = [x for x in network.get("layers", ()) if x.get("registered_name") == "resnetlab>Normalize"]
    if len(normalize) != 1:
        return None, {}
    names = {name.replace("-", "_"): name for name in VARIANTS}  # a Keras model's name has no hyphen
    return names.get(str(network.get("name"))), {"preprocessing": normalize[0]["config"]["preprocessing"]}


def _hdf5(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    """All weights in Keras's HDF5 files but an optimizer's: old ("conv1_conv/kernel") and new (by layer and order)."""
    import h5py

    arrays: dict[str, np.ndarray] = {}
    check_hdf5(path, file)
    with h5py.File(file, "r") as opened:
        if isinstance(config := opened.attrs.get("model_config"), (str, bytes)):
            _require_plain_layers(parse_json(config), path)
        for dataset in hdf5_datasets(path, opened, without=("optimizer", "optimizer_weights")):
            place = dataset.name
            if "/seed_generator/" in place:  # of stochastic depth
                continue
            if (name := _keras_name(place, dataset)) in arrays:
                raise ResnetlabError(f"{path}: received {name} twice, expected each layer's weights once.")
            arrays[name] = np.asarray(dataset[()])
    return arrays


def _keras_name(place: str, dataset: Any) -> str:
    """ "conv1_conv/kernel", from "/model_weights/conv1_conv/conv1_conv/kernel:0" or "/layers/conv2d/vars/0"."""
    *_, layer, weight = place.removesuffix(":0").split("/")
    if layer == "vars" and "name" in dataset.parent.attrs:
        order = _KERAS_ORDER.get(len(dataset.parent), ())
        if "/patch_whitening/" in place:
            order = ("bias", "components")  # what is trained comes first
        layer, weight = dataset.parent.attrs["name"], order[int(weight)] if order else weight
    return f"{layer}/{weight}"


# Layers without weights that change what the network computes, and what is expected in their place.
_UNEXPECTED = {
    "Rescaling": "images are scaled outside of the saved model: save the ResNet inside it, without this layer",
    "Normalization": "images are normalised outside of the saved model: save the ResNet inside it, without this layer",
    "Resizing": "images are resized outside of the saved model: save the ResNet inside it, without this layer",
    "CenterCrop": "images are cropped outside of the saved model: save the ResNet inside it, without this layer",
    "GlobalMaxPooling2D": "GlobalAveragePooling2D before the head",
}


def _require_plain_layers(config: Any, path: Path) -> None:
    """Raise ResnetlabError if a Keras model has a layer that is not in the networks here, and has no weights to tell.

    Also for a Lambda layer, which holds executable code, and for a head that is not a softmax.
    """
    if isinstance(config, dict):
        kind, inner = config.get("class_name"), config.get("config")
        if kind in _UNEXPECTED:
            raise ResnetlabError(f"{path} has a layer {kind}; expected {_UNEXPECTED[kind]}.")
        if kind == "Dense" and isinstance(inner, dict) and inner.get("activation") not in _HEADS:
            raise ResnetlabError(
                f"{path}: the head has the activation {inner['activation']!r}; expected softmax or none, as the "
                "probabilities here are a softmax."
            )
        if config.get("class_name") in ("Lambda", "__lambda__"):
            raise ResnetlabError(
                f"{path} has a Lambda layer, which holds a program: refused, and nothing of it was run. Expected "
                "a ResNet of keras.applications' layers."
            )
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _require_plain_layers(part, path)
