"""Readers of third-party weights, as data: no code in a file is executed. Imports Keras only to download its weights.

read("resnet50-0676ba61.pth")         a PyTorch state dict, also inside a training checkpoint
read("model.safetensors")
read("resnet50.h5")                   Keras: HDF5 weights or models of any version, .weights.h5, .keras
read("folder/")                       config.json beside the weights, as on the Hugging Face hub
read("microsoft/resnet-50")           the same, from the hub
read("ResNet50V2")                    keras.applications' own weights, by Keras's download
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab import environment
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.variants import PREPROCESSING
from resnetlab.untrusted import check_archive, parse_json
from resnetlab.weights.keras_files import read_hdf5, read_keras
from resnetlab.weights.state_dicts import unwrap_state_dict
from resnetlab.weights.torch_files import read_torch

KERAS_APPLICATIONS = ("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2")
_WEIGHTS_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_ENDINGS = (".pth", ".pt", ".th", ".tar", ".ckpt", ".bin", ".safetensors", ".h5", ".hdf5", ".keras")
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling


# In a config.json that resnetlab wrote: class names as they are, where those of others are lists of synonyms.
OWN_NAMES = "resnetlab_class_names"
IMAGENET_CLASSES = 1000
SQUEEZED_FROM = 384  # pixels, from which transformers' ConvNextImageProcessor no longer crops


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and the metadata that the source provides."""

    origin: str  # file, folder or name
    arrays: dict[str, np.ndarray]
    # Recipe fields: image_size, crop_pct, interpolation, preprocessing; only those that the source states.
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    licence: str | None = None
    stride_on: str = "3x3"
    model: str | None = None  # the name that a Keras model of ours has
    architecture: str | None = None  # as the source names it: one of timm's, or "resnet" of transformers
    foreign_head: tuple[str, ...] = ()  # names and shapes of a head that is not in `arrays`
    linear: bool = False  # the head was called `linear`, as in widespread CIFAR repositories
    note: str | None = None  # which of several sets of weights was read, or what is not as in the source
    key: str | None = None  # as given


