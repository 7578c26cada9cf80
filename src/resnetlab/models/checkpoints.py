"""Other people's weights, read as data: nothing in a file is run. No Keras here, but for its own download.

read("resnet50-0676ba61.pth")         a PyTorch state dict, also inside a training checkpoint
read("model.safetensors")
read("resnet50.h5")                   Keras: HDF5 weights or models of any version, .weights.h5, .keras
read("folder/")                       config.json beside the weights, as on the Hugging Face hub
read("microsoft/resnet-50")           the same, from the hub
read("ResNet50V2")                    keras.applications' own weights, by Keras's download
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np

from resnetlab import environment
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.variants import PREPROCESSING

KERAS_APPLICATIONS = ("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2")
_BYTES_MOST = 4 << 30  # the largest network here takes 0.5 GB: what claims to be larger is damaged, or meant to harm
_WEIGHTS_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_KERAS_ORDER = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling


@dataclass(frozen=True)
class Checkpoint:
    """Weights by their names, and what travels with them."""

    origin: str  # file, folder or name
    arrays: dict[str, np.ndarray]
    # Of a recipe: image_size, crop_pct, interpolation, preprocessing. What is not in here the source does not say.
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    licence: str | None = None
    stride_on: str = "3x3"


def read(source: str) -> Checkpoint:
    """Read weights from a file, a folder or a name; see above.

    Raises:
        UsageError: no such file or name.
        ResnetlabError: damaged, not weights, with a program in it, or it cannot be downloaded: then it says where to
            put the file by hand.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, source)
    if path.is_file():
        return Checkpoint(source, _arrays(path))
    by_name = {name.lower(): name for name in KERAS_APPLICATIONS}
    if name := by_name.get(source.lower()):
        return Checkpoint(source, _from_keras(name))
    if re.fullmatch(r"[\w-]+/[\w.-]+", source) and path.suffix.lower() not in _READERS:
        return _from_folder(_from_hub(source), source)
    raise UsageError(
        f"Received {source!r}, expected a file of weights (.pth, .safetensors, .h5, .keras), a folder with config.json "
        f"and weights, a name on the Hugging Face hub such as microsoft/resnet-50, or one of "
        f"{', '.join(KERAS_APPLICATIONS)}."
    )


