"""From an image file to the network's input pixels: used for training and prediction, and copied into exports.

Needs only Pillow (11 or later) and NumPy, and pillow-heif for HEIC, so that the copy works on its own:

    from preprocess import load_image
    image = load_image("photo.jpg", shorter_side=256, centre_crop=224)  # (224, 224, 3) uint8, RGB

Processing steps, in this order:

- Of several frames the first is decoded (of HEIC the primary image). JPEGs are decoded at 1/2, 1/4 or 1/8 of their size
  where that still covers `shorter_side`. Colour profiles are ignored.
- Samples of more than 8 bits are scaled to 8 by the range that the file declares (TIFF: 12 bits per sample,
  SMin/SMaxSampleValue, Min/MaxSampleValue; PNG: sBIT; PGM: the maximum value), where its values lie within it.
  Otherwise by the range of its values, all channels together: non-negative integers as the smallest even number of
  bits, at least 8, that holds the maximum (12-bit data in a 16-bit file: 0-4095); floats up to 1 as 0-1, and above 16
  as integers; the rest (negative values, floats with a maximum between 1 and 16) from minimum to maximum.
- Transparent pixels are composited over white; CMYK, palettes and grey become RGB.
- The picture is turned upright by its EXIF orientation.
- The largest central square is resized to `shorter_side` with antialiasing, and its centre is cropped.

Images of more than $RESNETLAB_MAX_PIXELS pixels (by default 200 million) are refused by their header, files of more
than 8 bytes for each of these pixels by their size, and what is no regular file (a pipe, a device) is not opened.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

Pixels = NDArray[np.uint8]  # (size, size, 3)
Interpolation = Literal["bilinear", "bicubic"]

MAX_PIXELS = 200_000_000  # phones make 108 and 200 million; a decompression bomb has more
LARGE = 40_000_000  # pixels to decode, above which one image is decoded at a time: each takes up to 10 bytes
DEEP = 3  # times as many bytes are taken by a pixel of more than 8 bits a sample
LARGE_FILE = 64 << 20  # bytes, above which one file is in memory at a time
# Errors of reading that depend on the file, its name and its permissions; others may pass (network, open files).
LASTING = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
SCANS = 100  # of a progressive JPEG, which has about ten: each is a pass over all pixels, for a few bytes of the file
STRIP = 16_000_000  # pixels that are composited or scaled at a time
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")  # none that starts a program, such as EPS
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}

UPRIGHT = {  # EXIF orientation: how to turn the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageProblem(ValueError):
    """Why an image cannot be used: "truncated", "not an image", "too many pixels (20000x20000, …)"."""


class ReadFailure(ImageProblem):
    """The file could not be read, or there was no memory for it: another attempt may succeed."""


class TooManyPixels(ImageProblem):
    """An image is larger than the limit."""


class Decoded(NamedTuple):
    """An upright RGB image, its size in the file, and what was done to it."""

    image: Image.Image  # mode RGB; reduced up to 8 times where a size was given
    width: int
    height: int
    conversions: tuple[str, ...]


def load_image(
    file: bytes | str | Path,
    *,
    shorter_side: int,
    centre_crop: int,
    interpolation: Interpolation = "bilinear",
    pixel_limit: int | None = None,
) -> Pixels:
    """The pixels (centre_crop, centre_crop, 3) of an image file, given by its path or its content.

    Args:
        shorter_side: pixels that the shorter side is resized to.
        centre_crop: pixels, at most `shorter_side`.
        pixel_limit: of the image in the file; by default as the module's docstring states.

    Raises:
        ImageProblem: the file cannot be used; the message is the reason.
        ValueError: an invalid size or interpolation.
    """
    if not 1 <= centre_crop <= shorter_side:
        raise ValueError(f"Received centre_crop={centre_crop}, expected 1 to shorter_side={shorter_side}.")
    if interpolation not in (known := get_args(Interpolation)):
        raise ValueError(f"Received interpolation={interpolation!r}, expected one of {', '.join(known)}.")
    square = fit_square(decode(file, size=shorter_side, pixel_limit=pixel_limit).image, shorter_side, interpolation)
    margin = (shorter_side - centre_crop) // 2
    return np.ascontiguousarray(square[margin : margin + centre_crop, margin : margin + centre_crop])


def decode(file: bytes | str | Path, *, size: int | None = None, pixel_limit: int | None = None) -> Decoded:
    """Decode an image file completely, given by its path or its content; raises ImageProblem.

    With `size`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, whichever still covers size x size. That
    reads the whole file too (only the inverse transform is smaller), so no damage escapes.
    """
    if not isinstance(file, bytes):
        with content_of(Path(file)) as content:
            return decode(content, size=size, pixel_limit=pixel_limit)
    content = file
    if not content:
        raise ImageProblem("empty file")
    with pillow_without_warnings():
        formats: tuple[str, ...] = FORMATS
        if _is_heic(content):
            _register_heif()
            formats = ("HEIF",)
        try:
            with Image.open(io.BytesIO(content), formats=formats) as image:
                return _convert(image, content, size, pixel_limit)
        except ImageProblem:
            raise
        except MemoryError as error:
            raise ReadFailure("not enough memory") from error
        except Exception as error:  # on damaged files Pillow raises nearly anything
            raise ImageProblem(_diagnose(content, error)) from error


@contextmanager
def content_of(path: Path) -> Iterator[bytes]:
    """The content of an image file; of large files, one is in memory at a time. Raises ImageProblem."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to read a pipe or a device might never end
            raise ImageProblem("not a regular file")
        with room_for(status.st_size):
            with path.open("rb") as file:
                content = file.read(status.st_size + 1)
            yield content
    except OSError as error:
        kind = ImageProblem if error.errno in LASTING else ReadFailure
        raise kind(f"unreadable ({error.strerror})") from error


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Wait until a file of `size` bytes may be held in memory. Raises ImageProblem if it is larger than any image."""
    if size > (limit := 8 * max_pixels()):
        raise ImageProblem(f"too large ({size:,} bytes; the limit is {limit:,}, 8 for each of $RESNETLAB_MAX_PIXELS)")
    with _one_large_file if size > LARGE_FILE else nullcontext():
        yield


def fit_square(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize the shorter side to `size` and crop the centre: (size, size, 3).

    With antialiasing, as in torchvision and in tf.image.resize(antialias=True). Bilinear does not ring; bicubic is for
    weights that were trained with it. An image that already has this size is returned unchanged.
    """
    if image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling[interpolation.upper()], box=box)
    return np.asarray(image)