def read(source: str, *, key: str | None = None) -> Checkpoint:
    """Read weights from a file, a folder or a name; see above.

    Args:
        source: file, folder or name.
        key: of a PyTorch file that holds several sets of weights, the place of the one to read.

    Raises:
        UsageError: no such file or name.
        ResnetlabError: the file is damaged, has no weights or contains code, or it cannot be downloaded; then the
            message states where to put the file manually.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, source)
    if path.is_file():
        return _from_file(path, source, key)
    by_name = {name.lower(): name for name in KERAS_APPLICATIONS}
    if name := by_name.get(source.lower()):
        return Checkpoint(source, _from_keras(name))
    if is_on_hub(source):
        return _from_folder(snapshot(source), source)
    raise UsageError(
        f"Received {source!r}, expected a weights file (PyTorch, .safetensors, .h5, .keras), a folder with "
        f"config.json and weights, a name on the Hugging Face hub such as microsoft/resnet-50, or one of "
        f"{', '.join(KERAS_APPLICATIONS)}."
    )


def is_on_hub(source: str) -> bool:
    """Whether `source` is a name on the Hugging Face hub: USER/NAME, where USER is not a folder here."""
    path = Path(source).expanduser()
    named = re.fullmatch(r"[\w-]+/[\w.-]+", source) and path.suffix.lower() not in _ENDINGS
    return bool(named) and not path.exists() and not path.parent.is_dir()


def find_class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """The classes in the order of the logits: the checkpoint's own, ImageNet's for 1000, else "class 0", ..."""
    if checkpoint.class_names is not None and len(checkpoint.class_names) == num_classes:
        return checkpoint.class_names
    if num_classes == 1000:
        text = resources.files("resnetlab.models").joinpath("imagenet_classes.txt").read_text("utf-8")
        return tuple(text.splitlines())
    return tuple(f"class {i}" for i in range(num_classes))


# ------------------------------------------------------------------------------------------------------- files


def _from_file(path: Path, origin: str, key: str | None = None) -> Checkpoint:
    """All arrays of a file, floats as float32, all finite. The content, not the suffix, determines the format."""
    kind = kind_of(path)
    if key is not None and kind != "PyTorch":
        raise UsageError(f"{path}: --key is for PyTorch's checkpoints, and this is a {kind} file.")
    checkpoint = Checkpoint(origin, {}, key=key)
    try:
        if kind == "PyTorch":
            arrays, note = read_torch(path, key)
            checkpoint = replace(checkpoint, note=note)
        elif kind == "Keras":
            arrays, model, settings = read_keras(path)
            checkpoint = replace(checkpoint, model=model, settings=settings)
        else:
            arrays = _safetensors(path) if kind == "safetensors" else read_hdf5(path)
        arrays = {name: _as_numbers(path, name, array) for name, array in arrays.items()}
    except ResnetlabError:
        raise
    except Exception as error:  # on damaged files the readers raise nearly anything
        raise _damaged(path, error) from None
    if not arrays:
        raise ResnetlabError(f"{path} holds no weights.")
    if kind in ("Keras", "HDF5") or all("/" in name for name in arrays):  # safetensors with our own names
        return replace(checkpoint, arrays=arrays)
    found = unwrap_state_dict(arrays)
    settings = {}
    if found.normalization:
        mean, std = found.normalization
        unit = 255 if mean.max() > 1 else 1
        settings["preprocessing"] = _preprocessing(*((x.astype(float) / unit).round(4).tolist() for x in (mean, std)))
    return replace(
        checkpoint, arrays=found.arrays, foreign_head=found.foreign_head, linear=found.linear, settings=settings
    )


def kind_of(path: Path) -> str:
    """The format of a weights file by its content: "PyTorch", "safetensors", "HDF5" or "Keras".

    Raises:
        ResnetlabError: the file is empty, a damaged archive, or of a type that is often mistaken for weights.
        UsageError: none of them.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ResnetlabError(f"{path} is empty: 0 bytes. Expected a weights file.")
    if start.startswith(b"PK"):
        return _kind_of_archive(path)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5"
    if start.startswith(b"\x80"):  # a pickle, as PyTorch wrote them up to 1.5
        return "PyTorch"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100 << 20:
        return "safetensors"
    for begin, what in (
        (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: `git lfs pull` fetches it"),
        (b"<", "a web page or XML: the download did not give the file"),
        (b"\x1f\x8b", "a gzip archive: unpack it first"),
    ):
        if start.lstrip().startswith(begin):
            raise ResnetlabError(f"{path} is {what}. Expected a weights file.")
    if start[257:262] == b"ustar":
        raise ResnetlabError(f"{path} is a tar archive: unpack it, and give the weights file in it.")
    if path.suffix.lower() in _ENDINGS:
        raise ResnetlabError(
            f"{path} cannot be read: damaged, or does not match its extension (it begins {start[:8]!r})."
        )
    raise UsageError(
        f"{path}: its content (it begins {start[:8]!r}) is not that of a PyTorch, safetensors, HDF5 or Keras file."
    )


def _kind_of_archive(path: Path) -> str:
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from None
    if any(name.endswith("data.pkl") for name in names):
        if any(name.endswith("constants.pkl") for name in names):
            raise ResnetlabError(
                f"{path} is a TorchScript program: nothing of it was run. Expected a state dict: in PyTorch, "
                "torch.save(torch.jit.load(FILE).state_dict(), ...), where you trust it."
            )
        return "PyTorch"
    if "config.json" in names or "model.weights.h5" in names:
        return "Keras"
    raise ResnetlabError(f"{path} is an archive of {', '.join(names[:3])}: unpack it, and give the weights file.")


def _as_numbers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iub":
        if array.size > 1:  # only counters are whole numbers
            raise ResnetlabError(
                f"{path}: {name} {array.shape} is of {array.dtype}: quantised. Expected the weights before that, in "
                "float32, float16 or bfloat16."
            )
        return array
    if array.dtype.kind not in "fV":  # V: bfloat16
        raise ValueError(f"{name} is of {array.dtype}")
    numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ResnetlabError(
            f"{path}: {name} has {np.sum(~np.isfinite(numbers)):,} values that are not finite, of {numbers.size:,}: "
            "training diverged, or the file is damaged. Expected finite weights, as an earlier checkpoint may have."
        )
    return numbers


def _damaged(path: Path, error: Exception) -> ResnetlabError:
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ResnetlabError(f"{path} cannot be read: damaged, truncated, or does not match its extension ({text:.120}).")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise _needs("safetensors", path) from None
    import ml_dtypes  # noqa: F401  # a dependency of Keras; registers bfloat16 with NumPy

    return dict(load_file(path))


def _needs(package: str, path: Path) -> ResnetlabError:
    return ResnetlabError(f"To read {path}, {package} must be installed. Install: pip install 'resnetlab[{package}]'.")


# --------------------------------------------------------------------------------- folders and names on the hub


def _from_folder(folder: Path, origin: str) -> Checkpoint:
    """A folder as `transformers` or timm writes it: config.json, weights, and README.md with the licence."""
    weights = next((folder / name for name in _WEIGHTS_IN_FOLDER if (folder / name).is_file()), None)
    if (folder / ".metadata").is_file():
        raise ResnetlabError(
            f"{folder} is a checkpoint of torch.distributed, expected one weights file. Convert it first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(folder))} weights.pth"
        )
    if index := next(iter(sorted(folder.glob("*.index.json"))), None):
        raise ResnetlabError(
            f"{folder} holds weights in several files ({index.name}), expected one of {', '.join(_WEIGHTS_IN_FOLDER)}: "
            "model.save_pretrained(FOLDER, max_shard_size='10GB') writes a single one."
        )
    if weights is None or not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: expected config.json and one of {', '.join(_WEIGHTS_IN_FOLDER)} in the folder. A file of "
            "weights without config.json is imported by its own name."
        )
    config = _json(folder / "config.json")
    processor = _json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    checkpoint = replace(_from_file(weights, origin), licence=_licence(folder / "README.md"))
    try:
        if config.get("library") == "resnetlab":
            return _from_own_config(checkpoint, config)
        if "pretrained_cfg" in config:
            found = _from_timm_config(checkpoint, config)
        else:
            found = _from_transformers_config(checkpoint, config, processor)
        return replace(found, class_names=tuple(config[OWN_NAMES])) if OWN_NAMES in config else found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResnetlabError(f"{folder}: config.json is not as transformers or timm write it: {error!r}.") from None


