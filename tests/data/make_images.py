"""Small images as bytes, sound ones and one with each defect; and folders of class folders full of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 40)  # width, height


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth RGB image, different for each seed: noise, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def jpeg(seed: int = 0, size: tuple[int, int] = SIZE, **options: object) -> bytes:
    return encode(picture(seed, size), "JPEG", quality=95, **options)


def cmyk_jpeg(seed: int = 0) -> bytes:
    return encode(picture(seed).convert("CMYK"), "JPEG", quality=95)


def grey_jpeg(seed: int = 0) -> bytes:
    return encode(picture(seed).convert("L"), "JPEG", quality=95)


def rotated_jpeg(orientation: int) -> bytes:
    """48x40, stored on its side as cameras do; upright, its left half is red and its right half blue."""
    upright = Image.new("RGB", SIZE, "blue")
    upright.paste("red", (0, 0, SIZE[0] // 2, SIZE[1]))
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(upright.transpose(undo[orientation]), "JPEG", quality=95, exif=exif)


def grey16_png() -> bytes:
    """A 16-bit grey ramp from 0 to 65,535: clipped rather than scaled, it would be nearly all white."""
    ramp = np.linspace(0, 65535, SIZE[0]).astype(np.uint16)
    return encode(Image.fromarray(np.tile(ramp, (SIZE[1], 1))), "PNG")


def palette_png() -> bytes:
    """A palette image: left half red, right half transparent (black below)."""
    image = Image.new("P", SIZE, 1)
    image.putpalette([255, 0, 0, 0, 0, 0] + [0] * 762)
    image.paste(0, (0, 0, SIZE[0] // 2, SIZE[1]))
    return encode(image, "PNG", transparency=1)


def alpha_png() -> bytes:
    """Black at half opacity."""
    return encode(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "PNG")


def animation(format: str = "GIF") -> bytes:
    """Red, then green."""
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "lime")]
    return encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)


def float_tiff() -> bytes:
    return encode(Image.fromarray(np.full(SIZE[::-1], 0.5, np.float32)), "TIFF")


def enormous_png(side: int = 20_000) -> bytes:
    """One bit a pixel: 400 million pixels in 50 kB. The header is all that may be read of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side // 8 + 1)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_classes(root: Path, classes: dict[str, int], *, start: int = 0) -> Path:
    """Class folders, each with so many different JPEG files."""
    seed = start
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            (root / name / f"{index}.jpg").write_bytes(jpeg(seed))
            seed += 1
    return root
