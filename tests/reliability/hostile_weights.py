"""Weights files and checkpoints that lie, explode, or bring a program: made here, byte by byte. None may be believed.

Each maker writes one file or folder into `folder`; `CANARY` is a file beside it that a program among them would make.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CANARY = "canary"
SECRET = "secret.h5"  # beside the folder: what a link that leaves it would read
TERA = 1 << 40

Maker = Callable[[Path], Path]
HARMLESS = frozenset({"HDF5: a group that contains itself", "a .keras file of classes in os"})  # only arrays are read


class _Calls:
    """Pickled as a call, which unpickling makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def program(folder: Path) -> Any:
    """What makes the canary when it is unpickled."""
    return _Calls(eval, f"open({str(folder.parent / CANARY)!r}, 'w').close()")


def written(name: str, content: bytes | Callable[[Path], bytes]) -> Maker:
    """A maker of one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content(folder) if callable(content) else content)
        return path

    return make


def zipped(members: Mapping[str, bytes], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_bomb(name: str, size: int, others: Mapping[str, bytes] | None = None, *, zeros_after: bytes = b"") -> bytes:
    """A zip file whose member `name` is `zeros_after` and then zeros, `size` bytes in all."""
    buffer, block = io.BytesIO(), bytes(1 << 20)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, content in (others or {}).items():
            archive.writestr(other, content)
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(zeros_after)
            for _ in range(size >> 20):
                member.write(block)
    return buffer.getvalue()


def with_claimed_size(archive: bytes, size: int) -> bytes:
    """A zip file of one small member that its directory claims to be of `size` bytes (below 4 GB)."""
    changed = bytearray(archive)
    start = archive.rindex(b"PK\1\2")
    changed[start + 24 : start + 28] = struct.pack("<I", size)
    return bytes(changed)


# ---------------------------------------------------------------------------------------------------- PyTorch


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def state_dict(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of {"conv1.weight": a tensor} as torch.save writes it, with whatever it claims of its storage."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + _number(numel) + b"tQ"
    arguments = storage + _number(offset) + _numbers(shape) + _numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    return b"\x80\x02}" + _text("conv1.weight") + tensor + b"s."


def torch_zip(data: bytes, storage: bytes = bytes(64), **more: bytes) -> bytes:
    return zipped({"a/data.pkl": data, "a/data/0": storage, "a/version": b"3\n"} | more)


def older_torch(data: bytes, size: int = 16) -> bytes:
    """A file as PyTorch wrote it up to 1.5: pickles in a row, then the storages."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = data.replace(b"tQ", b"NtQ")  # with the place for views of storages
    return b"".join([*head, data, pickle.dumps(["0"], 2), struct.pack("<q", size), bytes(4 * size)])


def _wide() -> bytes:
    """Six lists, each of which holds the next one a hundred times."""
    inner: list[Any] = []
    for _ in range(6):
        inner = [inner] * 100
    return pickle.dumps(inner, 2)


