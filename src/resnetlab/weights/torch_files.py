"""Read PyTorch files as data: find the state dict in a checkpoint, at any depth. No code in a file is executed.

PyTorch's restricted unpickler builds tensors and plain containers. `_HARMLESS` also allows values that training scripts
store next to the weights, each of which becomes an empty object. Any other global is refused by name.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.untrusted import require_plausible
from resnetlab.weights.state_dicts import is_normalization, prefixes_of_networks

# Where training scripts put the weights, in the order in which one is taken: averaged weights come last.
_PLACES = (
    "",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow|teacher|momentum|target|encoder_k)([._]|$)", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(
    r"optim|^opt$|param_groups|sched|scaler|criterion|^loss|callbacks|^loops$|^amp$|rng", re.IGNORECASE
)
_MAX_DEPTH = 6
_MAX_CONTAINERS = 100_000  # lists may hold each other in more ways than could ever be followed

_HARMLESS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint", "float") for bits in (16, 32, 64)),
    *(f"numpy.{name}" for name in ("bool_", "bool", "int8", "uint8", "str_", "complex64", "complex128")),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)),
    *(f"numpy.dtypes.{name}DType" for name in ("Bool", "Str", "Bytes", "Object")),
    *(
        f"{module}.{kind}{flavour}Path"
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
        for flavour in ("", "Posix", "Windows")
    ),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(
        f"builtins.{name}"
        for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "frozenset", "slice", "range")
    ),
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "torch.torch_version.TorchVersion",
    "typing.Any",
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
    "mmengine.logging.history_buffer.HistoryBuffer",
)
_DICTS = (  # the unpickler fills these item by item
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "addict.addict.Dict",
    "mmengine.config.config.ConfigDict",
)


class _Nothing(dict[Any, Any]):
    """Replaces a harmless value: it accepts any arguments and any state, and stores nothing."""

    def __new__(cls, *_: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _PlainDict:
    """Replaces subclasses of dict, which may hold weights, by OrderedDict without a default factory."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _PlainList:
    """Replaces `collections.deque` by a list."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        return []


def read_torch(path: Path, key: str | None = None) -> tuple[dict[str, np.ndarray], str | None]:
    """The tensors of the state dict in a file, floats as float32, and a note on the choice if there are several.

    Args:
        path: of a file of `torch.save`, in its zip format or the older one.
        key: the place of the state dict in the file ("ema", "state_dict.net"), where the usual one is not wanted.

    Raises:
        UsageError: `key` is no place in the file that holds tensors.
        ResnetlabError: PyTorch is not installed, the file contains objects other than data, or no tensors.
    """
    try:
        import torch
    except ImportError:
        raise ResnetlabError(
            f"To read {path}, torch must be installed. Install: pip install 'resnetlab[torch]'."
        ) from None
    content = _load(torch, path)
    if sum(1 for _ in islice(_containers(content, ""), _MAX_CONTAINERS)) == _MAX_CONTAINERS:
        raise ResnetlabError(f"{path}: received {_MAX_CONTAINERS:,} lists and dicts, expected a state dict of tensors.")
    found = dict(_networks(content, torch.Tensor))
    if not found:
        raise ResnetlabError(f"{path}: expected a state dict of tensors, received {_described(content)}.")
    place, note = _choose(found, key, path)
    arrays, claimed = {}, 0
    for name, tensor in found[place].items():
        tensor = tensor.detach()
        claimed += tensor.numel() * tensor.element_size()
        require_plausible(path, claimed, f"{name}, with all before it,")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ResnetlabError(f"{path}: {name} is quantized, sparse or without values, expected a dense tensor.")
        arrays[name] = (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).numpy()
    return arrays, note


def _load(torch: Any, path: Path) -> Any:
    harmless: list[Any] = [(_Nothing, name) for name in _HARMLESS] + [(_PlainDict, name) for name in _DICTS]
    harmless += [(_PlainList, "collections.deque")]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        name = refused[1] if refused else next(iter(_globals(path)), None)
        what = f"the global {name}" if name else f"a program, or it is damaged: {str(error).strip()[-120:]}"
        raise ResnetlabError(
            f"{path} holds more than weights ({what}): refused, and nothing of it was run. Expected a state dict: "
            "where you trust the file, load it in its own project and torch.save(model.state_dict(), ...)."
        ) from None


def _globals(path: Path) -> Iterator[str]:
    """The globals that a pickle names and that are not allowed, read without unpickling."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        else:
            content = path.read_bytes()
        texts: list[str] = []
        for opcode, argument, _ in pickletools.genops(content):
            name = None
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
            if name and name not in _HARMLESS + _DICTS and not name.startswith(("collections.", "torch.")):
                yield name
    except (ValueError, StopIteration, zipfile.BadZipFile, KeyError):
        return