def class_names_for(checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """The classes in the order of the logits: the checkpoint's own, ImageNet's for 1000, else "class 0", ..."""
    if checkpoint.class_names is not None and len(checkpoint.class_names) == num_classes:
        return checkpoint.class_names
    if num_classes == 1000:
        text = resources.files("resnetlab.models").joinpath("imagenet_classes.txt").read_text("utf-8")
        return tuple(text.splitlines())
    return tuple(f"class {i}" for i in range(num_classes))


# ------------------------------------------------------------------------------------------------------- files


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, floats as float32, all of them finite."""
    if path.suffix.lower() not in _READERS:
        raise UsageError(f"{path}: received the ending {path.suffix!r}, expected one of {', '.join(sorted(_READERS))}.")
    try:
        arrays = {name: _as_numbers(name, array) for name, array in _READERS[path.suffix.lower()](path).items()}
    except ResnetlabError:
        raise
    except Exception as error:  # on damaged files the readers raise nearly anything
        raise _damaged(path, error) from None
    if not arrays:
        raise ResnetlabError(f"{path} holds no weights.")
    return arrays


def _as_numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind not in "fV":  # V: bfloat16
        raise ValueError(f"{name} is of {array.dtype}")
    numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} has values that are not finite")
    return numbers


def _damaged(path: Path, error: Exception) -> ResnetlabError:
    told = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ResnetlabError(f"{path} cannot be read: damaged, truncated, or not what its ending says ({told:.120}).")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise _needs("safetensors", path) from None
    import ml_dtypes  # noqa: F401  # comes with Keras, and teaches NumPy bfloat16

    return dict(load_file(path))


def _torch(path: Path) -> dict[str, np.ndarray]:
    """A state dict, or the one inside a training checkpoint, by PyTorch's reader that runs no program."""
    try:
        import torch
    except ImportError:
        raise _needs("torch", path) from None
    try:
        with warnings.catch_warnings():  # of pickle protocols
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global)\W+([\w.]+)", str(error))
        raise ResnetlabError(
            f"{path} holds more than weights ({found[1] if found else 'a program, or it is damaged'}): refused, and "
            "nothing of it was run. Expected a state dict: torch.save(model.state_dict(), ...), where you trust it."
        ) from None
    for key in ("state_dict_ema", "state_dict", "model_ema", "model"):  # timm's and torchvision's training checkpoints
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ResnetlabError(f"{path}: received {type(content).__name__}, expected a state dict of tensors.")
    return {
        name.removeprefix("module."): (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in content.items()
    }


def _hdf5_file(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        return _hdf5(file, path)


def _keras_archive(path: Path) -> dict[str, np.ndarray]:
    """The weights in a .keras file. The model that its config.json describes is never made."""
    with zipfile.ZipFile(path) as archive:
        for name, most in (("config.json", _BYTES_MOST >> 6), ("model.weights.h5", _BYTES_MOST)):
            if (size := archive.getinfo(name).file_size) > most:
                raise ResnetlabError(f"{path}: {name} claims {size:,} bytes. Expected a ResNet's weights.")
        _refuse_programs(json.loads(archive.read("config.json")), path)
        return _hdf5(io.BytesIO(archive.read("model.weights.h5")), path)


def _hdf5(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    """All weights in Keras's HDF5 files, old ("conv1_conv/kernel") and new (by the layer's name and order)."""
    import h5py

    arrays: dict[str, np.ndarray] = {}
    with h5py.File(file, "r") as opened:
        if isinstance(config := opened.attrs.get("model_config"), (str, bytes)):
            _refuse_programs(json.loads(config), path)
        for place, dataset in _datasets(opened):
            if dataset.external or dataset.is_virtual:
                raise ResnetlabError(f"{path}: {place} points into other files: refused, and nothing was read.")
            if dataset.nbytes + sum(a.nbytes for a in arrays.values()) > _BYTES_MOST:
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
        layer, weight = dataset.parent.attrs["name"], order[int(weight)] if order else weight
    return f"{layer}/{weight}"


def _refuse_programs(config: Any, path: Path) -> None:
    """Raise ResnetlabError where a Keras model's description has a Lambda layer in it, which holds a program."""
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


def _needs(package: str, path: Path) -> ResnetlabError:
    return ResnetlabError(f"To read {path}, {package} must be installed. Do: pip install 'resnetlab[{package}]'.")


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), _torch),
    **dict.fromkeys((".h5", ".hdf5"), _hdf5_file),
    ".keras": _keras_archive,
}


# --------------------------------------------------------------------------------- folders and names on the hub


def _from_folder(folder: Path, origin: str) -> Checkpoint:
    """A folder as `transformers` or timm writes it: config.json, weights, and README.md with the licence."""
    weights = next((folder / name for name in _WEIGHTS_IN_FOLDER if (folder / name).is_file()), None)
    if weights is None or not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: expected config.json and one of {', '.join(_WEIGHTS_IN_FOLDER)} in the folder.")
    config = _json(folder / "config.json")
    processor = _json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    checkpoint = Checkpoint(origin, _arrays(weights), licence=_licence(folder / "README.md"))
    try:
        if "pretrained_cfg" in config:
            return _as_timm_says(checkpoint, config["pretrained_cfg"] | {"label_names": config.get("label_names")})
        return _as_transformers_says(checkpoint, config, processor)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResnetlabError(f"{folder}: config.json is not as transformers or timm write it: {error!r}.") from None


