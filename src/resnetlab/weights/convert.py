"""Import: the weights of other implementations become an ordinary run folder, checked against their source.

Either every array of the source and every weight of our network is matched exactly once, or the import fails
(`mapping.py`). Normalisation, size, crop, interpolation, class names and licence are imported if the source states
them (`readers.py`). If the source's own implementation is installed, its logits are compared with ours (`parity.py`).
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from resnetlab import backend
from resnetlab.atomic import atomic_folder, without_dots
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.resnet import build
from resnetlab.models.variants import Architecture
from resnetlab.recipes import BASE, INPUT_KEYS, Recipe
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.weights import parity
from resnetlab.weights.libraries import require_known_architecture
from resnetlab.weights.mapping import Arrays, Naming, also_fitting, cifar_repositories, listing, recognise
from resnetlab.weights.readers import Checkpoint, find_class_names

HEAD = "head_logits"
# The order of the labels in CIFAR-10's own files.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Padding = Literal["both", "end"]
TOLERANCE = 1e-4  # relative to the largest logit: float32 rounding between two implementations


def assign_weights(model: keras.Model, source: Arrays, naming: Naming, *, head: bool = True) -> None:
    """Set all weights of `model` to those of `source`; without `head`, its head stays as it is.

    Raises:
        ResnetlabError: an array is missing, left over, or of another shape. The model is then as it was.
    """
    variables = [
        (layer.name, variable)
        for layer in model.layers
        if head or layer.name != HEAD
        for variable in layer.weights
        if "seed_generator" not in variable.path
    ]
    targets = [(layer, variable.name, tuple(variable.shape)) for layer, variable in variables]
    if problems := naming.problems(source, targets):
        raise ResnetlabError(f"These are not the weights of {model.name!r}: {listing(problems)}.")
    for layer, variable in variables:
        array = source[naming.of(layer, variable.name)]
        variable.assign(naming.layout(array, len(variable.shape)))


def permute_padded_channels(network: keras.Model, arch: Architecture) -> None:
    """Reorder the channels of a network with shortcut A whose weights were trained with zeros on both sides.

    Where a stage is wider, akamaster's CIFAR networks pad a quarter of its channels with zeros before the identity and
    a quarter after; ours pads at the end. With the identity's channels first the network computes exactly the same.
    """
    order = list(range(arch.widths[0] * arch.expansion))
    for stage, depth in enumerate(arch.depths, start=1):
        channels = arch.widths[stage - 1] * arch.width_factor * arch.expansion
        before = order
        if channels > len(order):
            first = (channels - len(order)) // 2
            identity = [first + place for place in order]
            order = identity + [place for place in range(channels) if place not in set(identity)]
        for index in range(1, depth + 1):
            name, last = f"stage{stage}_block{index}", 3 if arch.block == "bottleneck" else 2
            _permute(network, f"{name}_conv1", before if index == 1 else order, axis=-2)
            _permute(network, f"{name}_conv{last}", order, axis=-1)
            _permute(network, f"{name}_bn{last}", order, axis=-1)
    _permute(network, HEAD, order, axis=0, weights=("kernel",))


def _permute(
    network: keras.Model, layer: str, order: list[int], *, axis: int, weights: tuple[str, ...] | None = None
) -> None:
    for variable in network.get_layer(layer).weights:
        if weights is None or variable.name in weights:
            variable.assign(np.take(keras.ops.convert_to_numpy(variable), order, axis=axis))


def import_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    class_names: tuple[str, ...] | None = None,
    shortcut_padding: Padding | None = None,
    new_head: bool = False,
    check: bool = True,
) -> RunFolder:
    """Make a run folder of a checkpoint, whose `import.json` records where it came from and how it was checked.

    Args:
        checkpoint: as `readers.read` returns it.
        folder: of the new run.
        model: name of the model, where weights of the same shapes are ambiguous.
        settings: values of the recipe's `INPUT_KEYS`, which override those of the checkpoint.
        class_names: one for each logit, instead of the checkpoint's.
        shortcut_padding: where a shortcut A of the source adds its zero channels; None: the convention of its family.
        new_head: the weights are for training with a new head, so the source need not have a linear head.
        check: compare our logits with those of the source's implementation, where it is installed.

    Raises:
        ResnetlabError: the weights match no architecture, or our logits differ from the source implementation's.
        UsageError: the folder is not empty, or a setting is out of range.
    """
    folder = without_dots(folder)
    RunFolder.require_empty(folder)
    headless = _has_no_head(checkpoint)
    arch, naming, num_classes = recognise(
        checkpoint.arrays, model=model or checkpoint.model, stride_on=checkpoint.stride_on, head=not headless
    )
    if headless and not new_head:
        raise ResnetlabError(_no_head(checkpoint))
    if num_classes == 1 and not new_head:
        raise ResnetlabError(
            f"{checkpoint.origin}: received a head of one logit (a sigmoid), expected one logit for each class, as the "
            f"probabilities here are a softmax. To train a new head: resnetlab train DATA --weights {checkpoint.origin}"
        )
    if checkpoint.architecture not in (None, "resnet") and model is None:
        require_known_architecture(checkpoint.origin, checkpoint.architecture)
    if checkpoint.linear and arch.stem == "cifar":  # without projections its names are torchvision's too
        naming = cifar_repositories(arch)
    names = ("no head",) if headless else _class_names(checkpoint, arch, num_classes, class_names)
    stated = checkpoint.settings | dict(settings or {})
    settings = _default_settings(arch, naming) | stated
    if stated.get("crop_pct", 1.0) < 1.0:  # the middle of larger images, whatever is usual
        settings["crop"] = "resized"
    if settings.get("crop", BASE.crop) != "resized":
        settings.pop("crop_pct", None)  # nothing is cropped
    recipe = BASE.changed(name="imported", description=f"weights of {checkpoint.origin}", **settings)
    arch = replace(arch, preprocessing=recipe.preprocessing or arch.preprocessing)
    network = build(arch, num_classes=num_classes)
    assign_weights(network, checkpoint.arrays, naming, head=not headless)
    assumed = _pad_shortcuts(network, arch, naming, shortcut_padding)
    checked: dict[str, Any] = {"against": None, "why": "without a head there are no logits"}
    if not headless:
        checked = (
            _check(network, checkpoint, arch.name, naming.family, recipe.test_size, arch.preprocessing)
            if check
            else {"against": None, "why": "not asked for"}
        )
    assumed += [key for key in INPUT_KEYS if key not in stated]
    assumed += [] if headless or names in (class_names, checkpoint.class_names) else ["class names"]
    if not (model or checkpoint.model or checkpoint.architecture) and (others := also_fitting(arch)):
        assumed.append(f"architecture ({' and '.join(others)} {'have' if others[1:] else 'has'} the same shapes)")
    record = _source_record(checkpoint) | {"family": naming.family, "assumed": assumed, "check": checked}
    info = RunInfo(status="imported", model=arch.name, class_names=names, source=checkpoint.origin)
    return _write_run(folder, network, recipe, info, record)


def _source_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of import.json that describe the source."""
    return {
        "origin": checkpoint.origin,
        "sha256": _digest(checkpoint.arrays),
        "arrays": len(checkpoint.arrays),
        "licence": checkpoint.licence,
        "note": checkpoint.note,
    }