def _networks(content: Any, tensor: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tensors of each network, with its place: a state dict may hold several, as "student." and "teacher."."""
    for place, tensors in _state_dicts(content, "", tensor):
        prefixes = prefixes_of_networks(tensors)
        if len(prefixes) < 2:
            yield place, tensors
            continue
        outside = [name for name in tensors if not name.startswith(tuple(prefixes))]
        shared = {name: tensors[name] for name in outside if is_normalization(name, tensors[name].numel())}
        for prefix in prefixes:
            inside = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
            yield f"{place}.{prefix}".strip("."), inside | shared


def _state_dicts(value: Any, place: str, tensor: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dict that holds tensors by name, at any depth, with its place: "", "model", "state_dict.ema", "0.net"."""
    for where, items in _containers(value, place):
        if own := {name: item for name, item in items.items() if isinstance(item, tensor)}:
            yield where, own


def _containers(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dict and list that may hold weights, at any depth, with its place and its items."""
    if place.count(".") >= _MAX_DEPTH:
        return
    if isinstance(value, list | tuple):  # such as (state dict, epoch)
        items = {str(index): item for index, item in enumerate(value) if isinstance(item, dict | list | tuple)}
    elif isinstance(value, dict):
        items = {name: item for name, item in value.items() if isinstance(name, str)}
    else:
        return
    yield place, items
    for name, item in items.items():
        if not _NOT_WEIGHTS.search(name):
            yield from _containers(item, f"{place}.{name}" if place else name)


def _choose(found: dict[str, dict[str, Any]], key: str | None, path: Path) -> tuple[str, str | None]:
    """The place of the state dict to read, and a note on the choice if there are several."""
    if key is not None:
        matching = [place for place in found if place == key] or [p for p in found if p.rpartition(".")[2] == key]
        if len(matching) != 1:
            places = ", ".join(place or "(the file itself)" for place in found)
            raise UsageError(f"{path}: received --key {key}, expected one of {places}.")
        return matching[0], None
    most = max(len(tensors) for tensors in found.values())  # a group with few tensors is not another network
    networks = [place for place, tensors in found.items() if 2 * len(tensors) >= most]

    def rank(place: str) -> tuple[bool, int, int]:
        last = place.rpartition(".")[2]
        known = _PLACES.index(last) if last in _PLACES else len(_PLACES)
        return _AVERAGED.search(place) is not None, known, len(place)

    chosen, *others = sorted(networks, key=rank)
    if not others:
        return chosen, None
    return chosen, (
        f"the file holds {len(networks)} sets of weights: {chosen or 'the outermost'} was taken; choose another with "
        f"--key: {', '.join(others)}"
    )


def _described(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if "param_groups" in content:
        return "the state of an optimizer (state, param_groups), which has no weights of a network"
    kinds = ", ".join(
        f"{name}: {'not a tensor' if isinstance(item, _Nothing) else type(item).__name__}"
        for name, item in list(content.items())[:6]
    )
    return f"a dict of {kinds}" if content else "an empty dict"
