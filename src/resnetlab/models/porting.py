"""Weights in: from other implementations of the same architecture, each with its own names and layouts.

A reference model is a mapping of names to arrays (`arrays_of`). A `Naming` says under which of those names each of our
layers finds its weights. `port` copies them, and accepts nothing left over, nothing missing and no other shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.architectures import Architecture

Arrays = Mapping[str, np.ndarray]

_STEPS_SEEN = "num_batches_tracked"  # PyTorch counts them in each batch norm; nothing here needs them

_TORCH_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a reference implementation names and lays out what our layers need.

    Args:
        outside: our names of the layers of stem and head to theirs.
        block: (stage, block), both from 1, to what their names of a block's layers begin with.
        parts: what our names of a block's layers end with ("conv1", "shortcut_bn") to what theirs end with.
        weights: our names of one layer's weights to theirs, where they differ.
        separator: between a layer's name and a weight's.
        transposed: kernels are (out, in, k, k) and (out, in), where ours are (k, k, in, out) and (in, out).
    """

    outside: Mapping[str, str]
    block: Callable[[int, int], str]
    parts: Mapping[str, str]
    weights: Mapping[str, str]
    separator: str
    transposed: bool

    def of(self, layer: str, weight: str) -> str:
        """Their name of our `layer`'s `weight`."""
        if match := re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", layer):
            theirs = self.block(int(match[1]), int(match[2])) + self.parts.get(match[3], f"({layer})")
        else:
            theirs = self.outside.get(layer, f"({layer})")  # in brackets: a name that nothing has
        return theirs + self.separator + self.weights.get(weight, weight)

    def layout(self, array: np.ndarray, rank: int) -> np.ndarray:
        """Their array, laid out as ours of `rank` dimensions."""
        if not self.transposed or array.ndim < 2:
            return array
        if rank == 2 and array.shape[2:] == (1, 1):  # a 1x1 convolution where we have a dense layer
            array = array[:, :, 0, 0]
        return np.moveaxis(array, (0, 1), (-1, -2))


def keras_applications(arch: Architecture) -> Naming:
    """keras.applications' ResNet50 ... ResNet152V2, for our rows `keras-resnet50` ... `keras-resnet152v2`."""
    parts = {f"conv{i}": f"{i}_conv" for i in (1, 2, 3)} | {"shortcut_conv": "0_conv", "shortcut_bn": "0_bn"}
    if arch.preactivation:
        parts |= {"bn1": "preact_bn", "bn2": "1_bn", "bn3": "2_bn"}
    else:
        parts |= {f"bn{i}": f"{i}_bn" for i in (1, 2, 3)}
    return Naming(
        outside={
            "stem_conv1": "conv1_conv",
            "stem_bn1": "conv1_bn",
            "head_bn": "post_bn",
            "head_logits": "predictions",
        },
        block=lambda stage, block: f"conv{stage + 1}_block{block}_",
        parts=parts,
        weights={},
        separator="/",
        transposed=False,
    )


def torchvision(arch: Architecture) -> Naming:
    """torchvision's post-activation networks, and timm's, which have the same names (also of -D and SE networks)."""
    _require_postactivation(arch, "torchvision")
    if arch.stem == "deep":  # a Sequential of convolution, batch norm, ReLU, ...; the last batch norm stands outside it
        stem = {f"stem_conv{i + 1}": f"conv1.{3 * i}" for i in range(3)}
        stem |= {"stem_bn1": "conv1.1", "stem_bn2": "conv1.4", "stem_bn3": "bn1"}
    else:
        stem = {"stem_conv1": "conv1", "stem_bn1": "bn1"}
    first = 1 if arch.shortcut == "D" else 0  # 0 is the average pool
    return Naming(
        outside=stem | {"head_logits": "fc"},
        block=lambda stage, block: f"layer{stage}.{block - 1}.",
        parts={f"{kind}{i}": f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)}
        | {"shortcut_conv": f"downsample.{first}", "shortcut_bn": f"downsample.{first + 1}"}
        | {"se_reduce": "se.fc1", "se_expand": "se.fc2"},
        weights=_TORCH_WEIGHTS,
        separator=".",
        transposed=True,
    )


def transformers(arch: Architecture) -> Naming:
    """The `transformers` library's ResNetForImageClassification."""
    _require_postactivation(arch, "transformers")
    kinds = {"conv": "convolution", "bn": "normalization"}
    return Naming(
        outside={f"stem_{kind}1": f"resnet.embedder.embedder.{theirs}" for kind, theirs in kinds.items()}
        | {"head_logits": "classifier.1"},
        block=lambda stage, block: f"resnet.encoder.stages.{stage - 1}.layers.{block - 1}.",
        parts={f"{kind}{i}": f"layer.{i - 1}.{theirs}" for kind, theirs in kinds.items() for i in (1, 2, 3)}
        | {f"shortcut_{kind}": f"shortcut.{theirs}" for kind, theirs in kinds.items()},
        weights=_TORCH_WEIGHTS,
        separator=".",
        transposed=True,
    )


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
    targets = [(layer.name, variable) for layer in model.layers for variable in layer.weights]
    names = [naming.of(layer, variable.name) for layer, variable in targets]
    left_over = [name for name in source if not name.endswith(_STEPS_SEEN) and name not in set(names)]
    problems = [f"received {name}, expected no such array" for name in left_over]

    arrays: list[np.ndarray] = []
    for name, (layer, variable) in zip(names, targets, strict=True):
        if name not in source:
            problems.append(f"received no {name}, expected it for {layer}/{variable.name}")
            continue
        array, expected = naming.layout(source[name], len(variable.shape)), tuple(variable.shape)
        if array.shape != expected:
            problems.append(f"{name}: received {array.shape}, expected {expected} for {layer}/{variable.name}")
        arrays.append(array)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ResnetlabError(f"These are not the weights of {model.name!r}: {'; '.join(problems[:5])}{more}.")

    for (_, variable), array in zip(targets, arrays, strict=True):
        variable.assign(array)


def _require_postactivation(arch: Architecture, source: str) -> None:
    if arch.preactivation:
        raise UsageError(
            f"{source} has no pre-activation networks. Received {arch.name!r}, expected one without preactivation."
        )