def max_pixels() -> int:
    """The pixels that an image may have: $RESNETLAB_MAX_PIXELS, or MAX_PIXELS."""
    value = os.environ.get("RESNETLAB_MAX_PIXELS") or str(MAX_PIXELS)
    if not value.isdecimal() or int(value) < 1:
        raise ImageProblem(f"RESNETLAB_MAX_PIXELS is {value!r} (expected a whole number of pixels, at least 1)")
    return int(value)


def _convert(image: Image.Image, content: bytes, size: int | None, pixel_limit: int | None) -> Decoded:
    width, height = image.size
    limit, where = (max_pixels(), ", $RESNETLAB_MAX_PIXELS") if pixel_limit is None else (pixel_limit, "")
    if width * height > limit:  # known from the header, before anything is decoded
        raise TooManyPixels(f"too many pixels ({width}x{height}; the limit is {limit:,}{where})")
    done = []
    if getattr(image, "is_animated", False) and image.format != "HEIF":
        done.append("first frame of several")
    if size is not None and image.format in ("JPEG", "MPO"):  # HEIC would give its thumbnail
        image.draft(None, (size, size))
    if image.info.get("progressive") and (scans := content.count(b"\xff\xda")) > SCANS + (len(content) >> 15):
        raise ImageProblem(f"corrupt ({scans:,} scans; a progressive JPEG has about ten)")
    tiles = list(getattr(image, "tile", []))  # `load` removes them
    deep = image.mode[0] in "IF" or _tag(image, _BITS, 8) > 8 or any(";16" in _layout(tile) for tile in tiles)
    with _one_large if image.width * image.height * (DEEP if deep else 1) > LARGE else nullcontext():
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(_to_8_bits(image, content, tiles, done), done)
        if orientation in UPRIGHT:
            done.append("EXIF orientation")
            rgb = rgb.transpose(UPRIGHT[orientation])
    if orientation in (5, 6, 7, 8):  # turned by a quarter; others than 1 to 8 are undefined
        width, height = height, width
    return Decoded(rgb, width, height, tuple(dict.fromkeys(done)))