def _from_own_config(checkpoint: Checkpoint, config: dict[str, Any]) -> Checkpoint:
    """A folder of `resnetlab export --format safetensors`."""
    return replace(
        checkpoint,
        settings=dict(config["settings"]),
        class_names=tuple(config["class_names"]),
        licence=config["license"],
        model=config["model"],
    )


def _from_transformers_config(checkpoint: Checkpoint, config: dict[str, Any], processor: dict[str, Any]) -> Checkpoint:
    if config.get("model_type") != "resnet":
        raise ResnetlabError(
            f"{checkpoint.origin}: received model_type={config.get('model_type')!r}, expected 'resnet'."
        )
    for key, expected in (("hidden_act", "relu"), ("downsample_in_first_stage", False)):
        if config.get(key, expected) != expected:
            raise ResnetlabError(
                f"{checkpoint.origin}: received {key}={config[key]!r}, expected {expected!r}, as in all networks here."
            )
    for key in ("do_rescale", "do_normalize"):
        if processor.get(key) is False:
            raise ResnetlabError(
                f"{checkpoint.origin}: received {key}=false, expected true: networks here normalise their images."
            )
    factor = processor.get("rescale_factor") or 1 / 255
    if not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ResnetlabError(f"{checkpoint.origin}: received rescale_factor={factor}, expected 1/255.")
    size, cropped, resample = _side(processor.get("size")), _side(processor.get("crop_size")), processor.get("resample")
    if processor.get("do_center_crop") is False:
        cropped = None
    if resample is not None and resample not in _RESAMPLING:
        raise ResnetlabError(f"{checkpoint.origin}: received resample={resample}, expected one of {_RESAMPLING}.")
    settings = _stated(  # either the middle crop_size of size, or size of size / crop_pct
        image_size=cropped or size,
        crop_pct=cropped / size if cropped and size else processor.get("crop_pct"),
        interpolation=None if resample is None else _RESAMPLING[resample],
        preprocessing=_preprocessing(processor.get("image_mean"), processor.get("image_std")),
    )
    labels = config.get("id2label") or {}
    names = tuple(_unique([labels[key] for key in sorted(labels, key=int)]))
    return replace(
        checkpoint,
        architecture="resnet",
        note=checkpoint.note or _squeezed(processor),
        settings=settings,
        class_names=None if not names or names[0] == "LABEL_0" else names,
        stride_on="1x1" if config.get("downsample_in_bottleneck") else "3x3",
    )


