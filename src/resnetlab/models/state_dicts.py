"""A PyTorch state dict under the names of the bare network: without wrappers' prefixes, counters and foreign heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_COUNTERS = ("num_batches_tracked", "n_averaged")
_HEADS = re.compile(
    r"(fc|fc\d|linear|classifier|head|heads|last_linear|logits|output|out|projection|projector|proj|mlp|final)"
    r"(?=[._]|$)"
)
_NOT_NETWORK = re.compile(r"(criterion|loss|loss_fn|\w*metrics?|\w*acc|\w*accuracy)(?=[._]|$)")
# torch.nn.Sequential(*network.children()) of torchvision's network; 2, 3 and 8 have no weights.
_CHILDREN = {
    "0": "conv1",
    "1": "bn1",
    **{str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)},
    "9": "fc",
}


@dataclass(frozen=True)
class StateDict:
    """Args:
    arrays: by the names of the bare network, the head as `fc`, or `classifier.1` as transformers has it.
    foreign_head: names and shapes of a head that is not one linear layer; they are not in `arrays`.
    linear: the head was called `linear`, as the widespread CIFAR repositories call it.
    """

    arrays: dict[str, np.ndarray]
    foreign_head: tuple[str, ...] = ()
    linear: bool = False


def bare(source: Mapping[str, np.ndarray]) -> StateDict:
    """Strip what wraps a network's names, once or repeatedly, and bring the head to one name."""
    arrays = {name: array for name, array in source.items() if name.rpartition(".")[2] not in _COUNTERS}
    while prefix := _common_prefix(arrays):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items() if _belongs(name, prefix)}
    first = {name.partition(".")[0] for name in arrays}
    if {"0", "1", "4", "5", "6", "7"} <= first:
        parts = {name: name.partition(".") for name in arrays}
        arrays = {f"{_CHILDREN.get(parts[n][0], parts[n][0])}.{parts[n][2]}": a for n, a in arrays.items()}
    transformers = any(name.startswith("embedder.embedder.") for name in arrays)
    heads = {name: array for name, array in arrays.items() if _HEADS.match(name)}
    body = {name: array for name, array in arrays.items() if name not in heads}
    if transformers:
        body = {f"resnet.{name}": array for name, array in body.items()}
    head = _linear(heads)
    if head is None:
        return StateDict(body, tuple(f"{name} {array.shape}" for name, array in heads.items()))
    called = "classifier.1" if transformers else "fc"
    named = {f"{called}.{weight}": array for weight, array in head.items()}
    return StateDict(body | named, linear=any(name.startswith("linear.") for name in heads))


def _belongs(name: str, prefix: str) -> bool:
    return name.startswith(prefix) or _NOT_NETWORK.match(name) is None


def _common_prefix(arrays: Mapping[str, np.ndarray]) -> str | None:
    """ "module.", where every name begins with it, but for a head's and a loss's."""
    network = [name for name in arrays if not _HEADS.match(name) and not _NOT_NETWORK.match(name)]
    first = {name.partition(".")[0] for name in network}
    if len(first) != 1 or len(network) < 2 or not all("." in name for name in network):
        return None
    prefix = first.pop() + "."
    inside = any("." in name.removeprefix(prefix) for name in network)  # not a layer, with its weights alone
    return prefix if inside else None


def _linear(heads: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Weight and bias of a head that is one linear layer (also after dropout, or as a 1x1 convolution), else None."""
    layers = {name.rpartition(".")[0] for name in heads}
    weights = {name.rpartition(".")[2]: array for name, array in heads.items()}
    if len(layers) != 1 or not {"weight"} <= weights.keys() <= {"weight", "bias"}:
        return None
    weight = weights["weight"]
    if weight.ndim not in (2, 4) or weight.shape[2:] not in ((), (1, 1)):
        return None
    bias = weights.get("bias", np.zeros(len(weight), np.float32))  # without one, it is zero
    return {"weight": weight.reshape(weight.shape[:2]), "bias": bias}
