"""A corpus of image files in every encoding that people bring, each with the picture that it shows."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.data.make_images import encode, picture

SIZE = (60, 44)  # width, height
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # x, y, steps


class Odd(NamedTuple):
    """A file's content, the RGB picture that it shows upright, and by how many levels its encoding may change it."""

    suffix: str
    content: bytes
    shown: NDArray[np.uint8]
    tolerance: int = 2


def png(samples: NDArray, *, chunks: Sequence[tuple[bytes, bytes]] = (), interlaced: bool = False) -> bytes:
    """A PNG of 8 or 16 bits of samples (height, width) or (height, width, 2 to 4), which Pillow writes only in part."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, bands = samples.shape
    big = samples.astype(samples.dtype.newbyteorder(">"))
    passes = [big[y::down, x::right] for x, y, right, down in ADAM7] if interlaced else [big]
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(
    samples: NDArray,
    *,
    order: str = "<",
    photometric: int | None = None,
    planar: bool = False,
    deflate: bool = False,
    extra: Sequence[int] = (),
    tags: dict[int, list[float]] | None = None,
) -> bytes:
    """A TIFF of samples of any type, in one strip, or in one for each band."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, bands = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order))
    strips = [data[..., band].tobytes() for band in range(bands)] if planar else [data.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries: dict[int, list] = {
        256: [width],
        257: [height],
        258: [8 * samples.itemsize] * bands,
        259: [8 if deflate else 1],
        262: [(2 if bands >= 3 else 1) if photometric is None else photometric],
        277: [bands],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planar else 1],
        339: [kind] * bands,
    } | (tags or {})
    if extra:
        entries[338] = list(extra)
    base = 8 + 2 + 12 * (len(entries) + 1) + 4
    body, rows = b"".join(strips), []
    starts = np.cumsum([0, *map(len, strips[:-1])])
    entries[273] = [base + int(start) for start in starts]
    for tag, values in sorted(entries.items()):
        code, letter = (12, "d") if isinstance(values[0], float) else (4, "I")
        raw = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(raw) > 4:
            raw, body = struct.pack(f"{order}I", base + len(body)), body + raw
        rows.append(struct.pack(f"{order}HHI", tag, code, len(values)) + raw)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IH", 8, len(rows)) + b"".join(rows) + bytes(4) + body