def _as_transformers_says(checkpoint: Checkpoint, config: dict[str, Any], processor: dict[str, Any]) -> Checkpoint:
    if config.get("model_type") != "resnet":
        raise ResnetlabError(
            f"{checkpoint.origin}: received model_type={config.get('model_type')!r}, expected 'resnet'."
        )
    size, cropped, resample = _side(processor.get("size")), _side(processor.get("crop_size")), processor.get("resample")
    if resample is not None and resample not in _RESAMPLING:
        raise ResnetlabError(f"{checkpoint.origin}: received resample={resample}, expected one of {_RESAMPLING}.")
    settings = _stated(  # either the middle crop_size of size, or size of size / crop_pct
        image_size=cropped or size,
        crop_pct=cropped / size if cropped and size else processor.get("crop_pct"),
        interpolation=None if resample is None else _RESAMPLING[resample],
        preprocessing=_preprocessing(processor.get("image_mean"), processor.get("image_std")),
    )
    labels = config.get("id2label") or {}
    names = tuple(_unique(labels[key] for key in sorted(labels, key=int)))
    return replace(
        checkpoint,
        settings=settings,
        class_names=None if not names or names[0] == "LABEL_0" else names,
        stride_on="1x1" if config.get("downsample_in_bottleneck") else "3x3",
    )


def _as_timm_says(checkpoint: Checkpoint, config: dict[str, Any]) -> Checkpoint:
    size = config.get("test_input_size") or config.get("input_size")
    settings = _stated(
        image_size=size[-1] if size else None,
        crop_pct=config.get("test_crop_pct") or config.get("crop_pct"),
        interpolation=config.get("interpolation"),
        preprocessing=_preprocessing(config.get("mean"), config.get("std")),
    )
    names = config.get("label_names")
    return replace(
        checkpoint,
        settings=settings,
        class_names=tuple(_unique(names)) if names else None,
        licence=config.get("license") or checkpoint.licence,
    )


def _stated(**settings: Any) -> dict[str, Any]:
    """The settings of a recipe that the source states."""
    return {key: value for key, value in settings.items() if value is not None}


def _side(size: Any) -> int | None:
    """Of {"shortest_edge": 224}, {"height": 224, "width": 224} or 224."""
    return next(iter(size.values())) if isinstance(size, dict) else size


def _preprocessing(mean: Any, std: Any) -> str | None:
    """Our name of a mean and a standard deviation."""
    if mean is None or std is None:
        return None
    for name in ("imagenet", "cifar10", "unit"):
        if np.allclose(np.multiply((mean, std), 255), PREPROCESSING[name], atol=0.3):
            return name
    raise ResnetlabError(f"Received mean={mean}, std={std} in units of 1; expected one of {PREPROCESSING} (of 255).")


def _unique(names: Any) -> Iterator[str]:
    """The first of a class's synonyms, with a number where another class has it too: ImageNet has two cranes."""
    seen: dict[str, int] = {}
    for name in names:
        first = str(name).partition(",")[0].strip()
        seen[first] = seen.get(first, 0) + 1
        yield first if seen[first] == 1 else f"{first} ({seen[first]})"


def _licence(card: Path) -> str | None:
    """What the head of a model card says."""
    if not card.is_file():
        return None
    found = re.search(r"^license:\s*(\S+)", card.read_text("utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResnetlabError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise ResnetlabError(f"{path}: received a {type(value).__name__}, expected an object.")
    return value


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ResnetlabError(
            f"To download {name}, huggingface_hub must be installed: pip install huggingface_hub. Or download its "
            "config.json and model.safetensors by hand, and give their folder."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except Exception as error:  # offline, no such name, no access: it raises the errors of its HTTP library too
        raise ResnetlabError(
            f"{name} cannot be downloaded ({type(error).__name__}). Where there is a network, download its "
            "config.json, preprocessor_config.json and model.safetensors into a folder: `resnetlab port FOLDER`."
        ) from None


def _from_keras(name: str) -> dict[str, np.ndarray]:
    """keras.applications' weights as Keras downloads and keeps them."""
    environment.start()
    import keras

    from resnetlab.models.porting import arrays_of

    function = getattr(keras.applications, name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras's progress does not get among our own output
            model = function(weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception where it cannot download
        file = f"{name.lower()}_weights_tf_dim_ordering_tf_kernels.h5"
        folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
        raise ResnetlabError(
            f"Keras cannot download {name}: {error}. Where there is a network, download that file ({file}), and "
            f"give it to `resnetlab port`, or put it into {folder}."
        ) from None
    return arrays_of(model)