def _to_rgb(image: Image.Image, done: list[str]) -> Image.Image:
    """An image of 8 bits a sample in RGB."""
    if image.mode == "La":  # premultiplied; Pillow has no other way from there
        image = image.convert("LA")
    if image.has_transparency_data:  # over white, as a browser shows it: what is below may be anything
        done.append("alpha")
        rgb = Image.new("RGB", image.size)
        rows = max(1, STRIP // image.width)
        for top in range(0, image.height, rows):
            layer = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
            rgb.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), (0, top))
        return rgb
    if image.mode == "RGB":
        return image
    done.append({"1": "grey", "L": "grey", "P": "palette"}.get(image.mode, image.mode))
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageProblem(f"no conversion to RGB (from {image.mode})") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # unreadable EXIF does not concern the pixels
        return 1


# ------------------------------------------------------------------------------- samples of more than 8 bits

_COLOUR_16 = re.compile(r"(RGB|RGBX|RGBA|RGBa|CMYK|LA);16([BLN])")  # Pillow's names of layouts in a file
_ORDERS = {"B": "B", "L": "L", "N": "L" if sys.byteorder == "little" else "B"}
_BITS, _PHOTOMETRIC, _MIN, _MAX, _PLANAR, _SAMPLE_FORMAT, _SMIN, _SMAX = 258, 262, 280, 281, 284, 339, 340, 341  # TIFF


def _to_8_bits(image: Image.Image, content: bytes, tiles: list[Any], done: list[str]) -> Image.Image:
    """The loaded image with 8 bits a sample, in a mode of Pillow's; as it is where it has no more."""
    mode, samples = _deep_samples(image, content, tiles)
    if samples is None:
        return image
    done.append("float" if samples.dtype.kind == "f" else f"{8 * samples.itemsize}-bit")
    has_alpha = mode in ("LA", "RGBA")
    colours = samples[..., :-1] if has_alpha else samples
    parts = [_scaled(colours, _declared_range(image, content, tiles, samples), done)]
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds in 8 bits only
        parts[0] = 255 - parts[0]
    if has_alpha:
        bits = max(8, int(samples.max()).bit_length()) if samples.dtype.kind in "iu" else 0  # of colours and alpha
        whole = (0, 2 ** (bits + bits % 2) - 1) if bits else None
        parts.append(_scaled(samples[..., -1:], whole, []))
    elif (transparent := image.info.get("transparency")) is not None:  # a PNG with one transparent colour
        parts.append(np.any(colours != transparent, axis=-1, keepdims=True).astype(np.uint8) * 255)
        mode += "A"
    return Image.frombytes(mode, image.size, np.concatenate(parts, axis=-1).tobytes())


