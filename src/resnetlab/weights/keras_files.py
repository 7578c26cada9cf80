"""Keras's files, read as data: HDF5 weights and models of any version, and .keras archives. No model is built."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from resnetlab.errors import ResnetlabError
from resnetlab.models.variants import VARIANTS

BYTES_MOST = 4 << 30  # the largest network has 0.5 GB: a file that claims more is damaged or malicious
_KERAS_ORDER = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        return _hdf5(file, path)


def read_keras(path: Path) -> tuple[dict[str, np.ndarray], str | None, dict[str, Any]]:
    """The weights in a .keras file, and model name and preprocessing of our own. The Keras model is never built."""
    with zipfile.ZipFile(path) as archive:
        for name, most in (("config.json", BYTES_MOST >> 6), ("model.weights.h5", BYTES_MOST)):
            if (size := archive.getinfo(name).file_size) > most:
                raise ResnetlabError(f"{path}: {name} claims {size:,} bytes. Expected a ResNet's weights.")
        config = json.loads(archive.read("config.json"))
        _refuse_programs(config, path)
        return _hdf5(io.BytesIO(archive.read("model.weights.h5")), path), *_read_own_config(config)


def _read_own_config(config: Any) -> tuple[str | None, dict[str, Any]]:
    """The name in `VARIANTS` and the preprocessing in a Keras model's description, where `build` made it."""
    network = config.get("config", {}) if isinstance(config, dict) else {}
    normalize = [x for x in network.get("layers", ()) if x.get("registered_name") == "resnetlab>Normalize"]
    if len(normalize) != 1:
        return None, {}
    names = {name.replace("-", "_"): name for name in VARIANTS}  # a Keras model's name has no hyphen
    return names.get(str(network.get("name"))), {"preprocessing": normalize[0]["config"]["preprocessing"]}


def _hdf5(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    """All weights in Keras's HDF5 files, old ("conv1_conv/kernel") and new (by the layer's name and order)."""
    import h5py

    arrays: dict[str, np.ndarray] = {}
    with h5py.File(file, "r") as opened:
        if isinstance(config := opened.attrs.get("model_config"), (str, bytes)):
            _refuse_programs(json.loads(config), path)
        for place, dataset in _datasets(opened):
            if "/seed_generator/" in place:  # of stochastic depth
                continue
            if dataset.external or dataset.is_virtual:
                raise ResnetlabError(f"{path}: {place} refers to other files: refused, and nothing was read.")
            if dataset.nbytes + sum(a.nbytes for a in arrays.values()) > BYTES_MOST:
                raise ResnetlabError(f"{path}: {place} claims {dataset.nbytes:,} bytes. Expected a ResNet's weights.")
            if (name := _keras_name(place, dataset)) in arrays:
                raise ResnetlabError(f"{path}: received {name} twice, expected each layer's weights once.")
            arrays[name] = np.asarray(dataset[()])
    return arrays


def _datasets(group: Any) -> Iterator[tuple[str, Any]]:
    """Every dataset but an optimizer's. Soft and external links are not followed."""
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) or name in ("optimizer", "optimizer_weights"):
            continue
        child = group[name]
        if isinstance(child, h5py.Group):
            yield from _datasets(child)
        else:
            yield child.name, child


def _keras_name(place: str, dataset: Any) -> str:
    """ "conv1_conv/kernel", from "/model_weights/conv1_conv/conv1_conv/kernel:0" or "/layers/conv2d/vars/0"."""
    *_, layer, weight = place.removesuffix(":0").split("/")
    if layer == "vars" and "name" in dataset.parent.attrs:
        order = _KERAS_ORDER.get(len(dataset.parent), ())
        if "/patch_whitening/" in place:
            order = ("bias", "components")  # what is trained comes first
        layer, weight = dataset.parent.attrs["name"], order[int(weight)] if order else weight
    return f"{layer}/{weight}"


def _refuse_programs(config: Any, path: Path) -> None:
    """Raise ResnetlabError if a Keras model's config contains a Lambda layer, which holds executable code."""
    if isinstance(config, dict):
        if config.get("class_name") in ("Lambda", "__lambda__"):
            raise ResnetlabError(
                f"{path} has a Lambda layer, which holds a program: refused, and nothing of it was run. Expected "
                "a ResNet of keras.applications' layers."
            )
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _refuse_programs(part, path)
