"""Image files that lie about their size, decode to far more than they are, or are none; and folders full of traps.

Each maker writes into `folder` and returns the path to give to a loader.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.make_images import encode, jpeg, picture
from tests.data.odd_images import tiff
from tests.reliability.hostile_weights import Maker, with_claimed_size, written, zip_bomb

SIDE = 10_000  # 100 million pixels, below the limit of 200 million


def png_of_zeros(width: int, height: int, *, bits: int = 8, colour: int = 2, interlaced: bool = False) -> bytes:
    """A PNG of black pixels, which is a thousandth of their size; colour is 0 (grey), 2 (RGB) or 6 (RGBA)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = {0: 1, 2: 3, 6: 4}[colour] * bits // 8 * width
    total = height * (row + 1)
    if interlaced:
        from tests.data.odd_images import ADAM7

        pixel = row // width
        total = sum(-(-(height - y) // down) * (1 + pixel * -(-(width - x) // right)) for x, y, right, down in ADAM7)
    compressor, parts = zlib.compressobj(1), []
    for start in range(0, total, 1 << 20):
        parts.append(compressor.compress(bytes(min(1 << 20, total - start))))
    data = b"".join([*parts, compressor.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def large() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Images of 100 million pixels, sound and below the limit, at their most expensive."""
    return {
        "RGBA of 16 bits": ("x.png", lambda: png_of_zeros(SIDE, SIDE, bits=16, colour=6)),
        "RGB of 16 bits, interlaced": ("x.png", lambda: png_of_zeros(SIDE, SIDE, bits=16, interlaced=True)),
        "grey of 16 bits": ("x.png", lambda: png_of_zeros(SIDE, SIDE, bits=16, colour=0)),
        "RGBA, interlaced": ("x.png", lambda: png_of_zeros(SIDE, SIDE, colour=6, interlaced=True)),
        "floats": ("x.tif", lambda: tiff(np.zeros((SIDE, SIDE), np.float32), deflate=True)),
    }


def gif_of_frames(count: int) -> bytes:
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x03\x84\x51\x00\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + bytes([200, 10, 10, 10, 200, 10])
    return head + image * count + b";"


def tiff_of_frames(count: int) -> bytes:
    """Directories of one pixel each, that follow one another."""
    parts = [b"II*\0" + struct.pack("<I", 8)]
    entries = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 4), (277, 1), (278, 1), (279, 1))
    size = 2 + 12 * len(entries) + 4
    for index in range(count):
        following = 8 + size * (index + 1) if index + 1 < count else 0
        rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        parts.append(struct.pack("<H", len(entries)) + rows + struct.pack("<I", following))
    return b"".join(parts)


def webp_of_frames(count: int) -> bytes:
    whole = encode(Image.new("RGB", (2, 2), "red"), "WEBP", lossless=True)[12:]
    frame = struct.pack("<3s3s3s3s3sB", b"\0\0\0", b"\0\0\0", b"\1\0\0", b"\1\0\0", b"\1\0\0", 0) + whole
    chunk = b"ANMF" + struct.pack("<I", len(frame)) + frame + bytes(len(frame) % 2)
    head = (
        b"VP8X"
        + struct.pack("<IB3s3s3s", 10, 2, b"\0\0\0", b"\1\0\0", b"\1\0\0")
        + b"ANIM"
        + struct.pack("<IIH", 6, 0, 0)
    )
    body = b"WEBP" + head + chunk * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def apng_of_frames(count: int) -> bytes:
    whole = encode(Image.new("RGB", (2, 2), "red"), "PNG")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    end = whole.index(b"IDAT") - 4
    return whole[:end] + chunk(b"acTL", struct.pack(">II", count, 0)) + whole[end:]


def progressive_scans(count: int, side: int = 10_000) -> bytes:
    """A JPEG whose header claims side x side pixels, with many scans that say nothing about any of them."""

    def segment(marker: int, data: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    blocks = (-(-side // 8)) ** 2
    one_code = bytes([1, *[0] * 15])  # the code "0", for the one symbol that follows
    head = b"\xff\xd8" + segment(0xDB, bytes([0, *[1] * 64]))
    head += segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0))
    head += segment(0xC4, b"\x00" + one_code + b"\x00") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8))
    empty = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes(2 * -(-blocks // 16384) + 2)  # runs of empty blocks
    return head + first + empty * count + b"\xff\xd9"


def _claims(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


def _text_bomb() -> bytes:
    """A PNG with compressed text that inflates to a gigabyte."""
    whole = encode(picture(), "PNG")
    data = b"Comment\0\0" + zlib.compress(bytes(1 << 30), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return whole[:33] + chunk * 3 + whole[33:]


def files() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Files by what they are: a name, and what makes the content. All are to be refused."""
    size = struct.pack(">II", 48, 40)
    small = {
        "a PNG of 2**62 pixels": ("x.png", lambda: png_header(0x7FFFFFFF, 0x7FFFFFFF)),
        "a PNG of no pixels": ("x.png", lambda: png_header(0, 5)),
        "a PNG that ends after its header": ("x.png", lambda: png_header(14_000, 14_000)),
        "a PNG larger than it is": (
            "x.png",
            lambda: _claims(encode(picture(), "PNG"), size, struct.pack(">II", 9000, 9000)),
        ),
        "a BMP of 400 million pixels": ("x.bmp", lambda: bmp_header(20_000, 20_000)),
        "a BMP of negative width": ("x.bmp", lambda: bmp_header(-5, 7)),
        "a GIF of 4 billion pixels": ("x.gif", lambda: b"GIF89a\xff\xff\xff\xff\0\0\0" + gif_of_frames(1)[13:]),
        "a GIF with a frame far larger than its screen": (
            "x.gif",
            lambda: gif_of_frames(1).replace(
                struct.pack("<HHHH", 0, 0, 2, 2), struct.pack("<HHHH", 0, 0, 65_000, 65_000)
            ),
        ),
        "a WebP of 270 million pixels": ("x.webp", lambda: webp_header(16_383, 16_383)),
        "a TIFF of 2**60 pixels": (
            "x.tif",
            lambda: tiff(np.zeros((4, 4), np.uint8), tags={256: [1 << 30], 257: [1 << 30]}),
        ),
        "a TIFF whose strip is said to be 4 GB": (
            "x.tif",
            lambda: tiff(np.zeros((4, 4), np.uint8), tags={256: [9000], 257: [9000], 278: [9000], 279: [0xFFFFFFF0]}),
        ),
        "a TIFF whose strip lies behind its end": (
            "x.tif",
            lambda: tiff(np.zeros((40, 40), np.uint8), deflate=True)[:90],
        ),
        "a TIFF of compressed zeros, 4 GB instead of 16 bytes": ("x.tif", lambda: tiff_bomb()),
        "a TIFF whose directory leads back to itself": ("x.tif", lambda: b"II*\0" + struct.pack("<IHI", 8, 0, 8)),
        "a TIFF with a million tags": ("x.tif", lambda: b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(500_000)),
        "a PPM of 200 million pixels without any": ("x.ppm", lambda: b"P6 14000 14000 255\n"),
        "a PPM of 2**66 pixels": ("x.ppm", lambda: b"P6 %d %d 255\n" % (1 << 33, 1 << 33)),
        "a PPM with a number of a million digits": ("x.ppm", lambda: b"P6 " + b"9" * 1_000_000 + b" 5 255\n"),
        "a JPEG of 65,535 x 65,535": ("x.jpg", lambda: progressive_scans(1, 65_500)),
        "a JPEG of 100 million pixels in 20,000 scans": ("x.jpg", lambda: progressive_scans(20_000)),
        "a PNG whose text inflates to 3 GB": ("x.png", _text_bomb),
        "text called .jpg": ("x.jpg", lambda: b"Dear photograph, " * 50),
        "a program called .jpg": ("x.jpg", lambda: b"\x7fELF" + bytes(500)),
        "an EPS called .jpg": ("x.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n"),
        "an SVG called .png": ("x.png", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'),
        "an archive called .png": ("x.png", lambda: zip_bomb("a", 1 << 20)),
        "an empty file": ("x.png", lambda: b""),
        "zeros": ("x.bmp", lambda: bytes(10_000)),
    }
    return small


def accepted() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Files that are odd, and show a picture all the same: their first frame, or what lies before the rest."""
    return {
        "a GIF of 100,000 frames": ("x.gif", lambda: gif_of_frames(100_000)),
        "a TIFF of 100,000 pages": ("x.tif", lambda: tiff_of_frames(100_000)),
        "a WebP of 100,000 frames": ("x.webp", lambda: webp_of_frames(100_000)),
        "a PNG that claims 2 billion frames": ("x.png", lambda: apng_of_frames(2_000_000_000)),
        "a JPEG that is an archive too": ("x.jpg", lambda: jpeg() + zip_bomb("a", 1 << 20)),
        "a JPEG with a web page in its comment": ("x.jpg", lambda: jpeg(comment=b"<script>alert(1)</script>" * 100)),
    }


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        + struct.pack(">I", 1000)
        + b"IDAT"
    )


def bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 1000, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(100)
    )


def webp_header(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"WEBPVP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_bomb() -> bytes:
    whole = tiff(np.zeros((4, 4), np.uint8), deflate=True)
    strip = zlib.compress(bytes(1 << 30), 9)
    return (
        tiff(np.zeros((4, 4), np.uint8), tags={259: [8], 273: [len(whole) + 200], 279: [len(strip)]})
        + bytes(200)
        + strip
    )


def as_makers(found: dict[str, tuple[str, Callable[[], bytes]]]) -> dict[str, Maker]:
    return {what: written(name, lambda _, make=make: make()) for what, (name, make) in found.items()}


# ----------------------------------------------------------------------------------------------------- folders


def special_files(folder: Path) -> Iterator[Path]:
    """Files that are not regular ones, under an image's name: to read one may never end."""
    os.mkfifo(folder / "pipe.jpg")
    yield folder / "pipe.jpg"
    (folder / "link to a pipe.jpg").symlink_to(folder / "pipe.jpg")
    yield folder / "link to a pipe.jpg"
    (folder / "link to zeros.jpg").symlink_to("/dev/zero")
    yield folder / "link to zeros.jpg"
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(folder)  # a socket's path may have no more than 107 characters
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(before)
    yield folder / "socket.jpg"
    (folder / "link to itself.jpg").symlink_to("link to itself.jpg")
    yield folder / "link to itself.jpg"
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    yield folder / "dangling.jpg"
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    yield folder / "sparse.jpg"


NAMES = [
    "line\nbreak",
    "escape\x1b[31m\x1b]0;title\x07",
    "tab\tquote\"'`$(touch canary)",
    "<script>alert(1)<\u2215script>",
    "a" * 251,
    "\u00e9 composed",
    "e\u0301 composed",
    "\udcff\udcfe undecodable",
    "-rf",
    " ",
    "[bold]markup[\u2215bold]",
    "\u202eright to left",
]


def folder_of_traps(folder: Path) -> Path:
    """Two classes with ten good images each, files of every name, and all that is no file."""
    data = folder / "data"
    for number, name in enumerate(("one", "two")):
        (data / name).mkdir(parents=True)
        for index in range(10):
            (data / name / f"{index}.jpg").write_bytes(jpeg(100 * number + index))
    for index, name in enumerate(NAMES):
        (data / "one" / f"{name}.jpg").write_bytes(jpeg(1000 + index))
    for _ in special_files(data / "two"):
        pass
    (data / "one" / "loop").symlink_to(data)
    (data / "two" / "up").symlink_to("..")
    return data


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def zip_of_classes(*, more: Callable[[zipfile.ZipFile], object] = lambda _: None) -> bytes:
    """An archive of ten class folders as `cifar10` may come, and what `more` adds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, name in enumerate(CLASSES):
            for number in range(3):
                archive.writestr(f"{name}/{number}.png", encode(picture(10 * index + number), "PNG"))
        more(archive)
    return buffer.getvalue()


def archives() -> dict[str, Maker]:
    """Folders with zip files for `audit` and `train`: the good images in them are used, and nothing else happens."""

    def in_folder(content: Callable[[], bytes], name: str = "x.zip") -> Maker:
        def make(folder: Path) -> Path:
            (folder / "data").mkdir()
            (folder / "data" / name).write_bytes(content())
            return folder / "data"

        return make

    def bomb() -> bytes:
        def add(archive: zipfile.ZipFile) -> None:
            with archive.open("cat/bomb.png", "w", force_zip64=True) as member:
                for _ in range(3 << 10):
                    member.write(bytes(1 << 20))

        return zip_of_classes(more=add)

    def link(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("cat/link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")

    def paths(archive: zipfile.ZipFile) -> None:
        for index, name in enumerate(
            ("../../cat/up.png", "/tmp/cat/absolute.png", "C:\\cat\\windows.png", "cat/nul\0.png")
        ):
            archive.writestr(name, encode(picture(900 + index), "PNG"))

    def nested(archive: zipfile.ZipFile) -> None:
        archive.writestr("cat/inner.png", zip_bomb("a", 1 << 30))

    def twice() -> bytes:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return zip_of_classes(more=lambda archive: archive.writestr("cat/0.png", encode(picture(77), "PNG")))

    def lying() -> bytes:
        return with_claimed_size(zip_of_classes(more=lambda a: a.writestr("cat/lie.png", bytes(300 << 20))), 100)

    return {
        "a zip with a bomb in it": in_folder(bomb),
        "a zip with paths that leave it": in_folder(lambda: zip_of_classes(more=paths)),
        "a zip with a symbolic link": in_folder(lambda: zip_of_classes(more=link)),
        "a zip in a zip": in_folder(lambda: zip_of_classes(more=nested)),
        "a zip with a name twice": in_folder(twice),
        "a zip with a member that claims to be small": in_folder(lying),
        "a zip cut short": in_folder(lambda: zip_of_classes()[:-300]),
        "a tar.gz of zeros": in_folder(lambda: gzip_of_zeros(3 << 30), "cifar-10-python.tar.gz"),
        "a tar.gz with a huge batch": in_folder(huge_batch, "cifar-10-python.tar.gz"),
        "a tar.gz whose batch is a program": in_folder(tar_program, "cifar-10-python.tar.gz"),
    }


def gzip_of_zeros(size: int, head: bytes = b"") -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [compressor.compress(head)] + [compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, compressor.flush()])


def huge_batch() -> bytes:
    import tarfile

    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = 3 << 30
    return gzip_of_zeros(3 << 30, member.tobuf())


def tar_program() -> bytes:
    import pickle
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            content = pickle.dumps({b"data": os.system}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
