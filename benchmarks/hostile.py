"""Requests that no honest client sends, for a server that must answer each with a 4xx or close the connection.

Used by `benchmarks/serving.py` with 10,000 of them, and by the tests with a few hundred.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

SLOW_EVERY = 50  # one of so many requests is a slow sender, half of them in the head and half in the body
CLOSED = "closed"


@dataclass(frozen=True)
class Attack:
    """The bytes of a request, in parts that are sent with pauses between."""

    kind: str
    parts: tuple[bytes, ...]
    pause: float = 0.0
    hang_up: bool = False  # close after the last part, without reading an answer
    repeat: int = 1  # of the last part


@dataclass
class Outcome:
    """How a number of attacks ended: by kind, and what was neither a 4xx nor a closed connection."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, attack: Attack, ending: str) -> None:
        self.counts[attack.kind, ending] += 1
        if not (ending == CLOSED or ending.startswith("4")):
            self.wrong.append(f"{attack.kind}: {ending}")


def post(
    body: bytes = b"", *, target: str = "/predict", type: str = "image/jpeg", length: str | None = None, more: str = ""
) -> bytes:
    """The bytes of a POST request; `length` in place of the true one."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {type}\r\n{more}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def part(name: str, content: bytes, *, headers: str = "") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n{headers}\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return post(b"".join(parts) + end, type="multipart/form-data; boundary=x")


def bomb_png(side: int = 30_000) -> bytes:
    """900 million pixels of one bit in 110 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb_text_png() -> bytes:
    """A PNG with a compressed text of 64 MB, and no pixels."""
    text = b"zTXtc\0\0" + zlib.compress(bytes(64_000_000), 9)
    header = b"IHDR" + struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (header, text)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def attacks(photo: bytes, seed: int = 0) -> Iterator[Attack]:
    """Attacks without end, of all kinds in turn; `photo` is a JPEG that would be accepted."""
    generator = random.Random(seed)
    bomb, text_bomb, deep = bomb_png(), bomb_text_png(), b"[" * 500_000
    bomb_gif = _flat("GIF", 12_000)
    chunked = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    megabyte = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    fields = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    for number in itertools.count():
        noise = generator.randbytes(2000)
        cut = photo[: generator.randrange(4, len(photo) * 3 // 4)]
        if number % SLOW_EVERY == 0:
            slow = b"x" if number % (2 * SLOW_EVERY) else b"x-slow: 1\r\n"
            start = post(length="100000") if slow == b"x" else b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
            yield Attack("slow body" if slow == b"x" else "slow head", (start, slow), pause=0.3, repeat=1000)
            continue
        yield from (
            Attack("truncated image", (post(cut),)),
            Attack("truncated image in a form", (form(part("a.jpg", cut)),)),
            Attack("truncated request", (post(photo)[:-100],), hang_up=True),
            Attack("truncated head", (post(photo)[:40],), hang_up=True),
            Attack("truncated form", (form(part("a.jpg", photo), end=b""),)),
            Attack("noise as an image", (post(noise),)),
            Attack("noise as HTTP", (noise + b"\r\n\r\n",)),
            Attack("text", (post(b"hello", type="text/plain"),)),
            Attack("SVG", (post(b"<svg xmlns='http://www.w3.org/2000/svg'/>", type="image/svg+xml"),)),
            Attack("HTML with a name of HTML", (form(part("<script>alert(1)</script>", b"<html>")),)),
            Attack("deep JSON", (post(deep, type="application/json"),)),
            Attack("deep JSON as an image", (post(deep),)),
            Attack("huge by its length", (post(bytes(1000), length="10000000000"),)),
            Attack("huge in chunks", (chunked, megabyte), repeat=40),
            Attack("a length that is none", (post(photo, length="-5"),)),
            Attack("two lengths", (post(photo, more="Content-Length: 5\r\n"),)),
            Attack("length and chunks", (post(b"0\r\n\r\n", more="Transfer-Encoding: gzip\r\n"),)),
            Attack("decompression bomb, PNG", (post(bomb),)),
            Attack("decompression bomb, GIF", (post(bomb_gif),)),
            Attack("decompression bomb, text", (post(text_bomb),)),
            Attack("decompression bombs in a form", (form(*(part(f"{k}.png", bomb) for k in range(16))),)),
            Attack("compressed body", (post(zlib.compress(photo), more="Content-Encoding: deflate\r\n"),)),
            Attack("1,000 files", (form(*[part("a.jpg", b"x")] * 1000),)),
            Attack("20,000 fields", (form(*[fields] * 20_000),)),
            Attack("no boundary", (post(photo, type="multipart/form-data"),)),
            Attack("1,000 headers of a part", (form(part("a.jpg", photo, headers="a: b\r\n" * 1000)),)),
            Attack("a head of 200 kB", (post(photo, more=f"x: {'y' * 200_000}\r\n"),)),
            Attack("a parameter of the wrong type", (post(photo, target="/predict?top=many"),)),
            Attack("a parameter out of range", (post(photo, target=f"/predict?top=-{number}"),)),
            Attack("a path that leads nowhere", (post(photo, target="/../../etc/passwd"),)),
            Attack("a method that is not allowed", (post(photo).replace(b"POST", b"DELETE"),)),
            Attack("a host of another site", (post(photo).replace(b"localhost", b"evil.example"),)),
        )


def _flat(format: str, side: int) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, format)
    return content.getvalue()


async def assault(port: int, photo: bytes, *, count: int, side_by_side: int, patience: float) -> Outcome:
    """Send `count` attacks, at most so many at one time; `patience` is in seconds for the end of each."""
    outcome, remaining = Outcome(), iter(_interleaved(photo, count))

    async def attacker() -> None:
        for attack in remaining:
            outcome.note(attack, await _carry_out(port, attack, patience))

    await asyncio.gather(*(attacker() for _ in range(side_by_side)))
    return outcome


def _interleaved(photo: bytes, count: int) -> Iterator[Attack]:
    """A slow sender among every `SLOW_EVERY` requests."""
    every = attacks(photo)
    slow = [each for each in itertools.islice(every, 2 * SLOW_EVERY * 33) if each.kind.startswith("slow")]
    quick = (each for each in every if not each.kind.startswith("slow"))
    for number in range(count):
        yield slow[number // SLOW_EVERY % 2] if number % SLOW_EVERY == 0 else next(quick)


async def _carry_out(port: int, attack: Attack, patience: float) -> str:
    """The status of the answer, "closed", or what is wrong."""
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sending = asyncio.create_task(_send(writer, attack))
            try:
                if attack.hang_up:
                    await sending
                    return CLOSED
                return await _status(reader)
            finally:
                sending.cancel()
                writer.transport.abort()
    except TimeoutError:
        return f"neither answered nor closed within {patience:g} s"
    except OSError as error:
        return CLOSED if isinstance(error, ConnectionError) else f"no connection: {error}"


async def _send(writer: asyncio.StreamWriter, attack: Attack) -> None:
    with suppress(ConnectionError):
        for each in [*attack.parts, *[attack.parts[-1]] * (attack.repeat - 1)]:
            writer.write(each)
            await writer.drain()
            await asyncio.sleep(attack.pause)


async def _status(reader: asyncio.StreamReader) -> str:
    try:
        line = await reader.readline()
    except ConnectionError:
        return CLOSED
    words = line.split()
    return words[1].decode("ascii", "replace") if len(words) > 1 else CLOSED