def _squeezed(processor: dict[str, Any]) -> str | None:
    """What is said of a processor that squeezes large images into a square, where here their centre is cropped."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    stated = processor.get("size")
    size = _side(stated)
    from_size = kind.lower().startswith("convnext") and size is not None and size >= SQUEEZED_FROM
    exact = isinstance(stated, dict) and "height" in stated and not processor.get("do_center_crop")
    if not from_size and not exact:
        return None
    return (
        f"its processor ({kind}, {size} pixels) resizes whole images to a square; here the centre square is cropped, "
        "so predictions for images that are not square differ"
    )


def _from_timm_config(checkpoint: Checkpoint, stated: dict[str, Any]) -> Checkpoint:
    config = stated["pretrained_cfg"]
    if stated.get("model_args"):
        raise ResnetlabError(
            f"{checkpoint.origin}: received model_args={stated['model_args']}, expected none: they change the network."
        )
    size = config.get("test_input_size") or config.get("input_size")
    settings = _stated(
        image_size=size[-1] if size else None,
        crop_pct=config.get("test_crop_pct") or config.get("crop_pct"),
        interpolation=config.get("interpolation"),
        preprocessing=_preprocessing(config.get("mean"), config.get("std")),
    )
    names = stated.get("label_names")
    return replace(
        checkpoint,
        architecture=None if "architecture" not in stated else str(stated["architecture"]),
        settings=settings,
        class_names=tuple(_unique(names)) if names else None,
        licence=config.get("license") or checkpoint.licence,
    )


def _stated(**settings: Any) -> dict[str, Any]:
    """The settings of a recipe that the source states."""
    return {key: value for key, value in settings.items() if value is not None}


def _side(size: Any) -> int | None:
    """Of {"shortest_edge": 224}, {"height": 224, "width": 224} or 224."""
    return next(iter(size.values()), None) if isinstance(size, dict) else size


def _preprocessing(mean: Any, std: Any) -> str | None:
    """The key in `PREPROCESSING` of a mean and a standard deviation."""
    if mean is None or std is None:
        return None
    for name in ("imagenet", "cifar10", "kuangliu", "unit"):
        if np.allclose(np.multiply((mean, std), 255), PREPROCESSING[name], atol=0.3):
            return name
    raise ResnetlabError(f"Received mean={mean}, std={std} in units of 1; expected one of {PREPROCESSING} (of 255).")


def _unique(names: Sequence[Any]) -> Iterator[str]:
    """The names, with a number where another class has the same: ImageNet has two cranes. Of ImageNet's lists of
    synonyms ("tench, Tinca tinca"), the first."""
    seen: dict[str, int] = {}
    for name in names:
        first = (str(name).partition(",")[0] if len(names) == IMAGENET_CLASSES else str(name)).strip()
        seen[first] = seen.get(first, 0) + 1
        yield first if seen[first] == 1 else f"{first} ({seen[first]})"


def _licence(card: Path) -> str | None:
    """The licence that the head of a model card states."""
    if not card.is_file():
        return None
    found = re.search(r"^license:\s*(\S+)", card.read_text("utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResnetlabError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise ResnetlabError(f"{path}: received a {type(value).__name__}, expected an object.")
    return value


def snapshot(name: str) -> Path:
    """The folder that a repository of the Hugging Face hub is downloaded to; another one for each of its commits."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ResnetlabError(
            f"To download {name}, huggingface_hub must be installed: pip install huggingface_hub. Or download its "
            "config.json and model.safetensors by hand, and give their folder."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", *_WEIGHTS_IN_FOLDER, "README.md"]))
    except Exception as error:  # offline, no such name, no access: it raises the errors of its HTTP library too
        raise ResnetlabError(
            f"{name} cannot be downloaded ({type(error).__name__}). Where there is a network, download its "
            "config.json, preprocessor_config.json and model.safetensors into a folder: `resnetlab import FOLDER`."
        ) from None


def _from_keras(name: str) -> dict[str, np.ndarray]:
    """keras.applications' weights as Keras downloads and keeps them."""
    environment.start()
    import keras

    from resnetlab.weights.arrays import collect_arrays

    function = getattr(keras.applications, name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras's progress does not get among our own output
            model = function(weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception where it cannot download
        file = f"{name.lower()}_weights_tf_dim_ordering_tf_kernels.h5"
        folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
        raise ResnetlabError(
            f"Keras cannot download {name}: {error}. Where there is a network, download that file ({file}), and "
            f"give it to `resnetlab import`, or put it into {folder}."
        ) from None
    return collect_arrays(model)
