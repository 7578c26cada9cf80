"""Weights in: other implementations' weights become a run folder like any other, checked against their source.

Every array of the source and every weight of our network is used exactly once, or nothing is (`naming.py`); what the
source says of normalisation, size, crop, interpolation, class names and licence goes along (`checkpoints.py`); and
where the source's own implementation is installed, its logits are compared with ours (`references.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnetlab import environment, kernels, results
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.folders import made_whole, named
from resnetlab.models import references
from resnetlab.models.checkpoints import Checkpoint, class_names_for
from resnetlab.models.naming import Arrays, Naming, listing, recognise
from resnetlab.models.resnet import build
from resnetlab.recipes import BASE, INPUT_KEYS
from resnetlab.run import Run

TOLERANCE = 1e-4  # of the logits' scale: what float32 leaves between two ways to compute them


def arrays_of(reference: Any) -> dict[str, np.ndarray]:
    """Names and arrays of a `keras.Model` ("conv1_conv/kernel") or of a PyTorch state dict ("conv1.weight")."""
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


def port(model: keras.Model, source: Arrays, naming: Naming) -> None:
    """Set all weights of `model` to those of `source`.

    Raises:
        ResnetlabError: an array is missing, left over, or of another shape. The model is then as it was.
    """
    variables = [(layer.name, variable) for layer in model.layers for variable in layer.weights]
    targets = [(layer, variable.name, tuple(variable.shape)) for layer, variable in variables]
    if problems := naming.problems(source, targets):
        raise ResnetlabError(f"These are not the weights of {model.name!r}: {listing(problems)}.")
    for layer, variable in variables:
        array = source[naming.of(layer, variable.name)]
        variable.assign(naming.layout(array, len(variable.shape)))


def port_to_run(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Run:
    """Make a run folder of a checkpoint, whose `port.json` says where it came from and how it was checked.

    Args:
        checkpoint: as `checkpoints.read` returns it.
        folder: of the new run.
        model: row of the table, where weights of the same shapes are not enough to tell.
        settings: of a recipe, of its `INPUT_KEYS`, over what the checkpoint says.
        class_names: one for each logit, over the checkpoint's.

    Raises:
        ResnetlabError: not the weights of any network here, or our logits are not the source implementation's.
        UsageError: the folder is not vacant, or a setting is out of range.
    """
    folder = named(folder)
    Run.require_vacant(folder)
    arch, naming, num_classes = recognise(checkpoint.arrays, model=model, stride_on=checkpoint.stride_on)
    names = class_names or class_names_for(checkpoint, num_classes)
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise UsageError(
            f"Received {len(set(names))} different class names, expected {num_classes}: one for each logit."
        )
    stated = checkpoint.settings | dict(settings or {})
    # What a source does not say is what is usual: the shorter side to 256, the middle 224 of it.
    recipe = BASE.changed(
        name="ported",
        description=f"weights of {checkpoint.origin}",
        **({"model": arch.name, "crop": "resized", "image_size": arch.reference_size} | stated),
    )
    arch = replace(arch, preprocessing=recipe.preprocessing or arch.preprocessing)
    network = build(arch, num_classes=num_classes)
    port(network, checkpoint.arrays, naming)
    check = _check(network, checkpoint.origin, arch.name, naming.family, recipe.image_size, arch.preprocessing)

    try:
        with made_whole(folder) as building:
            run = Run.create(
                building,
                recipe=recipe,
                environment=environment.snapshot(),
                facts={
                    "data": None,
                    "source": checkpoint.origin,
                    "commit": results.commit(),
                    "class_names": list(names),
                    "model": arch.name,
                },
            )
            run.write_split(())
            run.save_weights("best.weights.h5", network)
            told = {
                "origin": checkpoint.origin,
                "sha256": _digest(checkpoint.arrays),
                "family": naming.family,
                "arrays": len(checkpoint.arrays),
                "licence": checkpoint.licence,
                "assumed": [key for key in INPUT_KEYS if key not in stated]
                + ([] if names in (class_names, checkpoint.class_names) else ["class names"]),
                "check": check,
            }
            run.write_json("port.json", told)
            run.update(status="ported")
    except OSError as error:
        raise ResnetlabError(f"Cannot write the run folder {folder}: {error.strerror or error}.") from error
    return Run.open(folder)


def _check(network: keras.Model, source: str, row: str, family: str, size: int, preprocessing: str) -> dict[str, Any]:
    """Our logits against the source implementation's, where that can run."""
    reference = references.logits(source, row, family, size=size, preprocessing=preprocessing)
    if isinstance(reference, str):
        return {"against": None, "why": reference}
    expected, by = reference
    with kernels.full_float32():
        received = np.asarray(network.predict_on_batch(references.images(size)), np.float32)
    scale = float(np.abs(expected).max())
    difference = float(np.abs(received - expected).max()) / (scale or 1.0)
    if not difference <= TOLERANCE:
        raise ResnetlabError(
            f"The logits of {row!r} with the weights of {source} differ from those of {by} by {difference:.1e} "
            f"of their scale, expected at most {TOLERANCE:.0e}. Nothing was written. Choose another row with --model."
        )
    return {"against": by, "difference": difference, "scale": scale}


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
