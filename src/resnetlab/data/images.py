"""From encoded bytes to pixels: the one way there, for training and for prediction alike."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resnetlab.errors import ResnetlabError

Pixels = NDArray[np.uint8]  # (size, size, 3)
Interpolation = Literal["bilinear", "bicubic"]

MAX_PIXELS = 100_000_000  # 300 MB decoded: a photograph has fewer, a decompression bomb has more
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")  # none that starts a program, such as EPS

UPRIGHT = {  # EXIF orientation: how to turn the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageProblem(ResnetlabError):
    """Why an image cannot be used: "truncated", "not an image", "too many pixels (20000x20000, …)"."""


@dataclass(frozen=True)
class Decoded:
    """An upright RGB image, its size in the file, and what was done to it."""

    image: Image.Image  # mode RGB; reduced up to 8 times where a size was given
    width: int
    height: int
    conversions: tuple[str, ...]


def decode(content: bytes | Path, *, size: int | None = None) -> Decoded:
    """Decode an image file completely; raises ImageProblem.

    With `size`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, whichever still covers size x size. That
    reads the whole file too (only the inverse transform is smaller), so no damage escapes.
    """
    if isinstance(content, Path):
        try:
            content = content.read_bytes()
        except OSError as error:
            raise ImageProblem(f"unreadable ({error.strerror})") from error
    if not content:
        raise ImageProblem("empty file")
    with pillow_without_warnings():
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _convert(image, size)
        except ImageProblem:
            raise
        except Exception as error:  # on damaged files Pillow raises nearly anything
            raise ImageProblem(_diagnose(content, error)) from error


def _convert(image: Image.Image, size: int | None) -> Decoded:
    width, height = image.size
    if width * height > MAX_PIXELS:  # known from the header, before anything is decoded
        raise ImageProblem(f"too many pixels ({width}x{height}, the limit is {MAX_PIXELS // 10**6} million)")
    done = []
    if getattr(image, "is_animated", False):
        done.append("first frame of several")
    if ";16" in str(getattr(image, "tile", "")):  # of 16-bit colour, Pillow itself keeps the upper byte
        done.append("16-bit")
    if size is not None:
        image.draft(None, (size, size))
    image.load()
    orientation = _orientation(image)

    rgb: Image.Image
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        done += ["16-bit", "grey"]
        rgb = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    elif image.mode == "F":
        done += ["float", "grey"]
        rgb = Image.fromarray(_from_float(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:  # over white, as a browser shows it: what is below may be anything
        done.append("alpha")
        layer = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    elif image.mode == "RGB":
        rgb = image
    else:
        done.append({"1": "grey", "L": "grey", "P": "palette"}.get(image.mode, image.mode))
        try:
            rgb = image.convert("RGB")
        except ValueError as error:
            raise ImageProblem(f"no conversion to RGB (from {image.mode})") from error
    if orientation in UPRIGHT:
        done.append("EXIF orientation")
        rgb = rgb.transpose(UPRIGHT[orientation])
    if orientation >= 5:
        width, height = height, width
    return Decoded(rgb, width, height, tuple(dict.fromkeys(done)))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


def _from_float(values: NDArray[np.float32]) -> Pixels:
    """Floats are taken as 0-1 where none lies above 1, and as 0-255 otherwise."""
    values = np.nan_to_num(values, posinf=255)
    scale = 255 if values.max() <= 1 else 1
    return np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)


def _diagnose(content: bytes, error: Exception) -> str:
    """What is wrong with a file that does not decode: does it begin like an image, and end like one?"""
    if content.startswith(b"\xff\xd8\xff"):
        complete = b"\xff\xd9" in content[-1024:]
    elif content.startswith(b"\x89PNG"):
        complete = b"IEND" in content[-1024:]
    elif content.startswith(b"GIF8"):
        complete = content.endswith(b";")
    elif content.startswith(b"RIFF"):
        complete = len(content) >= 8 + int.from_bytes(content[4:8], "little")
    elif isinstance(error, UnidentifiedImageError):
        return "not an image"
    else:
        complete = "truncated" not in str(error).lower()
    return "corrupt" if complete else "truncated"


def fit_square(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize the shorter side to `size` and cut out the centre: (size, size, 3).

    With antialiasing, as torchvision does, and tf.image.resize with antialias. Bilinear does not ring; bicubic is for
    weights that were trained so. An image of that size already is left as it is, to the byte.
    """
    if image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling[interpolation.upper()], box=box)
    return np.asarray(image)


def squeeze(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize all of an image to a square, whatever its aspect ratio: (size, size, 3)."""
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()]))


class _Silencer:
    """Turns off, while any thread decodes, Pillow's warnings and its own pixel limit, which are process-wide.

    What they would say, the audit says. Counted, because threads overlap: the first to enter saves the state,
    the last to leave restores it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.filters = warnings.catch_warnings()
        self.max_pixels: int | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
                self.max_pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            with self.lock:
                self.depth -= 1
                if self.depth == 0:
                    Image.MAX_IMAGE_PIXELS = self.max_pixels
                    self.filters.__exit__(None, None, None)


pillow_without_warnings = _Silencer()
