"""Normalise image arguments (files, folders, globs, PIL images, arrays) to a list of files and encoded images."""

from __future__ import annotations

import glob
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from resnetlab.data.walk import is_clutter, is_skipped, listed_endings, scan
from resnetlab.errors import UsageError

# A file, a folder, a glob, an image, or several of these; an array is (h, w, 3), (h, w) or (n, h, w, 3) of uint8.
Images: TypeAlias = "str | PathLike[str] | Image.Image | np.ndarray[Any, Any] | Iterable[Any]"

EXPECTED = "Expected image files, folders, globs, PIL images, or uint8 arrays (height, width, 3)."


class _NoImages(Exception):
    """A path does not lead to an image; the message is the reason."""


@dataclass(frozen=True)
class ImageInput:
    """One image: a file, or an image in memory, losslessly encoded so that it is processed like a file."""

    path: str | None
    content: Path | bytes
    problem: str | None = None  # why there is no such image


def collect_images(images: Images) -> tuple[list[ImageInput], list[str]]:
    """The individual images in `images`, in order, and notes on files that are left out.

    An explicitly named file is kept whatever its suffix, so that a problem with it is reported; files that operating
    systems create ("Thumbs.db", "@eaDir") are still left out, because a shell's "*" matches them too.

    A path among others that does not exist or has no image in it is an `ImageInput` with a `problem`.

    Raises:
        UsageError: something that is no image; nothing but paths with a problem.
    """
    found: list[ImageInput] = []
    notes: list[str] = []
    ignored: Counter[str] = Counter()
    for item in _items(images):
        if isinstance(item, (str, PathLike)):
            name = os.fsdecode(item)  # also of an os.DirEntry
            try:
                paths, note, others = _expand(name)
            except _NoImages as problem:
                found.append(ImageInput(name, Path(name), str(problem)))
                continue
            found += [ImageInput(str(path), path) for path in paths]
            notes += [note] if note else []
            ignored += others
        else:
            found += [ImageInput(None, encode(image)) for image in _in_memory(item)]
    if ignored:
        notes.append(f"ignored: files that are no images by their ending: {listed_endings(ignored)}")
    if found and all(image.problem for image in found):
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError("; ".join(f"{image.path}: {image.problem}" for image in found[:3]) + more + ".")
    if not found:
        raise UsageError(f"Received no image{': ' if notes else '.'}{'; '.join(notes)} {EXPECTED}")
    return found, notes


def _items(images: Images) -> Iterator[Any]:
    if isinstance(images, (str, PathLike, Image.Image, np.ndarray)):
        yield images
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise UsageError(f"Received an object of type {type(images).__name__}. {EXPECTED}")


def _in_memory(item: Any) -> list[Image.Image]:
    if isinstance(item, Image.Image):
        return [item]
    if not isinstance(item, np.ndarray):
        raise UsageError(f"Received an object of type {type(item).__name__} among the images. {EXPECTED}")
    if item.dtype != np.uint8:
        raise UsageError(
            f"Received an array of {item.dtype}. Expected uint8, RGB, 0 to 255: the network normalises by itself."
        )
    if item.ndim == 4:
        return [image for part in item for image in _in_memory(part)]
    if item.ndim == 3 and item.shape[-1] == 1:
        item = item[..., 0]
    if not item.size or not (item.ndim == 2 or (item.ndim == 3 and item.shape[-1] in (3, 4))):
        raise UsageError(
            f"Received an array of shape {item.shape}. Expected (height, width, 3), (height, width) or "
            "(images, height, width, 3)."
        )
    return [Image.fromarray(np.ascontiguousarray(item))]


def encode(image: Image.Image) -> bytes:
    """A PIL image as the content of a file: PNG, TIFF where that has the mode, its orientation kept."""
    if image.mode in ("I;16B", "I;16L", "I;16N"):  # Pillow would clip its values to 255 on the way to RGB
        image = image.convert("I")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    format = "PNG" if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    options: dict[str, Any] = {"compress_level": 1} if format == "PNG" else {}
    buffer = io.BytesIO()
    image.save(buffer, format, exif=image.getexif(), **options)
    return buffer.getvalue()


def _expand(argument: str) -> tuple[list[Path], str | None, Counter[str]]:
    """The image files of a file, a folder (searched as for training, see `data.walk`) or a glob."""
    if not argument.strip():
        raise UsageError(f"Received an empty path among the images. {EXPECTED}")
    argument = os.path.expanduser(argument)
    path, none = Path(argument), Counter[str]()
    if path.exists() and is_clutter(path.name):
        return [], f"left out: {argument}, a name that is never data", none
    if path.is_dir():
        tree = scan(path)
        others = tree.other_endings()
        if not tree.num_images:
            only = f", only {listed_endings(others)}" if others else ""
            raise _NoImages(f"a folder without images{only}; expected files like *.jpg in it")
        return tree.image_paths(), None, others
    found = [path] if path.exists() else _matches(argument)
    if not found:
        raise _NoImages("no such file; expected image files, folders, or a quoted glob")
    return found, None, none


def _matches(pattern: str) -> list[Path]:
    """Files that match a glob, without those in places that the walk skips, unless the pattern names them."""
    named = set(Path(pattern).parts)
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    return [p for p in matches if p.is_file() and not any(is_skipped(part) for part in p.parts if part not in named)]
