"""Reduce a PyTorch state dict to the plain network: no prefixes of wrappers, no counters, no foreign heads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

_COUNTERS = ("num_batches_tracked", "n_averaged")
_HEADS = re.compile(
    r"(fc|fc\d|linear|classifier|head|heads|last_linear|logits|output|out|projection|projector|proj|mlp|final)"
    r"(?=[._]|$)"
)
_NOT_NETWORK = re.compile(r"(criterion|loss|loss_fn|\w*metrics?|\w*acc|\w*accuracy|class_weights?|queue\w*)(?=[._]|$)")
# The first block of torchvision's names, of transformers', and of torch.nn.Sequential(*network.children()).
_FIRST_BLOCK = re.compile(
    r"((?:.+\.)?)(?:layer1\.0\.conv1|encoder\.stages\.0\.layers\.0\.layer\.0\.convolution|4\.0\.conv1)\."
)
_NORMALIZATION = re.compile(r"(?:.*[._])?(mean|std)")
# torch.nn.Sequential(*network.children()) of torchvision's network; 2, 3 and 8 have no weights.
_CHILDREN = {
    "0": "conv1",
    "1": "bn1",
    **{str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)},
    "9": "fc",
}


@dataclass(frozen=True)
class StateDict:
    """A state dict without its wrappers.

    Args:
        arrays: by the names of the plain network; the head is `fc`, or `classifier.1` as in transformers.
        foreign_head: names and shapes of a head that is not one linear layer; they are not in `arrays`.
        linear: the head was called `linear`, as in the widespread CIFAR repositories.
        normalization: mean and standard deviation, if the network includes its normalisation; not in `arrays`.
    """

    arrays: dict[str, np.ndarray]
    foreign_head: tuple[str, ...] = ()
    linear: bool = False
    normalization: tuple[np.ndarray, np.ndarray] | None = None


def prefixes_of_networks(names: Iterable[str]) -> list[str]:
    """The prefix of each network among the names, as short as possible while distinct: ["student.", "teacher."]."""
    names = list(names)
    roots = list(dict.fromkeys(found[1] for name in names if (found := _FIRST_BLOCK.match(name))))
    prefixes = []
    for root in roots:
        parts = root.split(".")[:-1]
        candidates = [".".join([*parts[:count], ""]) for count in range(len(parts))] if len(roots) > 1 else []
        others = [other for other in roots if other != root]
        alone = (short for short in candidates if short and not any(other.startswith(short) for other in others))
        prefixes.append(next(alone, root))
    return prefixes


def unwrap_state_dict(source: Mapping[str, np.ndarray]) -> StateDict:
    """Strip the prefixes of (nested) wrappers from the names, and rename the head to `fc` or `classifier.1`."""
    arrays = {name: array for name, array in source.items() if name.rpartition(".")[2] not in _COUNTERS}
    arrays, normalization = _without_normalization(_without_prefix(arrays))
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
        foreign = tuple(f"{name} {array.shape}" for name, array in heads.items())
        return StateDict(body, foreign, normalization=normalization)
    called = "classifier.1" if transformers else "fc"
    named = {f"{called}.{weight}": array for weight, array in head.items()}
    linear = any(name.startswith("linear.") for name in heads)
    return StateDict(body | named, linear=linear, normalization=normalization)


def _without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Strip the prefix of the only network; arrays outside it get a name that does not collide with its names."""
    prefixes = prefixes_of_networks(arrays)
    if len(prefixes) != 1:
        return arrays
    prefix = prefixes[0]
    inside = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    inside = {name: array for name, array in inside.items() if not _NOT_NETWORK.match(name)}
    for name in [name for name in arrays if not name.startswith(prefix)]:
        outside, position = name, ""
        for position in prefix.split("."):
            if not position or not outside.startswith(f"{position}."):
                break
            outside = outside.removeprefix(f"{position}.")
        number = outside.partition(".")[0]
        follows = position.isdigit() and number.isdigit() and int(number) > int(position)  # fastai's head
        if follows or outside in inside:
            outside = f"head.{outside}"
        if not _NOT_NETWORK.match(outside):
            inside[outside] = arrays[name]
    return inside


def is_normalization(name: str, size: int) -> bool:
    """Whether this is a mean or a standard deviation of RGB channels."""
    return size == 3 and "running" not in name and _NORMALIZATION.fullmatch(name) is not None


def _without_normalization(
    arrays: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray] | None]:
    """Remove the RGB mean and standard deviation that a network with built-in normalisation stores."""
    found = {re.split(r"[._]", name)[-1]: name for name, array in arrays.items() if is_normalization(name, array.size)}
    if found.keys() != {"mean", "std"}:
        return arrays, None
    rest = {name: array for name, array in arrays.items() if name not in found.values()}
    return rest, (arrays[found["mean"]].reshape(3), arrays[found["std"]].reshape(3))


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
