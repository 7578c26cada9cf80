"""Packed images in several files, the shards, in a folder or in object storage; read as if they were one.

`shards.json` describes them: what `pack.json` does, and the size and SHA-256 of each shard. It is written last, so that
a folder that has one is complete. All shards are checked before anything is read. Those in a folder are memory-mapped
where they lie; those in object storage are first copied to the cache, and a copy that was interrupted is continued.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetlab.atomic import atomic_file, locked
from resnetlab.environment import cache_folder
from resnetlab.errors import ResnetlabError, UsageError, first_informative_line
from resnetlab.progress import CountCallback
from resnetlab.untrusted import parse_json

MANIFEST = "shards.json"
FORMAT = 1
MANIFEST_BYTES = 4 << 30  # at most; a million images take 200 MB
THREADS = 8
CHUNK = 1 << 22  # bytes that are read at once


class Shards:
    """Arrays (n, ...) that are read as if they were concatenated.

    All rows of a batch are read by one operation, whichever shards they are in: through a view that begins at the
    lowest address of all shards, in steps that lead to each of their rows. To read shard after shard takes twice as
    long for small images.
    """

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self.parts = list(parts)
        lengths = np.array([len(part) for part in self.parts])
        self._ends = np.cumsum(lengths)
        self.shape = (int(self._ends[-1]), *self.parts[0].shape[1:])
        self.dtype = self.parts[0].dtype
        addresses, stride = [part.ctypes.data for part in self.parts], self.parts[0].strides[0]
        lowest, size = int(np.argmin(addresses)), self.parts[0][0].nbytes
        if any(part.strides != self.parts[0].strides or not part[0].flags.c_contiguous for part in self.parts):
            raise ValueError("shards must have the same layout in memory")
        places = [address - addresses[lowest] for address in addresses]
        step = math.gcd(stride, *places)
        self._first = np.array(places) // step - (self._ends - lengths) * (stride // step)
        self._stride = stride // step
        steps = max(place + (len(part) - 1) * stride for place, part in zip(places, self.parts, strict=True)) // step
        self._rows = np.lib.stride_tricks.as_strided(
            self.parts[lowest], shape=(steps + 1, size), strides=(step, 1), writeable=False
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """A row, or the rows of a slice, of numbers or of a mask: a copy."""
        rows = self._numbers(index)
        shards = np.searchsorted(self._ends, rows, "right")
        found = self._rows[self._first[shards] + rows * self._stride]
        return (found.copy() if rows.ndim == 0 else found).reshape(*rows.shape, *self.shape[1:])

    def _numbers(self, index: Any) -> NDArray[np.int64]:
        """The numbers of the rows, from 0 on; without a list of all rows where they are given as numbers."""
        if not (isinstance(index, np.ndarray) and index.dtype.kind == "i"):
            return np.asarray(np.arange(len(self))[index])
        if index.size and not -len(self) <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        return np.where(index < 0, index + len(self), index)

    def column(self, number: int) -> Shards:
        """`images[:, number]`, a view."""
        return Shards([part[:, number] for part in self.parts])


Images = NDArray[np.uint8] | Shards


@dataclass(frozen=True, eq=False)
class Packed:
    """Images that were packed before."""

    images: Shards
    meta: Mapping[str, Any]  # as in pack.json
    location: str
    interpolation: str
    whole: bool

    def require(self, size: int, interpolation: str, *, whole: bool) -> None:
        """Raise UsageError if these are not images as a recipe needs them."""
        received = (self.meta["shape"][-2], self.interpolation, self.whole)
        if received != (size, interpolation, whole):
            raise UsageError(
                f"{self.location} holds images packed for {_described(*received)}; the recipe needs "
                f"{_described(size, interpolation, whole)}. Choose the recipe that they were packed by, or pack the "
                "data again with `resnetlab pack DATA TARGET --recipe ...`."
            )


def _described(size: int, interpolation: str, whole: bool) -> str:
    return f"{size}x{size} pixels, {interpolation}, {'whole images' if whole else 'centre squares'}"


def is_sharded(spec: str) -> bool:
    """Whether data is given as shards: a URL, or a folder with their description."""
    return "://" in spec or Path(spec).expanduser().joinpath(MANIFEST).is_file()


def portable(name: str) -> str:
    """The name of a data set without characters that are not allowed in a description of shards."""
    return re.sub(r"[^\w. -]", "_", unicodedata.normalize("NFC", name)) or "_"


def require_free(target: str) -> None:
    """Raise UsageError where there are shards already."""
    files, folder = _file_system(target)
    try:
        taken = files.exists(f"{folder}/{MANIFEST}")
    except Exception as error:  # whatever the file system raises
        raise ResnetlabError(f"Cannot write shards to {target}: {first_informative_line(error)}.") from error
    if taken:
        raise UsageError(f"{target} has shards already: remove them, or choose another target.")


def write(
    images: NDArray[np.uint8],
    description: Mapping[str, Any],
    target: str,
    *,
    rows: int,
    progress: CountCallback | None = None,
) -> int:
    """Write images to shards of so many rows, several at a time, then their description; returns how many shards.

    Shards that an interrupted process has written there already are kept.

    Raises:
        UsageError: there are shards already.
        ResnetlabError: they cannot be written.
    """
    require_free(target)
    files, folder = _file_system(target)
    count = -(-len(images) // rows)
    try:
        files.makedirs(folder, exist_ok=True)

        def write_one(number: int) -> dict[str, Any]:
            part, name = images[number * rows : (number + 1) * rows], f"images-{number:05d}.npy"
            sha256, size = _digest(_npy_blocks(part))
            if not _is_there(files, f"{folder}/{name}", sha256, size):
                with files.open(f"{folder}/{name}", "wb") as file:
                    for block in _npy_blocks(part):
                        file.write(block)
            return {"name": name, "rows": len(part), "bytes": size, "sha256": sha256}

        shards = _in_threads(write_one, range(count), progress)
        text = json.dumps({"format": FORMAT, "shards": shards, **description}).encode()
        with files.open(f"{folder}/{MANIFEST}", "wb") as file:
            file.write(text)
    except ResnetlabError:
        raise
    except Exception as error:  # whatever the file system raises
        raise ResnetlabError(f"Cannot write shards to {target}: {first_informative_line(error)}.") from error
    return count


def _digest(blocks: Iterable[bytes]) -> tuple[str, int]:
    """The SHA-256 of bytes, and how many there are."""
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _is_there(files: Any, path: str, sha256: str, size: int) -> bool:
    """Whether an interrupted process has written this file already."""
    if not files.exists(path) or files.size(path) != size:
        return False
    with files.open(path, "rb") as file:
        return _digest(iter(partial(file.read, CHUNK), b"")) == (sha256, size)


def read(spec: str, *, progress: CountCallback | None = None) -> tuple[dict[str, Any], Packed]:
    """The description of shards, and their images, all of which are there and undamaged.

    Raises:
        ResnetlabError: there are none, they cannot be reached, or some are missing or damaged: which ones.
    """
    files, folder = _file_system(spec)
    described = _description(files, folder, spec)
    local, check = Path(folder), partial(_check, Path(folder))
    if not _is_local(files):
        local = _copies(described)
        local.mkdir(parents=True, exist_ok=True)
        check = partial(_fetch, files, folder, local)
    shards, record = described["shards"], _checked_record(described)
    with locked(record.with_suffix(".lock"), waiting=lambda: None):
        checked = _read_checked(record)
        problems = _in_threads(partial(check, checked), shards, progress)
        for shard, problem in zip(shards, problems, strict=True):
            if problem is None:
                checked[str(local / shard["name"])] = _stamp(local / shard["name"], shard)
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps(checked), "utf-8")
    problems = [problem for problem in problems if problem is not None]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ResnetlabError(
            f"{len(problems)} of {len(shards)} shards of {spec} cannot be used: {'; '.join(problems[:5])}"
            f"{more}. Restore them, or pack the data again."
        )
    parts = [_mapped(local / shard["name"], shard, described["shape"]) for shard in shards]
    packed = Packed(Shards(parts), described, spec, described["interpolation"], described["whole"])
    return described, packed


def _description(files: Any, folder: str, spec: str) -> dict[str, Any]:
    try:
        if files.size(f"{folder}/{MANIFEST}") > MANIFEST_BYTES:
            raise ValueError("it is too large")
        described = parse_json(files.cat_file(f"{folder}/{MANIFEST}"))
    except FileNotFoundError:
        raise ResnetlabError(f"{spec} has no {MANIFEST}. Make shards with `resnetlab pack DATA {spec}`.") from None
    except Exception as error:
        raise ResnetlabError(f"{spec}/{MANIFEST} cannot be read: {first_informative_line(error)}.") from error
    try:
        _require_valid(described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else first_informative_line(error)
        raise ResnetlabError(f"{spec}/{MANIFEST} is not a description of shards: {problem}.") from None
    return described


def _require_valid(described: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError if a description is not consistent, or names files elsewhere."""
    if described["format"] != FORMAT:
        raise ValueError(f"format {described['format']!r}, expected {FORMAT}")
    shape, rows = described["shape"], [shard["rows"] for shard in described["shards"]]
    if not rows or any(type(value) is not int or value < 1 for value in [*shape, *rows]) or sum(rows) != shape[0]:
        raise ValueError(f"shape {shape} of shards with {sum(rows)} rows")
    if len(shape) != 4 + bool(described["whole"]) or shape[-1] != 3 or shape[-2] != shape[-3]:
        raise ValueError(f"shape {shape}")
    for shard in described["shards"]:
        if not re.fullmatch(r"images-\d{5,}\.npy", shard["name"]) or not re.fullmatch(r"[0-9a-f]{64}", shard["sha256"]):
            raise ValueError(f"the shard {shard['name']!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", described["key"]) or not re.fullmatch(r"[\w. -]+", described["source"]):
        raise ValueError(f"key {described['key']!r}, source {described['source']!r}")
    for name in ("names", "labels", "subsets", "hashes", "aspect"):
        if len(described[name]) != shape[0]:
            raise ValueError(f"{len(described[name])} {name} of {shape[0]} images")
    if not all(type(label) is int and 0 <= label < len(described["class_names"]) for label in described["labels"]):
        raise ValueError(f"labels outside of {len(described['class_names'])} classes")
    if not isinstance(described["audit"], dict) or described["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError("audit or interpolation")


def _check(folder: Path, checked: Mapping[str, Any], shard: Mapping[str, Any]) -> str | None:
    """What is wrong with a shard in a folder, or None. One that is as it was when it was last checked is not read."""
    path = folder / shard["name"]
    try:
        if path.stat().st_size != shard["bytes"]:
            return f"{shard['name']} has {path.stat().st_size:,} bytes, expected {shard['bytes']:,}"
        if checked.get(str(path)) == _stamp(path, shard):
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except FileNotFoundError:
        return f"{shard['name']} is missing"
    except OSError as error:
        return f"{shard['name']}: {error.strerror or error}"
    return None if digest.hexdigest() == shard["sha256"] else f"{shard['name']} is damaged: its checksum differs"


def _fetch(files: Any, folder: str, local: Path, checked: Mapping[str, Any], shard: Mapping[str, Any]) -> str | None:
    """Copy a shard to the cache, unless it is there; what is wrong with it, or None."""
    if _check(local, checked, shard) is None:
        return None
    name = shard["name"]
    try:
        with files.open(f"{folder}/{name}", "rb") as file, atomic_file(local / name) as temporary:
            digest, size = hashlib.sha256(), 0
            with temporary.open("wb") as copy:
                while block := file.read(CHUNK):
                    size += len(block)
                    if size > shard["bytes"]:
                        break
                    digest.update(block)
                    copy.write(block)
            if size != shard["bytes"] or digest.hexdigest() != shard["sha256"]:
                raise ValueError("is damaged: its size or checksum differs")
    except FileNotFoundError:
        return f"{name} is missing"
    except ValueError as error:
        return f"{name} {error}"
    except Exception as error:
        return f"{name}: {first_informative_line(error)}"
    return None


def _mapped(path: Path, shard: Mapping[str, Any], shape: Sequence[int]) -> NDArray[np.uint8]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ResnetlabError(f"The shard {path} cannot be read: {first_informative_line(error)}.") from None
    if array.dtype != np.uint8 or array.shape != (shard["rows"], *shape[1:]):
        raise ResnetlabError(
            f"The shard {path} holds {array.dtype} {array.shape}, expected uint8 {(shard['rows'], *shape[1:])}."
        )
    return array


def _npy_blocks(images: NDArray[np.uint8]) -> Iterator[bytes]:
    """The bytes of a .npy file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": images.shape})
    yield header.getvalue()
    step = max(1, CHUNK // max(images[:1].nbytes, 1))
    for start in range(0, len(images), step):
        yield images[start : start + step].tobytes()


def _in_threads(function: Callable[[Any], Any], items: Sequence[Any], progress: CountCallback | None) -> list[Any]:
    found = []
    with ThreadPoolExecutor(min(THREADS, len(items)) or 1) as threads:
        for done, result in enumerate(threads.map(function, items), start=1):
            found.append(result)
            if progress is not None:
                progress(done, len(items))
    return found


def _file_system(spec: str) -> tuple[Any, str]:
    """The file system of a URL or a path, and the folder in it."""
    import fsspec

    try:
        files, folder = fsspec.core.url_to_fs(spec if "://" in spec else str(Path(spec).expanduser().resolve()))
    except (ImportError, ValueError) as error:  # a package for the protocol is missing, or it is unknown
        raise UsageError(f"{spec}: {first_informative_line(error)}.") from None
    return files, str(folder).rstrip("/")


def _is_local(files: Any) -> bool:
    return "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol)


def _copies(described: Mapping[str, Any]) -> Path:
    """The folder of the cache for copies of shards."""
    return cache_folder() / f"{described['source']}-{described['shape'][-2]}-{described['key'][:16]}-shards"


# What was checked is kept in the cache, so that hundreds of gigabytes are not read at each start.


def _checked_record(described: Mapping[str, Any]) -> Path:
    folder = cache_folder() / ".checked"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{described['key'][:16]}.json"


def _stamp(path: Path, shard: Mapping[str, Any]) -> list[Any]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, shard["sha256"]]


def _read_checked(record: Path) -> dict[str, Any]:
    try:
        found = parse_json(record.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