def _deep_samples(image: Image.Image, content: bytes, tiles: list[Any]) -> tuple[str, NDArray[Any] | None]:
    """The samples (height, width, bands) in full precision, and the mode they would have in 8 bits; None for 8 bits."""
    signed = _tag(image, _SAMPLE_FORMAT) == 2
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.format == "TIFF" and not signed and image.mode == "I":
            values = values.view(np.uint32)
        elif image.mode == "I" and _tag(image, _BITS, 16) == 16:
            values = values.astype(np.int16 if signed else np.uint16)
        return "L", values[..., np.newaxis]
    if image.mode == "L" and signed:
        return "L", np.asarray(image).view(np.int8)[..., np.newaxis]
    if not tiles or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image.mode, None
    layout = _layout(tiles[0])
    if image.format == "PPM":
        if tiles[0].codec_name == "ppm" and tiles[0].args[1] > 255:
            values = np.frombuffer(content, ">u2", 3 * image.width * image.height, tiles[0].offset)
            return "RGB", values.reshape(image.height, image.width, 3)
        return image.mode, None
    if layout == "LA;16B":  # a PNG, of which Pillow makes RGBA
        both = _decode_as("RGBA", content)
        return "LA", _joined(both[..., 0::2].astype(np.uint16), both[..., 1::2])
    if found := _COLOUR_16.fullmatch(layout):
        bands, order = found[1].replace("a", "A"), _ORDERS[found[2]]
    elif len(layout) == 1 and _tag(image, _PLANAR) == 2 and _tag(image, _BITS) == 16:
        # Pillow reads a band that is stored separately as 8 bits a sample, which garbles it
        bands, order = "{}", "L" if content.startswith(b"II") else "B"
    else:
        return image.mode, None
    other = "B" if order == "L" else "L"
    upper = _decode_as(f"{bands};16{order}", content).astype(np.uint16)
    samples = _joined(upper, _decode_as(f"{bands};16{other}", content))
    return "RGBa" if layout.startswith("RGBa") else image.mode, samples


def _joined(upper: NDArray[np.uint16], lower: Pixels) -> NDArray[np.uint16]:
    """Samples of their upper and lower bytes; in the memory of `upper`, as there may be hundreds of millions."""
    upper <<= 8
    upper |= lower
    return upper


def _decode_as(layout: str, content: bytes) -> Pixels:
    """The pixels of a file read in another layout ({}: its own); of 16-bit colour, Pillow itself keeps one byte."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        for number, tile in enumerate(image.tile):
            rest = tile.args[1:] if isinstance(tile.args, tuple) else ()
            image.tile[number] = tile._replace(args=(layout.format(_layout(tile)), *rest))
        image.load()
        return np.asarray(image)


def _layout(tile: Any) -> str:
    """Pillow's name of how the samples of a tile lie in the file, such as "RGB;16B"."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0]) if tile.args else ""


def _declared_range(
    image: Image.Image, content: bytes, tiles: list[Any], samples: NDArray[Any]
) -> tuple[float, float] | None:
    """The range of sample values that a file declares, unless it is no more than that of their type."""
    bits = 8 * samples.itemsize
    if image.format == "PNG":
        found = re.search(rb"\0\0\0([\1-\4])sBIT", content[: content.find(b"IDAT")])
        significant = max(content[found.end() : found.end() + found[1][0]]) if found else 0
        return (0, 2**significant - 1) if 8 <= significant < bits else None
    if image.format == "PPM":
        if tiles[0].codec_name == "ppm" and image.mode == "RGB":
            return (0, tiles[0].args[1]) if tiles[0].args[1] < 65535 else None
        return (0, 65535) if tiles[0].codec_name != "raw" else None  # scaled by Pillow
    if image.format != "TIFF":
        return None
    low, high = _tag(image, _SMIN, _tag(image, _MIN, 0)), _tag(image, _SMAX, _tag(image, _MAX))
    if isinstance(high, int | float) and isinstance(low, int | float) and low < high and high != 2**bits - 1:
        return float(low), float(high)
    stored = _tag(image, _BITS)
    return (0, 2**stored - 1) if samples.dtype.kind == "u" and stored < bits else None


