"""Names and layouts of the weights in other implementations, and recognition of the source of a set of weights.

A `Naming` gives the name under which each of our layers finds its weights. `recognise` finds the architecture and the
naming under which a set of arrays has exactly the names and shapes it should have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from resnetlab.errors import ResnetlabError
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import VARIANTS, Architecture, architecture
from resnetlab.progress import format_count

Arrays = Mapping[str, np.ndarray]
Target = tuple[str, str, tuple[int, ...]]  # layer, weight, shape: as `Summary.weights` lists them

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
        family: the implementation's name.
        outside: maps our names of the stem and head layers to theirs.
        block: maps (stage, block), both from 1, to their prefix of the block's layer names.
        parts: maps our suffixes of a block's layer names ("conv1", "shortcut_bn") to theirs.
        weights: maps our names of a layer's weights to theirs, where they differ.
        separator: stands between the layer name and the weight name.
        transposed: kernels are (out, in, k, k) and (out, in), where ours are (k, k, in, out) and (in, out).
    """

    family: str
    outside: Mapping[str, str]
    block: Callable[[int, int], str]
    parts: Mapping[str, str]
    weights: Mapping[str, str]
    separator: str
    transposed: bool

    def of(self, layer: str, weight: str) -> str:
        """Their name for the weight `weight` of our layer `layer`."""
        if match := re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", layer):
            theirs = self.block(int(match[1]), int(match[2])) + self.parts.get(match[3], f"({layer})")
        else:
            theirs = self.outside.get(layer, f"({layer})")  # in brackets, so that it matches no array
        return theirs + self.separator + self.weights.get(weight, weight)

    def layout(self, array: np.ndarray, rank: int) -> np.ndarray:
        """Their array, laid out as ours of `rank` dimensions."""
        if not self.transposed or array.ndim < 2:
            return array
        if rank == 2 and array.shape[2:] == (1, 1):  # a 1x1 convolution where we have a dense layer
            array = array[:, :, 0, 0]
        return np.moveaxis(array, (0, 1), (-1, -2))

    def their_layout(self, array: np.ndarray, layer: str) -> np.ndarray:
        """Our array of `layer`, laid out as theirs: the inverse of `layout`."""
        if not self.transposed or array.ndim < 2:
            return array
        array = np.moveaxis(array, (-1, -2), (0, 1))
        return array[:, :, None, None] if "_se_" in layer else array  # they have 1x1 convolutions there

    def problems(self, source: Arrays, targets: Iterable[Target]) -> list[str]:
        """Differences between `source` and `targets`: arrays that are missing, have another shape, or are left over."""
        problems, names = [], set()
        for layer, weight, expected in targets:
            name = self.of(layer, weight)
            names.add(name)
            if name not in source:
                problems.append(f"received no {name}, expected it for {layer}/{weight}")
            elif (received := self.layout(source[name], len(expected)).shape) != expected:
                problems.append(f"{name}: received {received}, expected {expected} for {layer}/{weight}")
        left_over = (name for name in source if not name.endswith(_STEPS_SEEN) and name not in names)
        return problems + [f"received {name}, expected no such array" for name in left_over]


