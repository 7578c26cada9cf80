"""Read the images of a request within limits: one raw image, or the files of a multipart form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from resnetlab.server.limits import BODIES, Limits, Refusal

RAW = "Send one image with its type (Content-Type: image/jpeg), or files as multipart/form-data."


@dataclass(frozen=True)
class Upload:
    """An image file as it was sent."""

    name: str | None
    content: bytes


class Uploads:
    """Reads requests, and keeps count of the bytes that all of them hold together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = BODIES * limits.body_bytes

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[Upload]]:
        """The images of a request; their bytes count until the context ends.

        Raises:
            Refusal: too large, too many, too slow, not of a type that has images, or damaged.
        """
        taken = 0

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            async for chunk in request.stream():
                taken += len(chunk)
                self._free -= len(chunk)
                if taken > self._limits.body_bytes:
                    raise self._too_large()
                if self._free < 0:
                    raise Refusal(503, "The server holds as many images as it can. Try again.")
                yield chunk

        try:
            self._check_head(request)
            try:
                async with asyncio.timeout(self._limits.timeout):
                    uploads = await self._parse(request, chunks())
            except TimeoutError:
                raise Refusal(408, f"The request did not arrive within {self._limits.timeout:g} s.") from None
            except ClientDisconnect:
                raise Refusal(400, "The connection was closed before the request was complete.") from None
            yield uploads
        finally:
            self._free += taken

    def _check_head(self, request: Request) -> None:
        length = request.headers.get("content-length")
        if length is None:  # in chunks, of which no one knows how many come
            raise Refusal(411, "Received no Content-Length, expected the size of the request.")
        if int(length) > self._limits.body_bytes:
            raise self._too_large()
        if "content-encoding" in request.headers:
            raise Refusal(415, "Received a Content-Encoding, expected none: image files are compressed themselves.")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The request has more than {self._limits.max_megabytes:g} MB.")

    async def _parse(self, request: Request, chunks: AsyncGenerator[bytes, None]) -> list[Upload]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._files(request, chunks)
        if kind and not kind.startswith("image/") and kind != "application/octet-stream":
            raise Refusal(415, f"Received {kind[:80]}, expected an image. {RAW}")
        content = bytearray()
        async for chunk in chunks:
            content += chunk
        if not content:
            raise Refusal(422, f"Received no image. {RAW}")
        return [Upload(None, bytes(content))]

    async def _files(self, request: Request, chunks: AsyncGenerator[bytes, None]) -> list[Upload]:
        # One more than is allowed: what is too much has a status of its own.
        parser = MultiPartParser(request.headers, chunks, max_files=self._limits.max_images + 1, max_fields=16)
        try:
            form = await parser.parse()
        except MultiPartException as problem:
            if problem.message.startswith("Too many"):
                raise self._too_many() from None
            raise Refusal(400, f"Not a valid multipart form: {problem.message}") from None
        try:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:
                raise Refusal(422, f"Received a form without files. {RAW}")
            if len(files) > self._limits.max_images:
                raise self._too_many()
            return [Upload(file.filename, await file.read()) for file in files]
        finally:
            await form.close()

    def _too_many(self) -> Refusal:
        return Refusal(413, f"The request has more than {self._limits.max_images} images, or too many other fields.")