def _tag(image: Image.Image, number: int, default: Any = None) -> Any:
    """A tag of a TIFF, or its value for the first sample."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) and value else value


def _scaled(values: NDArray[Any], declared: tuple[float, float] | None, done: list[str]) -> Pixels:
    """Values scaled to 0-255 by the range that the module's docstring states."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageProblem(f"values that are not finite ({np.sum(~np.isfinite(values)):,} of {values.size:,})")
    low, high = low.item(), high.item()
    if declared and declared[0] <= low and high <= declared[1]:
        low, high = declared
        done.append("scaled from the declared range")
    elif low < 0 or (values.dtype.kind == "f" and 1 < high <= 16):
        done.append("scaled from minimum to maximum")
    elif values.dtype.kind == "f" and high <= 1:
        low, high = 0, 1
    else:
        bits = max(8, int(high).bit_length() + int(high).bit_length() % 2)
        if bits != 8 * values.itemsize:
            done.append(f"scaled from {bits} bits")
        if values.dtype.kind in "iu":
            return _in_strips(values, lambda part: part >> (bits - 8))
        low, high = 0, 2**bits - 1
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return _in_strips(values, lambda part: np.rint(((part.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255))


def _in_strips(values: NDArray[Any], function: Callable[[NDArray[Any]], NDArray[Any]]) -> Pixels:
    """A function of each value, to 0-255; a few rows at a time, as there may be hundreds of millions."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // values[0].size)
    for top in range(0, len(values), rows):
        result[top : top + rows] = function(values[top : top + rows])
    return result


# ------------------------------------------------------------------------------------- what cannot be decoded


def _is_heic(content: bytes) -> bool:
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[start : start + 4] for start in (8, *range(16, end, 4))}
    return bool(brands & HEIC_BRANDS) or (b"mif1" in brands and not brands & {b"avif", b"avis"})


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageProblem(
            "HEIC needs pillow-heif (do: pip install pillow-heif, or pip install 'resnetlab[heic]')"
        ) from None
    register_heif_opener()


def _diagnose(content: bytes, error: Exception) -> str:
    """The reason why a file cannot be decoded, judged by its first and last bytes."""
    if content.startswith(b"\xff\xd8\xff"):
        if found := re.search(rb"\xff[\xc0-\xc3]\0.([\x0c\x10])", content, re.DOTALL):  # the header of a frame
            return f"a JPEG that Pillow cannot read ({found[1][0]} bits a sample)"
        complete = b"\xff\xd9" in content[-1024:]
    elif content.startswith(b"\x89PNG"):
        complete = b"IEND" in content[-1024:]
    elif content.startswith(b"GIF8"):
        complete = content.endswith(b";")
    elif content.startswith(b"RIFF"):
        complete = len(content) >= 8 + int.from_bytes(content[4:8], "little")
    elif content[4:8] == b"ftyp":
        complete = _has_all_boxes(content)
    elif content[:2] in (b"II", b"MM") and (isinstance(error, UnidentifiedImageError) or "raw mode" in str(error)):
        return _describe_tiff(content)
    elif isinstance(error, UnidentifiedImageError):
        return "not an image"
    else:
        complete = not re.search("truncated|not enough", str(error))
    return "corrupt" if complete else "truncated"


def _has_all_boxes(content: bytes) -> bool:
    """Whether the boxes of an HEIC or AVIF file end where the file does, or before."""
    position = 0
    while position + 8 <= len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        if size < 8:  # 0: to the end of the file
            return True
        position += size
    return position <= len(content)


def _describe_tiff(content: bytes) -> str:
    """What kind of TIFF it is that Pillow has no mode for: several samples of float, 64 bits, …"""
    file = io.BytesIO(content)
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file.seek(start := directory.next)
        directory.load(file)
        if directory.next == start:  # it did not come to the end of the tags
            return "truncated"
        kind = {1: "unsigned", 2: "signed", 3: "float"}.get(directory.get(_SAMPLE_FORMAT, (1,))[0], "unknown")
        samples, bits = directory.get(277, 1), directory[_BITS][0]
    except Exception:
        return "truncated" if content[2:4] in (b"*\0", b"\0*") else "not an image"
    return f"a TIFF that Pillow cannot read ({samples} x {bits} bits, {kind}, a pixel)"


class _Silencer:
    """Turns off, while any thread decodes, Pillow's warnings and its own pixel limit, which are process-wide.

    The audit reports the same problems. Reference-counted, because threads overlap: the first to enter saves the state,
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
_one_large_file = threading.Lock()
_one_large = threading.Lock()  # taken after the one above, never before it
