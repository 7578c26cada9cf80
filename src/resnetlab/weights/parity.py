"""Check of an import: the logits that the source's own implementation computes with the weights.

It runs in a separate process, as PyTorch and TensorFlow should not share one.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.child_process import Child, ChildFailed, serve
from resnetlab.errors import ResnetlabError, first_informative_line
from resnetlab.models.variants import PREPROCESSING, Architecture, architecture
from resnetlab.weights.readers import read

TIME_LIMIT = 600.0  # seconds
_NEEDS: dict[str, list[tuple[str, ...]]] = {  # at least one package of each group
    "keras.applications": [("keras",)],
    "torchvision": [("torch",), ("torchvision", "timm")],
    "transformers": [("torch",), ("transformers",)],
}


def images(size: int) -> np.ndarray:
    """Two images that are smooth in some places and sharp in others: (2, size, size, 3) uint8."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 6, size, dtype=np.float32)
    waves = [
        np.sin(grid[:, None] * rng.uniform(0.3, 3) + grid[None] * rng.uniform(0.3, 3) + rng.uniform(0, 6))
        for _ in range(6)
    ]
    smooth = np.stack(waves, -1).reshape(size, size, 2, 3).transpose(2, 0, 1, 3)
    sharp = np.where(smooth > 0.4, 0.8, 0.2) * rng.uniform(0.5, 1.0, (2, size, size, 3))
    return np.clip(127 * smooth * (1 - sharp) + 200 * sharp, 0, 255).astype(np.uint8)


def logits(
    source: str, model: str, family: str, *, size: int, preprocessing: str, key: str | None = None
) -> tuple[np.ndarray, str] | str:
    """The source implementation's logits (2, classes) for `images(size)`, and its name and version.

    Returns the reason where it is not installed, or cannot run the network.
    """
    if family not in _NEEDS:
        return "its own implementation is not an installable package"
    missing = [group for group in _NEEDS[family] if not any(map(importlib.util.find_spec, group))]
    if missing:
        return f"{family} cannot run here: {', '.join(map(' or '.join, missing))} is not installed"
    request = {
        "source": source,
        "model": model,
        "family": family,
        "size": size,
        "preprocessing": preprocessing,
        "key": key,
    }
    # -P: what lies beside downloaded weights, a torch.py, is not imported.
    with Child("-P", "-m", __name__) as child:
        try:
            answer = child.ask_one(request, limit=TIME_LIMIT)
        except ChildFailed as failure:
            return f"{family} could not run it: {failure}"
    return np.array(answer["logits"], np.float32), answer["by"]


def loaded_logits(folder: Path, library: str, *, size: int) -> tuple[np.ndarray, str] | str:
    """The logits (2, classes) for `images(size)` of the network that a library itself loads from a shared folder.

    Returns the reason where the library is not installed, or cannot be imported.

    Raises:
        ResnetlabError: the library is installed, and refuses the weights.
    """
    needed = {"resnetlab": ("keras",), "torchvision": ("torch", "torchvision"), "timm": ("torch", "timm")}
    missing = [each for each in needed.get(library, ("torch", library)) if importlib.util.find_spec(each) is None]
    if library == "resnetlab" or missing:
        return f"{' and '.join(missing)} not installed" if missing else "these are our own names"
    with Child("-P", "-m", __name__) as child:
        try:
            found = child.ask_one({"folder": str(folder), "library": library, "size": size}, limit=TIME_LIMIT)
        except ChildFailed as failure:
            raise ResnetlabError(f"{library} cannot load the weights: {failure}") from None
    if "why" in found:
        return str(found["why"])
    return np.array(found["logits"], np.float32), found["by"]


