"""Networks of ours under the names of other libraries: which they have, and our weights as theirs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from resnetlab.errors import ResnetlabError, UsageError, unknown_name
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import VARIANTS, Architecture
from resnetlab.weights.mapping import Arrays, ours, torchvision, transformers

LIBRARIES = ("resnetlab", "torchvision", "timm", "transformers")

# Ours are theirs, to the place of the stride. resnet50-v1 and deeper have it on the 1x1, as theirs do not.
_TORCHVISION = {
    "resnet18": "resnet18",
    "resnet18-v1": "resnet18",
    "resnet34": "resnet34",
    "resnet34-v1": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50-32x4d": "resnext50_32x4d",
    "resnext101-32x8d": "resnext101_32x8d",
    "wide-resnet50-2": "wide_resnet50_2",
    "wide-resnet101-2": "wide_resnet101_2",
}
_TIMM = _TORCHVISION | {
    "resnet18d": "resnet18d",
    "resnet34d": "resnet34d",
    "resnet50d": "resnet50d",
    "resnet101d": "resnet101d",
    "se-resnet50": "seresnet50",
}


# Other names of timm's for the same networks.
_TIMM_TOO = r"(tv|gluon|ssl|swsl|ig|fb)_(resnet|resnext|wide_resnet)(18|34|50|101|152)(_2|_32x\dd)?(_v1b)?"


def require_known_architecture(origin: str, theirs: str) -> None:
    """Refuse what timm calls a network that is none of ours: some compute otherwise with weights of the same shapes.

    Raises:
        ResnetlabError: it is not known.
    """
    name = theirs.partition(".")[0]
    if name not in _TIMM.values() and not re.fullmatch(_TIMM_TOO, name):
        raise ResnetlabError(
            f"{origin}: its architecture is {theirs!r}, which is not among those known here: "
            f"{', '.join(sorted(set(_TIMM.values())))}. A network of another name can compute otherwise with weights "
            "of the same shapes. If it is the same as one of `resnetlab models`: resnetlab import SOURCE --model NAME."
        )


def name_in(library: str, arch: Architecture) -> str:
    """What a library calls an architecture.

    Raises:
        UsageError: an unknown library, or one that does not have it.
    """
    if library not in LIBRARIES:
        raise unknown_name("library", library, LIBRARIES)
    names = {"resnetlab": arch.name}
    if arch.preprocessing != "caffe":  # BGR, which no configuration of theirs can state
        names |= {"torchvision": _TORCHVISION.get(arch.name, ""), "timm": _TIMM.get(arch.name, "")}
        names |= {"transformers": "ResNetForImageClassification" if _is_in_transformers(arch) else ""}
    if not names.get(library):
        fitting = ", ".join(each for each, name in names.items() if name)
        bgr = " with BGR images (preprocessing='caffe')" if arch.preprocessing == "caffe" else ""
        raise UsageError(f"{library} has no {arch.name}{bgr}. Libraries whose names fit: {fitting}.")
    return names[library]


def _is_in_transformers(arch: Architecture) -> bool:
    """Whether it is one of ResNetForImageClassification: He 2015's for ImageNet, of any depth and stride."""
    like = "resnet34-v1" if arch.block == "basic" else "resnet50-v1"
    own = {"name", "paper", "depths", "widths", "stem_width", "stride_on", "zero_init_last", "published_parameters"}
    own |= {"preprocessing", "num_classes", "reference_size"}
    return replace(VARIANTS[like], **{key: getattr(arch, key) for key in own}) == arch


def to_arrays(ours_by_name: Arrays, arch: Architecture, library: str, num_classes: int) -> dict[str, np.ndarray]:
    """Weights by our names ("stem_conv1/kernel") as a library names and lays them out."""
    naming = {"resnetlab": ours, "transformers": transformers}.get(library, torchvision)(arch)
    found: dict[str, np.ndarray] = {}
    for layer, weight, _ in summarize(arch, num_classes=num_classes).weights:
        name = naming.of(layer, weight)
        found[name] = np.ascontiguousarray(naming.their_layout(ours_by_name[f"{layer}/{weight}"], layer))
        if naming.transposed and weight == "moving_variance":  # PyTorch counts the steps of a batch norm
            found[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return found


def transformers_config(arch: Architecture, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The content of config.json of `transformers`."""
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": arch.stem_width,
        "hidden_sizes": [width * arch.expansion for width in arch.widths],
        "depths": list(arch.depths),
        "layer_type": arch.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": arch.block == "bottleneck" and arch.stride_on == "1x1",
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "torch_dtype": "float32",
    }