def packed_12_bits(samples: NDArray) -> bytes:
    """A TIFF of 12 bits a sample, two samples in three bytes."""
    pairs = samples.astype(np.uint32).reshape(-1, 2)
    joined = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4")
    strip = joined.view(np.uint8).reshape(-1, 4)[:, 1:].reshape(len(samples), -1)
    return tiff(strip, tags={256: [samples.shape[1]], 258: [12]})


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it with this EXIF orientation."""
    stored = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 2: Image.Transpose.FLIP_LEFT_RIGHT}
    stored |= {3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE}
    stored |= {7: Image.Transpose.TRANSVERSE}
    return image.transpose(stored[orientation]) if orientation > 1 else image


def corpus() -> dict[str, Odd]:
    """The files by a name that says what they are."""
    rgb = picture(3, SIZE)
    # The brightest value is 255 in every picture, as it is in what most cameras deliver.
    colour = np.asarray(rgb).astype(np.float64)
    colour = np.rint((colour - colour.min()) * 255 / np.ptp(colour)).astype(np.uint8)
    rgb = Image.fromarray(colour)
    grey_level = np.asarray(rgb.convert("L")).astype(np.float64)
    grey_level = np.rint((grey_level - grey_level.min()) * 255 / np.ptp(grey_level)).astype(np.uint8)
    return _photographs(rgb, grey_level) | _pngs(rgb, grey_level) | _tiffs(rgb, grey_level) | _others(rgb, grey_level)


def repeated(grey: NDArray) -> NDArray:
    return np.repeat(grey[..., np.newaxis], 3, axis=-1)


def over_white(colour: NDArray, alpha: NDArray) -> NDArray:
    part = alpha[..., np.newaxis] / 255
    return np.rint(colour * part + 255 * (1 - part)).astype(np.uint8)


def ramp() -> NDArray:
    return np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))


def _photographs(rgb: Image.Image, grey: NDArray) -> dict[str, Odd]:
    colour, large = np.asarray(rgb), rgb.resize((480, 352), Image.Resampling.BICUBIC)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def jpeg(image: Image.Image, **options: object) -> bytes:
        return encode(image, "JPEG", quality=95, subsampling=0, **options)

    found = {
        "jpeg": Odd("jpg", jpeg(rgb), colour, 8),
        "jpeg, subsampled": Odd("jpg", encode(rgb, "JPEG", quality=95), colour, 16),
        "jpeg, progressive": Odd("jpg", jpeg(rgb, progressive=True), colour, 8),
        "jpeg, grey": Odd("jpg", jpeg(Image.fromarray(grey)), repeated(grey), 8),
        "jpeg, CMYK": Odd("jpg", jpeg(rgb.convert("CMYK")), colour, 8),
        "jpeg, colour profile": Odd("jpg", jpeg(rgb, icc_profile=profile), colour, 8),
        "jpeg, decoded at a quarter": Odd("jpg", jpeg(large), np.asarray(large), 8),
        "jpeg, called png": Odd("png", jpeg(rgb), colour, 8),
        "mpo": Odd("jpg", encode(rgb, "MPO", save_all=True, append_images=[rgb.rotate(180)], quality=95), colour, 16),
        "heic": Odd("heic", encode(rgb, "HEIF", quality=-1), colour, 8),
        "heic, called jpg": Odd("jpg", encode(rgb, "HEIF", quality=-1), colour, 8),
        "heic, orientation": Odd("heic", encode(turned(rgb, 6), "HEIF", quality=-1, exif=exif(6).tobytes()), colour, 8),
        "avif": Odd("avif", encode(rgb, "AVIF", quality=100, subsampling="4:4:4"), colour, 8),
        "avif, orientation": Odd(
            "avif", encode(turned(rgb, 6), "AVIF", quality=100, subsampling="4:4:4", exif=exif(6)), colour, 8
        ),
        "webp": Odd("webp", encode(rgb, "WEBP", quality=100), colour, 16),
    }
    for orientation in range(1, 9):
        content = jpeg(turned(rgb, orientation), exif=exif(orientation))
        found[f"jpeg, orientation {orientation}"] = Odd("jpg", content, colour, 8)
    return found


def _pngs(rgb: Image.Image, grey: NDArray) -> dict[str, Odd]:
    colour, alpha = np.asarray(rgb), ramp()
    wide, wide_grey, wide_alpha = (array.astype(np.uint16) for array in (colour, grey, alpha))
    sbit = [(b"sBIT", b"\x0c")]
    half = grey // 2  # the darker half of the declared range
    hole = np.zeros(SIZE[::-1], bool)
    hole[:, :20] = True
    holed = np.where(hole[..., None], np.uint8(1), np.maximum(colour, 2))
    holed_grey = np.where(hole, np.uint8(1), np.maximum(grey, 2))
    holed_wide, holed_wide_grey = holed.astype(np.uint16) * 257, holed_grey.astype(np.uint16) * 257
    white = over_white(holed, np.where(hole, 0, 255))
    white_grey = over_white(repeated(holed_grey), np.where(hole, 0, 255))
    palette = rgb.quantize(64)
    rgba = np.dstack([colour, alpha])

    def trns(*values: int) -> list[tuple[bytes, bytes]]:
        return [(b"tRNS", struct.pack(f">{len(values)}H", *values))]

    return {
        name: Odd("png", content, shown)
        for name, (content, shown) in {
            "png": (png(colour), colour),
            "png, interlaced": (png(colour, interlaced=True), colour),
            "png, grey": (png(grey), repeated(grey)),
            "png, LA": (png(np.dstack([grey, alpha])), over_white(repeated(grey), alpha)),
            "png, RGBA": (png(rgba), over_white(colour, alpha)),
            "png, palette": (encode(palette, "PNG"), np.asarray(palette.convert("RGB"))),
            "png, PA": (
                encode(palette, "PNG", transparency=bytes([0, *[255] * 63])),
                over_white(np.asarray(palette.convert("RGB")), np.where(np.asarray(palette) == 0, 0, 255)),
            ),
            "png, bits": (
                encode(Image.fromarray(grey).point(lambda v: 255 * (v > 99), "1"), "PNG"),
                repeated(np.uint8(255) * (grey > 99)),
            ),
            "png, transparent colour": (png(holed, chunks=trns(1, 1, 1)), white),
            "png, transparent grey": (png(holed_grey, chunks=trns(1)), white_grey),
            "png, orientation": (encode(turned(rgb, 6), "PNG", exif=exif(6)), colour),
            "png, animated": (encode(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]), colour),
            "png, 16 bits": (png(wide_grey * 257), repeated(grey)),
            "png, 14 of 16 bits": (png(wide_grey << 6), repeated(grey)),
            "png, 12 of 16 bits": (png(wide_grey << 4), repeated(grey)),
            "png, 10 of 16 bits": (png(wide_grey << 2), repeated(grey)),
            "png, 8 of 16 bits": (png(wide_grey), repeated(grey)),
            "png, sBIT 12, dark": (png(half.astype(np.uint16) << 2, chunks=sbit), repeated(half // 4)),
            "png, sBIT 12, as the standard has it": (png(wide_grey * 257, chunks=sbit), repeated(grey)),
            "png, RGB of 16 bits": (png(wide * 257), colour),
            "png, RGB of 12 of 16 bits": (png(wide << 4), colour),
            "png, RGB of 12 of 16 bits, interlaced": (png(wide << 4, interlaced=True), colour),
            "png, RGBA of 16 bits": (png(np.dstack([wide, wide_alpha]) * 257), over_white(colour, alpha)),
            "png, RGBA of 12 of 16 bits": (png(np.dstack([wide << 4, wide_alpha * 257])), over_white(colour, alpha)),
            "png, LA of 12 of 16 bits": (
                png(np.dstack([wide_grey << 4, wide_alpha * 257])),
                over_white(repeated(grey), alpha),
            ),
            "png, RGB of 16 bits, transparent": (png(holed_wide, chunks=trns(257, 257, 257)), white),
            "png, 16 bits, transparent": (png(holed_wide_grey, chunks=trns(257)), white_grey),
        }.items()
    }


def _tiffs(rgb: Image.Image, grey: NDArray) -> dict[str, Odd]:
    colour, alpha = np.asarray(rgb), ramp()
    wide, wide_grey = colour.astype(np.uint16), grey.astype(np.uint16)
    cmyk = np.asarray(rgb.convert("CMYK")).astype(np.uint16)
    rgba = np.dstack([wide, alpha.astype(np.uint16)])
    premultiplied = np.rint(rgba[..., :3] * (alpha[..., None] / 255) * 257).astype(np.uint16)
    signed = grey.astype(np.int32) - 100
    fraction = (grey / 255).astype(np.float32)
    palette = rgb.quantize(64)
    second_page = {"save_all": True, "append_images": [rgb.rotate(180)]}
    shown = {
        "tiff": (encode(rgb, "TIFF"), colour),
        "tiff, LZW, two pages": (encode(rgb, "TIFF", compression="tiff_lzw", **second_page), colour),
        "tiff, palette": (encode(palette, "TIFF"), np.asarray(palette.convert("RGB"))),
        "tiff, LA": (tiff(np.dstack([grey, alpha]), extra=[2]), over_white(repeated(grey), alpha)),
        "tiff, premultiplied LA": (
            tiff(np.dstack([np.rint(grey * (alpha / 255)).astype(np.uint8), alpha]), extra=[1]),
            over_white(repeated(grey), alpha),
        ),
        "tiff, RGBA": (tiff(np.dstack([colour, alpha]), extra=[2]), over_white(colour, alpha)),
        "tiff, CMYK": (encode(rgb.convert("CMYK"), "TIFF"), colour),
        "tiff, planar": (tiff(colour, planar=True), colour),
        "tiff, bits": (
            encode(Image.fromarray(grey).point(lambda v: 255 * (v > 99), "1"), "TIFF", compression="group4"),
            repeated(np.uint8(255) * (grey > 99)),
        ),
        "tiff, white is zero": (tiff(255 - grey, photometric=0), repeated(grey)),
        "tiff, orientation": (tiff(np.asarray(turned(rgb, 6)), tags={274: [6]}), colour),
        "tiff, 16 bits, orientation": (tiff(np.asarray(turned(rgb, 6)).astype("u2") << 4, tags={274: [6]}), colour),
        "tiff, 12 of 16 bits": (tiff(wide_grey << 4), repeated(grey)),
        "tiff, 12 of 16 bits, big-endian": (tiff(wide_grey << 4, order=">"), repeated(grey)),
        "tiff, 12 of 16 bits, deflate": (tiff(wide_grey << 4, deflate=True), repeated(grey)),
        "tiff, 12 of 16 bits, white is zero": (tiff(4095 - (wide_grey << 4), photometric=0), repeated(grey)),
        "tiff, 12 bits": (packed_12_bits(wide_grey << 2), repeated(grey // 4)),  # dark: 12 bits are declared
        "tiff, 16 bits, maximum declared": (tiff(wide_grey * 4, tags={281: [2040]}), repeated(grey // 2)),
        "tiff, floats, maximum declared": (tiff(fraction, tags={340: [0.0], 341: [2.0]}), repeated(grey // 2)),
        "tiff, int8, not negative": (tiff((grey // 2).astype(np.int8)), repeated(grey // 2)),
        "tiff, int8": (tiff((grey.astype(np.int16) - 128).astype(np.int8)), repeated(grey)),
        "tiff, int16": (tiff(signed.astype(np.int16) * 16), repeated(grey)),
        "tiff, int32": (tiff(signed * 1000), repeated(grey)),
        "tiff, int32, not negative": (tiff(grey.astype(np.int32) << 4), repeated(grey)),
        "tiff, int32, big-endian": (tiff(grey.astype(np.int32) << 4, order=">"), repeated(grey)),
        "tiff, uint32": (tiff(grey.astype(np.uint32) << 24), repeated(grey)),
        "tiff, floats to 1": (tiff(fraction), repeated(grey)),
        "tiff, floats to 1, big-endian": (tiff(fraction, order=">"), repeated(grey)),
        "tiff, floats to half": (tiff(fraction / 2), repeated(grey // 2)),
        "tiff, floats to 1.02": (tiff(fraction * np.float32(1.02)), repeated(grey)),
        "tiff, floats to 255": (tiff(grey.astype(np.float32)), repeated(grey)),
        "tiff, floats to 4095": (tiff(grey.astype(np.float32) * 16), repeated(grey)),
        "tiff, floats from -1 to 1": (tiff(fraction * 2 - 1), repeated(grey)),
        "tiff, RGB of 16 bits": (tiff(wide * 257), colour),
        "tiff, RGB of 12 of 16 bits": (tiff(wide << 4), colour),
        "tiff, RGB of 12 of 16 bits, big-endian": (tiff(wide << 4, order=">"), colour),
        "tiff, RGB of 12 of 16 bits, deflate": (tiff(wide << 4, deflate=True), colour),
        "tiff, RGB of 16 bits, planar": (tiff(wide * 257, planar=True), colour),
        "tiff, RGB of 16 bits, planar, big-endian": (tiff(wide * 257, planar=True, order=">"), colour),
        "tiff, RGB of 16 bits, planar, deflate": (tiff(wide * 257, planar=True, deflate=True), colour),
        "tiff, RGBA of 16 bits": (tiff(rgba * 257, extra=[2]), over_white(colour, alpha)),
        "tiff, premultiplied RGBA of 16 bits": (
            tiff(np.dstack([premultiplied, rgba[..., 3] * 257]), extra=[1]),
            over_white(colour, alpha),
        ),
        "tiff, RGB of 16 bits and one more": (tiff(rgba << 4, extra=[0]), colour),
        "tiff, RGBA of 16 bits, planar": (tiff(rgba * 257, extra=[2], planar=True), over_white(colour, alpha)),
        "tiff, CMYK of 16 bits": (tiff(cmyk * 257, photometric=5), colour),
    }
    found = {name: Odd("tif", content, picture) for name, (content, picture) in shown.items()}
    found["tiff, YCbCr"] = Odd("tif", encode(rgb.convert("YCbCr"), "TIFF"), colour, 3)
    found["tiff, JPEG"] = Odd("tif", encode(rgb, "TIFF", compression="jpeg", quality=95), colour, 16)
    return found


def _others(rgb: Image.Image, grey: NDArray) -> dict[str, Odd]:
    colour, alpha, size = np.asarray(rgb), ramp(), b"%d %d " % SIZE
    rgba, palette = Image.fromarray(np.dstack([colour, alpha])), rgb.quantize(64)
    frames = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "lime")]}
    deep, deep_grey = colour.astype(np.uint16), grey.astype(np.uint16)
    clear = Image.fromarray(np.where(np.asarray(palette) == 5, np.uint8(64), np.asarray(palette)))
    clear.putpalette([*palette.getpalette(), 0, 0, 0])
    visible = np.where(np.asarray(palette) == 5, 0, 255)
    found = {
        "gif": Odd("gif", encode(palette, "GIF"), np.asarray(palette.convert("RGB"))),
        "gif, animated": Odd("gif", encode(palette, "GIF", **frames), np.asarray(palette.convert("RGB"))),
        "gif, transparent": Odd(
            "gif",
            encode(clear, "GIF", transparency=64),
            over_white(np.asarray(palette.convert("RGB")), visible),
        ),
        "bmp": Odd("bmp", encode(rgb, "BMP"), colour),
        "bmp, grey": Odd("bmp", encode(Image.fromarray(grey), "BMP"), repeated(grey)),
        "webp, RGBA": Odd("webp", encode(rgba, "WEBP", lossless=True, exact=True), over_white(colour, alpha)),
        "webp, animated": Odd("webp", encode(rgb, "WEBP", lossless=True, **frames), colour),
        "webp, orientation": Odd("webp", encode(turned(rgb, 8), "WEBP", lossless=True, exif=exif(8)), colour),
        "avif, RGBA": Odd("avif", encode(rgba, "AVIF", quality=100, subsampling="4:4:4"), over_white(colour, alpha), 8),
        "pgm": Odd("pgm", encode(Image.fromarray(grey), "PPM"), repeated(grey)),
        "pgm, 12 bits declared": Odd(
            "pgm", b"P5 " + size + b"4095 " + (deep_grey << 2).byteswap().tobytes(), repeated(grey // 4)
        ),
        "pgm, 12 of 16 bits": Odd(
            "pgm", b"P5 " + size + b"65535 " + (deep_grey << 4).byteswap().tobytes(), repeated(grey)
        ),
        "ppm, 12 bits declared": Odd("ppm", b"P6 " + size + b"4095 " + (deep << 2).byteswap().tobytes(), colour // 4),
        "ppm, 12 of 16 bits": Odd("ppm", b"P6 " + size + b"65535 " + (deep << 4).byteswap().tobytes(), colour),
        "ppm, text": Odd("ppm", b"P3 " + size + b"255 " + b" ".join(b"%d" % v for v in colour.ravel()), colour),
    }
    for width, height in ((1, 1), (1, 300), (300, 1), (7, 900)):
        plain = np.full((height, width, 3), (200, 100, 50), np.uint8)
        found[f"png, {width}x{height}"] = Odd("png", png(plain), plain)
        found[f"jpeg, {width}x{height}"] = Odd("jpg", encode(Image.fromarray(plain), "JPEG", quality=95), plain, 4)
    return found
