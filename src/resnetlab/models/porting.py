"""Weights in: from other implementations of the same architecture, each under its own names and layouts.

A reference model is a mapping from names to arrays (`arrays_of`). A `Naming` says under which of those names a layer of
ours finds its weights; `port` copies them, and accepts nothing that is left over, missing or of another shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.architectures import Architecture

_UNUSED = "num_batches_tracked"  # PyTorch counts steps beside each batch norm's statistics

# What each framework calls the weights of one layer.
_KERAS = {name: name for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")}
_TORCH = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclass(frozen=True)
class Naming:
    """How a reference implementation names and lays out what our layers need.

    `layers` pairs patterns of our layer names with theirs: the text by a template, or by a function of the match.
    """

    layers: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
    weights: Mapping[str, str]
    separator: str
    transposed: bool  # kernels are (out, in, k, k) and (out, in), not (k, k, in, out) and (in, out)

    def name(self, layer: str, weight: str) -> str | None:
        """Their name of a weight ("kernel", "gamma", ...) of a layer of ours, or None if they have no such layer."""
        for pattern, theirs in self.layers:
            if match := re.fullmatch(pattern, layer):
                text = theirs(match) if callable(theirs) else match.expand(theirs)
                return f"{text}{self.separator}{self.weights[weight]}"
        return None

    def layout(self, array: np.ndarray, rank: int) -> np.ndarray:
        """Their array as we lay it out; their 1x1 convolution may be our dense layer of `rank` 2."""
        if not self.transposed or array.ndim < 2:
            return array
        if array.ndim == 4 and rank == 2 and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]
        return np.moveaxis(array, (0, 1), (-1, -2))


def keras_applications(arch: Architecture) -> Naming:
    """keras.applications.ResNet50 ... ResNet152V2, for the rows `keras-resnet50` ... `keras-resnet152v2`."""
    block = r"stage(?P<stage>\d)_block(?P<block>\d+)"

    def within(suffix: str) -> Callable[[re.Match[str]], str]:
        def theirs(match: re.Match[str]) -> str:
            place = match.groupdict() | {"before": int(match.groupdict().get("i", 1)) - 1}
            return f"conv{int(match['stage']) + 1}_block{match['block']}_{suffix.format(**place)}"

        return theirs

    # A pre-activation block begins with a batch norm of its own: ours counts it, theirs does not.
    norms = (
        ((rf"{block}_bn1", within("preact_bn")), (rf"{block}_bn(?P<i>\d)", within("{before}_bn")))
        if arch.preactivation
        else ((rf"{block}_bn(?P<i>\d)", within("{i}_bn")),)
    )
    return Naming(
        layers=(
            (r"stem_(conv|bn)1", r"conv1_\1"),
            (rf"{block}_conv(?P<i>\d)", within("{i}_conv")),
            *norms,
            (rf"{block}_shortcut_(?P<kind>conv|bn)", within("0_{kind}")),
            (r"head_bn", "post_bn"),
            (r"head_logits", "predictions"),
        ),
        weights=_KERAS,
        separator="/",
        transposed=False,
    )


def torchvision(arch: Architecture) -> Naming:
    """torchvision's and timm's ResNets, ResNeXts, Wide ResNets; timm's -D and SE variants too."""
    _require_postactivation(arch, "torchvision")
    stem: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ((r"stem_(conv|bn)1", r"\g<1>1"),)
    if arch.stem == "deep":  # one Sequential of convolution, batch norm, ReLU, ...; the last batch norm stands outside
        stem = (
            (r"stem_bn3", "bn1"),
            (r"stem_conv(\d)", lambda match: f"conv1.{3 * int(match[1]) - 3}"),
            (r"stem_bn(\d)", lambda match: f"conv1.{3 * int(match[1]) - 2}"),
        )
    first = 1 if arch.shortcut == "D" else 0  # after the average pool
    return Naming(
        layers=(
            *stem,
            *_blocks(r"(conv|bn)(?P<i>\d)", "layer{stage}.{block}.{match[kind]}{match[i]}"),
            *_blocks(r"shortcut_(?P<kind>conv)", f"layer{{stage}}.{{block}}.downsample.{first}"),
            *_blocks(r"shortcut_(?P<kind>bn)", f"layer{{stage}}.{{block}}.downsample.{first + 1}"),
            *_blocks(r"se_(?P<kind>reduce)", "layer{stage}.{block}.se.fc1"),
            *_blocks(r"se_(?P<kind>expand)", "layer{stage}.{block}.se.fc2"),
            (r"head_logits", "fc"),
        ),
        weights=_TORCH,
        separator=".",
        transposed=True,
    )