def _class_names(
    checkpoint: Checkpoint, arch: Architecture, num_classes: int, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The given class names, else the checkpoint's, else the default ones for this number of classes."""
    names = given or find_class_names(checkpoint, num_classes)
    if given is None and checkpoint.class_names is None and arch.stem == "cifar" and num_classes == 10:
        names = CIFAR10
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise UsageError(
            f"Received {len(set(names))} different class names, expected {num_classes}: one for each logit."
        )
    return names


def _pad_shortcuts(network: keras.Model, arch: Architecture, naming: Naming, padding: Padding | None) -> list[str]:
    """Reorder channels if the source pads its shortcuts on both sides; returns the assumption made, if any."""
    if arch.shortcut != "A" or naming.family == "resnetlab":
        if padding:
            raise UsageError(f"Received shortcut padding {padding!r}, and {arch.name} has no zero-padded shortcuts.")
        return []
    usual: Padding = "both" if naming.family == "CIFAR repositories" else "end"
    if (padding or usual) == "both":
        permute_padded_channels(network, arch)
    return [] if padding else [f"shortcut padding {usual}"]


def _write_run(folder: Path, network: keras.Model, recipe: Recipe, info: RunInfo, record: dict[str, Any]) -> RunFolder:
    try:
        with atomic_folder(folder) as building:
            run = RunFolder.create(building, recipe=recipe, info=info)
            run.write_split(())
            run.save_weights("best.weights.h5", network)
            run.write_json("import.json", record)
    except OSError as error:
        raise ResnetlabError(f"Cannot write the run folder {folder}: {error.strerror or error}.") from error
    return RunFolder.open(folder)


def _default_settings(arch: Architecture, naming: Naming) -> dict[str, Any]:
    """Defaults for what a source does not state: for ImageNet a 224 crop of a shorter side of 256, for CIFAR no crop.

    akamaster's networks (shortcut A) were trained with ImageNet's mean and standard deviation.
    """
    if arch.stem != "cifar":
        return {"model": arch.name, "crop": "resized", "image_size": arch.reference_size}
    usual: dict[str, Any] = {"model": arch.name, "crop": "none", "image_size": arch.reference_size}
    if naming.family == "CIFAR repositories" and arch.shortcut == "A":
        usual["preprocessing"] = "imagenet"
    return usual


def _has_no_head(checkpoint: Checkpoint) -> bool:
    names = ("fc.weight", "classifier.1.weight", "predictions/kernel", f"{HEAD}/kernel")
    return bool(checkpoint.foreign_head) or not any(name in checkpoint.arrays for name in names)


def _no_head(checkpoint: Checkpoint) -> str:
    found = (
        f"a head that is not one linear layer ({', '.join(checkpoint.foreign_head[:4])})"
        if checkpoint.foreign_head
        else f"no head among its {len(checkpoint.arrays)} arrays ({', '.join(list(checkpoint.arrays)[-3:])})"
    )
    return (
        f"{checkpoint.origin}: received {found}, expected one linear layer, such as fc.weight and fc.bias. To train "
        f"a new head on these weights: resnetlab train DATA --weights {shlex.quote(checkpoint.origin)}."
    )


def _check(
    network: keras.Model, checkpoint: Checkpoint, model: str, family: str, size: int, preprocessing: str
) -> dict[str, Any]:
    """Compare our logits with the source implementation's, if that can be run."""
    source = checkpoint.origin
    reference = parity.logits(source, model, family, size=size, preprocessing=preprocessing, key=checkpoint.key)
    if isinstance(reference, str):
        return {"against": None, "why": reference}
    expected, by = reference
    with backend.full_float32():
        received = np.asarray(network.predict_on_batch(parity.images(size)), np.float32)
    scale = float(np.abs(expected).max())
    difference = float(np.abs(received - expected).max()) / (scale or 1.0)
    if not difference <= TOLERANCE:
        raise ResnetlabError(
            f"The logits of {model!r} with the weights of {source} differ from those of {by} by {difference:.1e} "
            f"of their scale, expected at most {TOLERANCE:.0e}. Nothing was written. "
            "Choose another architecture with --model."
        )
    return {"against": by, "difference": difference, "scale": scale}


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