def _torch() -> dict[str, Maker]:
    def legacy(folder: Path) -> bytes:
        return pickle.dumps({"state_dict": program(folder)}, protocol=2)

    def reduced(folder: Path) -> bytes:
        return torch_zip(pickle.dumps({"conv1.weight": program(folder)}, protocol=2))

    def built(folder: Path) -> bytes:
        state = pickle.dumps({"x": program(folder)}, protocol=2)[2:-1]
        return torch_zip(b"\x80\x02cargparse\nNamespace\n)\x81" + state + b"b.")

    def script(folder: Path) -> bytes:
        return zipped({"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b"\x80\x02).", "a/code/x.py": b"import os"})

    def nested(folder: Path) -> bytes:
        return torch_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")

    huge = state_dict(TERA, (TERA,), (1,))
    return {
        "a pickle that calls eval": written("x.pth", legacy),
        "a torch archive whose pickle calls eval": written("x.pt", reduced),
        "a call hidden in the state of a harmless class": written("x.ckpt", built),
        "a TorchScript program": written("x.pt", script),
        "a storage that claims a terabyte": written("x.pt", torch_zip(huge)),
        "a tensor far larger than its storage": written("x.pt", torch_zip(state_dict(16, (TERA,), (1,)))),
        "a terabyte of one repeated value": written("x.pt", torch_zip(state_dict(16, (TERA,), (0,)))),
        "three gigabytes of one repeated value": written("x.pt", torch_zip(state_dict(16, (3 << 28,), (0,)))),
        "an older file that claims a terabyte": written("x.pth", older_torch(state_dict(TERA, (TERA,), (1,)))),
        "an older file that claims two gigabytes": written("x.pth", older_torch(state_dict(1 << 29, (1 << 29,), (1,)))),
        "lists that hold each other 100**6 times": written("x.pt", torch_zip(_wide())),
        "a storage that claims more than is there": written("x.pt", torch_zip(state_dict(1 << 26, (1 << 26,), (1,)))),
        "a tensor that begins before its storage": written("x.pt", torch_zip(state_dict(16, (4,), (1,), -4000))),
        "a tensor that begins behind its storage": written("x.pt", torch_zip(state_dict(16, (4,), (1,), 1 << 30))),
        "a negative size": written("x.pt", torch_zip(state_dict(16, (-4,), (1,)))),
        "a storage that is a zip bomb": written(
            "x.pt",
            lambda _: zip_bomb(
                "a/data/0", 4 << 30, {"a/data.pkl": state_dict(1 << 30, (1 << 30,), (1,)), "a/version": b"3"}
            ),
        ),
        "a pickle that is a zip bomb": written("x.pt", lambda _: zip_bomb("a/data.pkl", 4 << 30, {"a/version": b"3"})),
        "lists 200,000 deep": written("x.pt", nested),
        "a pickle cut short": written("x.pth", b"\x80\x02}q\x00X\x05\x00"),
        "a pickle with a string of 4 GB": written("x.pth", b"\x80\x02X\xff\xff\xff\xffabc."),
        "a pickle with a million memo entries": written("x.pth", b"\x80\x02" + b"]r\xff\xff\xff\x7f" * 9 + b"."),
    }


# ------------------------------------------------------------------------------------------------- safetensors


def safetensors(header: Any, data: bytes = bytes(64), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _safetensors() -> dict[str, Maker]:
    def tensor(shape: Any, begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    one = tensor([16], 0, 64)
    files = {
        "a header of 2**60 bytes": safetensors({"a": one}, length=1 << 60),
        "a header longer than the file": safetensors({"a": one}, length=5000),
        "a header of 99 MB that is not there": safetensors({"a": one}, length=99 << 20),
        "offsets behind the end": safetensors({"a": tensor([1 << 30], 0, 4 << 30)}),
        "offsets that overlap": safetensors({"a": one, "b": tensor([8], 16, 48)}),
        "offsets that leave a hole": safetensors({"a": tensor([4], 0, 16), "b": tensor([4], 32, 48)}),
        "offsets that run backwards": safetensors({"a": tensor([4], 48, 32)}),
        "offsets that are negative": safetensors({"a": tensor([16], -64, 0)}),
        "a shape that is not the size": safetensors({"a": tensor([1 << 20], 0, 64)}),
        "a shape whose product overflows": safetensors({"a": tensor([1 << 62, 4, 16], 0, 64)}),
        "a type that does not exist": safetensors({"a": tensor([16], 0, 64, "PICKLE")}),
        "a header of lists 100,000 deep": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "a header that is no JSON": safetensors(b"{" + bytes(200)),
        "no header": struct.pack("<Q", 0) + b"{",
    }
    return {f"safetensors: {name}": written("x.safetensors", content) for name, content in files.items()}


# ------------------------------------------------------------------------------------------------ HDF5 and Keras


def hdf5(name: str, fill: Callable[[h5py.File, Path], object]) -> Maker:
    def make(folder: Path) -> Path:
        with h5py.File(folder / name, "w") as file:
            fill(file, folder)
        return folder / name

    return make


def secret(folder: Path) -> Path:
    """A file outside the folder, which must not be read through one inside of it."""
    path = folder.parent / SECRET
    if not path.exists():
        with h5py.File(path, "w") as file:
            file["kernel"] = np.full((4,), 1234.5, np.float32)
    return path


def _lazy(shape: tuple[int, ...], **options: Any) -> Callable[[h5py.File, Path], object]:
    return lambda file, _: file.create_dataset("layers/conv/kernel", shape, "f4", **options)


def _doubling(file: h5py.File, _: Path) -> None:
    """60 groups, each linked twice from the one before: 2**60 ways to the last."""
    group = file.create_group("layers")
    for _ in range(60):
        below = group.create_group("a")
        group["b"] = below
        group = below


def _cycle(file: h5py.File, _: Path) -> None:
    file.create_group("layers/conv")
    file["layers/conv/again"] = file["layers"]
    file["layers/conv/kernel"] = np.ones(3, np.float32)


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(secret(folder), "kernel", (4,))
    file.create_virtual_dataset("layers/conv/kernel", layout)


def _long_strings(file: h5py.File, _: Path) -> None:
    """A thousand references to texts of a megabyte, from a heap."""
    dataset = file.create_dataset("layers/conv/kernel", (1000,), h5py.string_dtype())
    dataset[:] = "x" * 100_000


def _long_strings_in_a_compound(file: h5py.File, _: Path) -> None:
    kind = np.dtype([("value", "f4"), ("name", h5py.string_dtype())])
    rows = np.zeros(1000, kind)
    rows["name"] = "x" * 100_000
    file.create_dataset("layers/conv/kernel", data=rows, dtype=kind)


def _one_huge_chunk_of_a_filter_left_out(file: h5py.File, _: Path) -> None:
    """Its stored bytes are as many as it claims; the filter that is left out is not the one that inflates."""
    stored = zlib_of_zeros(1 << 30)
    dataset = file.create_dataset(
        "layers/conv/kernel", (len(stored),), "u1", chunks=(len(stored),), compression="gzip", shuffle=True
    )
    dataset.id.write_direct_chunk((0,), stored, filter_mask=0b01)


def _one_huge_chunk(file: h5py.File, _: Path) -> None:
    dataset = file.create_dataset(
        "layers/conv/kernel", (1 << 28,), "f4", chunks=(1 << 28,), maxshape=(None,), compression="gzip"
    )
    dataset.id.write_direct_chunk((0,), zlib_of_zeros(1 << 30))
    dataset.resize((10,))


def zlib_of_zeros(size: int) -> bytes:
    import zlib

    compressor, parts = zlib.compressobj(9), []
    for _ in range(size >> 20):
        parts.append(compressor.compress(bytes(1 << 20)))
    return b"".join([*parts, compressor.flush()])


HDF5: dict[str, Callable[[h5py.File, Path], object]] = {
    "a terabyte in chunks, without data": _lazy((TERA,), chunks=(1 << 20,)),
    "a terabyte, compressed, without data": _lazy((1 << 20, 1 << 20), compression="gzip", chunks=(1024, 1024)),
    "a terabyte, contiguous, without data": _lazy((TERA,)),
    "three gigabytes without data": _lazy((3 << 28,), chunks=(1 << 20,)),
    "a chunk of a gigabyte for ten numbers": _one_huge_chunk,
    "a link to another file": lambda file, folder: file.__setitem__(
        "layers", h5py.ExternalLink(str(secret(folder)), "/")
    ),
    "a dataset in another file": lambda file, folder: file.create_dataset(
        "layers/conv/kernel", (4,), "f4", external=[(str(secret(folder)), 0, 16)]
    ),
    "a virtual dataset of another file": _virtual,
    "a soft link to itself": lambda file, _: file.__setitem__("layers", h5py.SoftLink("/layers")),
    "a group that contains itself": _cycle,
    "a group linked 2**60 times": _doubling,
    "texts instead of numbers": _long_strings,
    "texts beside numbers": _long_strings_in_a_compound,
    "a chunk that leaves a filter out": _one_huge_chunk_of_a_filter_left_out,
}


def _keras(config: Any, weights: bytes | None = None) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        text = config if isinstance(config, bytes) else json.dumps(config(folder)).encode()
        if weights is not None:
            return zipped({"config.json": text, "model.weights.h5": weights})
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["layers/conv/kernel"] = np.ones(3, np.float32)
        return zipped({"config.json": text, "metadata.json": b"{}", "model.weights.h5": buffer.getvalue()})

    return make


def _keras_files() -> dict[str, Maker]:
    def lambda_layer(folder: Path) -> Any:
        code = f"open({str(folder.parent / CANARY)!r}, 'w')"
        return {
            "class_name": "Sequential",
            "config": {"layers": [{"class_name": "Lambda", "config": {"function": code}}]},
        }

    def foreign_module(folder: Path) -> Any:
        path = str(folder.parent / CANARY)
        layer = {"module": "os", "class_name": "system", "config": f"touch {path}", "registered_name": "system"}
        return {"module": "builtins", "class_name": "exec", "config": {"layers": [layer]}}

    return {
        "a .keras file with a Lambda layer": written("x.keras", _keras(lambda_layer)),
        "a .keras file of classes in os": written("x.keras", _keras(foreign_module)),
        "a .keras file with a config 100,000 deep": written("x.keras", _keras(b"[" * 100_000 + b"]" * 100_000)),
        "a .keras file with a config that is no JSON": written("x.keras", _keras(b"{")),
        "a .keras file whose weights are a zip bomb": written(
            "x.keras",
            lambda _: zip_bomb("model.weights.h5", 3 << 30, {"config.json": b"{}"}, zeros_after=b"\x89HDF\r\n\x1a\n"),
        ),
        "a .keras file whose config is a zip bomb": written(
            "x.keras", lambda _: zip_bomb("config.json", 3 << 30, {"model.weights.h5": b""})
        ),
        "a .keras file without weights": written("x.keras", zipped({"config.json": b"{}"})),
    }


# -------------------------------------------------------------------------------------------------------- others


def npy(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = bytes(64)) -> bytes:
    """A .npy file that claims a shape and a type."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def checkpoints() -> dict[str, Maker]:
    """Checkpoints of a run: npz files, as `training.checkpoint.write` makes them, and as it does not."""

    def array(value: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, value)
        return buffer.getvalue()

    def objects(folder: Path) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.array([program(folder)], object), allow_pickle=True)
        return zipped({"names.npy": array(np.array(["a"])), "00000.npy": buffer.getvalue()})

    whole = {"names.npy": array(np.array(["a"])), "progress.npy": array(np.array("{}"))}
    deep = array(np.array("[" * 100_000))
    return {
        "a checkpoint with a pickled object": written("x.npz", objects),
        "a checkpoint that claims a terabyte": written("x.npz", zipped(whole | {"00000.npy": npy((TERA,))})),
        "a checkpoint that claims ten gigabytes": written("x.npz", zipped(whole | {"00000.npy": npy((10 << 28,))})),
        "a checkpoint that is a zip bomb": written(
            "x.npz", lambda _: zip_bomb("00000.npy", 3 << 30, whole, zeros_after=npy((3 << 28,), data=b""))
        ),
        "a checkpoint of negative shape": written("x.npz", zipped(whole | {"00000.npy": npy((-3,))})),
        "a checkpoint with a program for a type": written(
            "x.npz", zipped(whole | {"00000.npy": npy((3,), "__import__('os')")})
        ),
        "a checkpoint with a JSON 100,000 deep": written(
            "x.npz", zipped(whole | {"00000.npy": array(np.ones(3, np.float32)), "progress.npy": deep})
        ),
        "a checkpoint that is no archive": written("x.npz", b"PK\3\4" + bytes(300)),
        "a checkpoint that is one array": written("x.npz", array(np.ones(3))),
    }


def weights() -> dict[str, Maker]:
    """Files for `resnetlab import`, `from_pretrained` and `--weights`."""
    found = _torch() | _safetensors() | {f"HDF5: {name}": hdf5("x.h5", fill) for name, fill in HDF5.items()}
    found |= _keras_files()
    found |= {
        "an archive of objects": written("x.npz", zipped({"a.npy": npy((1,), "|O", b"cos\nsystem\n.")})),
        "a pointer of Git LFS": written("x.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a web page": written("x.pth", b"<!DOCTYPE html><html>"),
        "an empty file": written("x.pth", b""),
        "a tar archive": written("x.pth", bytes(257) + b"ustar" + bytes(250)),
        "zeros": written("x.h5", bytes(4096)),
    }
    return found
