"""Checks of files that others made, before anything is allocated for them: what they claim, and where they point.

A weights file of a few bytes may claim terabytes, refer to other files, or name a group in 2**60 ways. Weights hardly
compress, so the size of the file itself bounds what is in it.
"""

from __future__ import annotations

import json
import math
import tomllib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import IO, Any

from resnetlab.errors import ResnetlabError

MAX_BYTES = 4 << 30  # of all arrays of a file: the largest network has 0.5 GB
EXPANSION, SLACK = 20, 64 << 20  # what a file holds may be so many times its own size, and so many bytes more


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, with a ValueError for what is nested too deeply, too."""
    return _parsed(json.loads, text)


def parse_toml(text: str) -> Any:
    """`tomllib.loads`, with a ValueError for what is nested too deeply, too."""
    return _parsed(tomllib.loads, text)


def _parsed(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def require_plausible(path: Path, claimed: int, what: str) -> None:
    """Raise ResnetlabError if `what` in a file claims many more bytes than the file has."""
    size = path.stat().st_size
    if claimed > min(MAX_BYTES, EXPANSION * size + SLACK):
        raise ResnetlabError(
            f"{path}: {what} claims {claimed:,} bytes, in a file of {size:,}. Expected a network's weights: the file "
            "is damaged or malicious, and nothing of it was read."
        )


def check_archive(path: Path) -> None:
    """Raise ResnetlabError if a zip file holds a name twice, or claims many more bytes than it has.

    Raises:
        zipfile.BadZipFile: it is no zip file.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    require_plausible(path, sum(member.file_size for member in members), "its content")
    name, times = next(iter(Counter(member.filename for member in members).most_common(1)), ("", 0))
    if times > 1:
        raise ResnetlabError(
            f"{path} holds {name!r} {times} times, expected each name once: it is damaged or malicious."
        )


def read_member(archive: zipfile.ZipFile, name: str, *, max_bytes: int) -> bytes:
    """The content of a member of a zip file. Raises ValueError if it has, or claims, more than `max_bytes`."""
    member = archive.getinfo(name)
    if member.file_size > max_bytes:
        raise ValueError(f"{name!r} claims {member.file_size:,} bytes, expected at most {max_bytes:,}")
    with archive.open(member) as file:  # `ZipFile.read` inflates first, and looks at the claim after that
        content = file.read(member.file_size)
        if len(content) < member.file_size or file.read(1):
            raise ValueError(f"{name!r} is not of the {member.file_size:,} bytes that it claims")
    return content


def check_hdf5(path: Path, file: IO[bytes] | None = None) -> None:
    """Raise ResnetlabError where an HDF5 file, at `path` or `file` in it, cannot be read as a network's weights safely.

    Refused are links and datasets that lead to other files, arrays of texts of any length, sizes that the file cannot
    hold, and compression other than gzip's.
    """
    import h5py

    claimed = 0
    with h5py.File(file or path, "r") as opened:
        for dataset in hdf5_datasets(path, opened):
            if dataset.external or dataset.is_virtual:
                raise ResnetlabError(f"{path}: {dataset.name} refers to other files: refused, and nothing was read.")
            if dataset.dtype.hasobject:  # each element may point to a text of any length
                raise ResnetlabError(f"{path}: {dataset.name} holds {dataset.dtype}, expected numbers.")
            chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0
            claimed += max(int(dataset.nbytes), chunk)
            require_plausible(path, claimed, f"{dataset.name}, with all before it,")
            _check_chunks(path, dataset, chunk)


def hdf5_datasets(path: Path, top: Any, *, without: Container[str] = ()) -> Iterator[Any]:
    """Every dataset of a file once, in however many ways it is linked, but those in groups named in `without`.

    Raises:
        ResnetlabError: a link leads to another file.
    """
    import h5py

    waiting, seen = [top], {h5py.h5o.get_info(top.id).addr}
    while waiting:
        item = waiting.pop()
        if isinstance(item, h5py.Dataset):
            yield item
        if not isinstance(item, h5py.Group):
            continue
        inside = []
        for name in item:
            if name in without:
                continue
            link = item.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ResnetlabError(f"{path}: {name} refers to the file {link.filename}: refused, and not read.")
            if not isinstance(link, h5py.HardLink):
                continue  # a soft link: what it leads to in this file is found without it
            child = item[name]
            if (address := h5py.h5o.get_info(child.id).addr) not in seen:
                seen.add(address)
                inside.append(child)
        waiting.extend(reversed(inside))


def _check_chunks(path: Path, dataset: Any, size: int) -> None:
    """Raise ResnetlabError if a compressed chunk is not of the `size` bytes it claims: HDF5 would inflate it all."""
    import h5py

    pipeline = dataset.id.get_create_plist()
    filters = [pipeline.get_filter(number)[0] for number in range(pipeline.get_nfilters())]
    if not filters:
        return
    if set(filters) - {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE} or len(set(filters)) < len(filters):
        raise ResnetlabError(f"{path}: {dataset.name} is compressed in an unusual way, expected gzip or nothing.")
    for number in range(dataset.id.get_num_chunks()):
        mask, content = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(number).chunk_offset)
        if mask:  # a bit for each filter that was left out
            raise ResnetlabError(f"{path}: a chunk of {dataset.name} leaves out filters: not supported.")
        if h5py.h5z.FILTER_DEFLATE in filters:
            content = zlib.decompressobj().decompress(content, size + 1)
        if len(content) != size:
            raise ResnetlabError(f"{path}: a chunk of {dataset.name} is not of the {size:,} bytes that it claims.")