def _load_as_the_library_does(folder: Path, library: str) -> tuple[Any, str, Any, Any]:
    """The network, its library's version, its logits in what it returns, and (mean, std) of its input in units of 1."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if library == "transformers":
        import transformers

        model = transformers.ResNetForImageClassification.from_pretrained(folder)
        processor = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        scale = processor["image_mean"], processor["image_std"]
        return model, f"transformers {transformers.__version__}", lambda output: output.logits, scale
    scale = config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]
    if library == "timm":
        import timm

        options = {"num_classes": config["num_classes"], "checkpoint_path": str(folder / "model.safetensors")}
        model = timm.create_model(config["architecture"], **options)  # strict
        return model, f"timm {timm.__version__}", lambda output: output, scale
    import torchvision
    from safetensors.torch import load_file

    model = getattr(torchvision.models, config["architecture"])(num_classes=config["num_classes"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model, f"torchvision {torchvision.__version__}", lambda output: output, scale


def _keras(
    arrays: dict[str, np.ndarray], arch: Architecture, pixels: np.ndarray, preprocessing: str
) -> tuple[np.ndarray, str]:
    from resnetlab import environment

    environment.start(device="cpu")
    import keras

    name = arch.name.removeprefix("keras-").replace("resnet", "ResNet").replace("v2", "V2")
    classes = len(arrays["predictions/bias"])
    model = getattr(keras.applications, name)(
        weights=None, classes=classes, classifier_activation=None, input_shape=pixels.shape[1:]
    )
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])
    if preprocessing == arch.preprocessing:  # as the library itself prepares images
        module = keras.applications.resnet_v2 if name.endswith("V2") else keras.applications.resnet
        scaled = module.preprocess_input(pixels.astype(np.float32))
    else:
        scaled = _normalized(pixels, preprocessing)
    return np.asarray(model.predict(scaled, verbose=0)), f"keras.applications {keras.__version__}"


def _torch(
    arrays: dict[str, np.ndarray], arch: Architecture, family: str, pixels: np.ndarray, preprocessing: str
) -> tuple[np.ndarray, str]:
    import torch

    if family == "transformers":
        model, by, head = _from_transformers(arch, len(arrays["classifier.1.bias"]))
    else:
        model, by, head = _from_torchvision_or_timm(arch, len(arrays["fc.bias"]))
    states = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    # Not strict, as published weights may lack the counters of batch norms; recognise() has checked everything else.
    model.load_state_dict(states, strict=False)
    scaled = _normalized(pixels, preprocessing).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return head(model.eval()(torch.from_numpy(np.ascontiguousarray(scaled)))).numpy(), by


def _normalized(pixels: np.ndarray, preprocessing: str) -> np.ndarray:
    mean, scale = PREPROCESSING[preprocessing]
    scaled = ((pixels - np.array(mean)) / scale).astype(np.float32)
    return scaled[..., ::-1] if preprocessing == "caffe" else scaled


def _from_transformers(arch: Architecture, classes: int) -> tuple[Any, str, Any]:
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=arch.stem_width,
        hidden_sizes=[width * arch.expansion for width in arch.widths],
        depths=list(arch.depths),
        layer_type=arch.block,
        downsample_in_bottleneck=arch.block == "bottleneck" and arch.stride_on == "1x1",
        num_labels=classes,
    )
    model = transformers.ResNetForImageClassification(config)
    return model, f"transformers {transformers.__version__}", lambda output: output.logits


def _from_torchvision_or_timm(arch: Architecture, classes: int) -> tuple[Any, str, Any]:
    """torchvision's network where it is there and has it, else timm's."""
    if importlib.util.find_spec("torchvision"):
        import torchvision

        names = {"wide-": "wide_", "-2": "_2", "resnext50-": "resnext50_", "resnext101-": "resnext101_"}
        name = arch.name.removesuffix("-v1") if arch.block == "basic" else arch.name  # its bottlenecks are v1.5
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if make := getattr(torchvision.models, name, None):
            return make(num_classes=classes), f"torchvision {torchvision.__version__}", lambda output: output
    import timm

    name = {"se-resnet50": "seresnet50"}.get(arch.name, arch.name.replace("-", "_"))
    return timm.create_model(name, num_classes=classes), f"timm {timm.__version__}", lambda output: output


def answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The logits, and the name and version of the implementation that computed them."""
    if "folder" in request:
        try:
            torch = importlib.import_module("torch")
            importlib.import_module(request["library"])
        except Exception as error:  # a torchvision of another PyTorch raises a RuntimeError
            yield {"why": f"{request['library']} cannot be imported: {first_informative_line(error)}"}
            return
        model, by, head, (mean, std) = _load_as_the_library_does(Path(request["folder"]), request["library"])
        scaled = (images(request["size"]) / 255 - np.array(mean)) / np.array(std)
        batch = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32))
        with torch.no_grad():
            yield {"logits": head(model.eval()(batch)).double().tolist(), "by": by}
        return
    arrays, arch = read(request["source"], key=request["key"]).arrays, architecture(request["model"])
    pixels, family = images(request["size"]), request["family"]
    if family == "keras.applications":
        found, by = _keras(arrays, arch, pixels, request["preprocessing"])
    else:
        found, by = _torch(arrays, arch, family, pixels, request["preprocessing"])
    yield {"logits": found.astype(np.float64).tolist(), "by": by}


if __name__ == "__main__":
    serve(answer)