def keras_applications(arch: Architecture) -> Naming:
    """keras.applications' ResNet50 ... ResNet152V2, for our `keras-resnet50` ... `keras-resnet152v2`."""
    parts = {f"conv{i}": f"{i}_conv" for i in (1, 2, 3)} | {"shortcut_conv": "0_conv", "shortcut_bn": "0_bn"}
    if arch.preactivation:
        parts |= {"bn1": "preact_bn", "bn2": "1_bn", "bn3": "2_bn"}
    else:
        parts |= {f"bn{i}": f"{i}_bn" for i in (1, 2, 3)}
    return Naming(
        family="keras.applications",
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
    """torchvision's networks, and timm's, which have the same names (also of -D and SE networks)."""
    if arch.stem == "deep":  # a Sequential of convolution, batch norm, ReLU, ...; the last batch norm stands outside it
        stem = {f"stem_conv{i + 1}": f"conv1.{3 * i}" for i in range(3)}
        stem |= {"stem_bn1": "conv1.1", "stem_bn2": "conv1.4", "stem_bn3": "bn1"}
    else:
        stem = {"stem_conv1": "conv1", "stem_bn1": "bn1"}
    first = 1 if arch.shortcut == "D" else 0  # 0 is the average pool
    return Naming(
        family="torchvision",
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
    kinds = {"conv": "convolution", "bn": "normalization"}
    return Naming(
        family="transformers",
        outside={f"stem_{kind}1": f"resnet.embedder.embedder.{theirs}" for kind, theirs in kinds.items()}
        | {"head_logits": "classifier.1"},
        block=lambda stage, block: f"resnet.encoder.stages.{stage - 1}.layers.{block - 1}.",
        parts={f"{kind}{i}": f"layer.{i - 1}.{theirs}" for kind, theirs in kinds.items() for i in (1, 2, 3)}
        | {f"shortcut_{kind}": f"shortcut.{theirs}" for kind, theirs in kinds.items()},
        weights=_TORCH_WEIGHTS,
        separator=".",
        transposed=True,
    )


def cifar_repositories(arch: Architecture) -> Naming:
    """akamaster's and kuangliu's CIFAR networks, and their many descendants: `shortcut.0` and `shortcut.1`.

    Their head is `linear`, which `state_dicts` reads as `fc`.
    """
    theirs = torchvision(arch)
    shortcut = {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}
    return replace(theirs, family="CIFAR repositories", parts={**theirs.parts, **shortcut})


def ours(arch: Architecture) -> Naming:
    """The names of a `resnetlab.build(...)` model that Keras has saved."""
    outside = [f"stem_{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)] + ["head_bn", "head_logits"]
    outside += [f"stage{i}_transition_{kind}" for i in range(1, len(arch.depths) + 1) for kind in ("conv", "bn")]
    parts = [f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)]
    parts += ["shortcut_conv", "shortcut_bn", "se_reduce", "se_expand"]
    return Naming(
        family="resnetlab",
        outside={name: name for name in outside},
        block=lambda stage, block: f"stage{stage}_block{block}_",
        parts={name: name for name in parts},
        weights={},
        separator="/",
        transposed=False,
    )


FAMILIES = (keras_applications, torchvision, transformers, cifar_repositories, ours)


def recognise(
    source: Arrays, *, model: str | None = None, stride_on: str = "3x3", head: bool = True
) -> tuple[Architecture, Naming, int]:
    """Recognise weights: their architecture, naming scheme and number of classes.

    Where architectures have weights of the same shapes, it is the one that downsamples in the `stride_on` convolution:
    the 3x3 in all but the oldest implementations. `model` names the architecture outright. Without `head`, none is
    expected, and the number of classes is 1.

    Raises:
        ResnetlabError: no architecture has exactly these arrays; the message states what differs from the nearest one.
    """
    candidates = VARIANTS.values() if model is None else [architecture(model)]
    best: tuple[int, Architecture, Naming, list[str], int] | None = None
    for arch in sorted(candidates, key=lambda arch: arch.stride_on != stride_on):  # stable: the table's order otherwise
        for family in FAMILIES:
            naming = family(arch)
            bias = source.get(naming.of("head_logits", "bias"))
            num_classes = arch.num_classes if bias is None or bias.ndim != 1 else len(bias)
            targets: list[Target] = list(summarize(arch, num_classes=num_classes).weights)
            if not head:
                targets, num_classes = [t for t in targets if t[0] != "head_logits"], 1
            problems = naming.problems(source, targets)
            if not problems:
                return arch, naming, num_classes
            if best is None or len(problems) < best[0]:
                matching = sum(naming.of(layer, weight) in source for layer, weight, _ in targets)
                best = len(problems), arch, naming, problems, 100 * matching // len(targets)
    assert best is not None
    raise _not_recognised(source, model, best)


def also_fitting(arch: Architecture) -> list[str]:
    """Names of the other architectures whose weights have the same names and shapes, but which compute otherwise."""
    weights = summarize(arch).weights
    return [
        other.name
        for other in VARIANTS.values()
        if _computation(other) != _computation(arch)
        and len(other.depths) == len(arch.depths)
        and summarize(replace(other, num_classes=arch.num_classes)).weights == weights
    ]


def _computation(arch: Architecture) -> dict[str, Any]:
    """The fields on which the logits of given weights depend."""
    without = {"name", "paper", "zero_init_last", "published_parameters", "preprocessing", "num_classes"}
    without |= {"reference_size", "counts_statistics"} | ({"stride_on"} if arch.block != "bottleneck" else set())
    return {key: value for key, value in asdict(arch).items() if key not in without}


def _not_recognised(
    source: Arrays, model: str | None, best: tuple[int, Architecture, Naming, list[str], int]
) -> ResnetlabError:
    """The error for unrecognised arrays; it names the closest architecture only if most of its names are present."""
    _, arch, naming, problems, per_cent = best
    stem = source.get(naming.of("stem_conv1", "kernel"))
    channels = 3 if stem is None or stem.ndim != 4 else naming.layout(stem, 4).shape[2]
    if channels != 3 and per_cent > 50:
        name = naming.of("stem_conv1", "kernel")
        grey = " (grey-scale)" if channels == 1 else ""
        return ResnetlabError(
            f"{name} {source[name].shape}: the stem takes images of {format_count(channels, 'channel')}{grey}, "
            "expected 3: RGB. Networks here take RGB images, so these weights cannot be imported."
        )
    text = f"These are not the weights of {'any network here' if model is None else repr(model)}. "
    if per_cent > 50:
        text += f"Nearest is {arch.name!r} as {naming.family} names it, but: {listing(problems)}. "
    first = ", ".join(f"{name} {array.shape}" for name, array in list(source.items())[:5])
    return ResnetlabError(f"{text}Received {len(source)} arrays: {first}{', ...' if len(source) > 5 else ''}.")


def listing(problems: list[str]) -> str:
    """The first few of many problems."""
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
