"""The HTTP interface: predictions, the page, and what an operator needs."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from resnetlab.data.preprocess import ImageProblem, Pixels, TooManyPixels
from resnetlab.environment import usable_cores
from resnetlab.inference.predictor import ranked
from resnetlab.server.batching import Batcher, QueueFull
from resnetlab.server.limits import Limits, Refusal
from resnetlab.server.metrics import Metrics
from resnetlab.server.middleware import Observer, SecurityHeaders
from resnetlab.server.model import ServedModel
from resnetlab.server.uploads import Upload, Uploads
from resnetlab.version import VERSION

PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


class ClassProbability(BaseModel):
    model_config = ConfigDict(validate_by_name=True)

    name: str = Field(alias="class")
    probability: float


class Prediction(BaseModel):
    """Of one image: its most probable classes, or the problem with it."""

    name: str | None = Field(description="Of the file, as it was sent.")
    classes: list[ClassProbability] | None = Field(None, description="The most probable ones, best first.")
    overlay: str | None = Field(None, description="A data URI: what the network sees, and Grad-CAM of the first class.")
    problem: str | None = Field(None, description="Why the image cannot be used.")


class Answer(BaseModel):
    predictions: list[Prediction]


class Problem(BaseModel):
    detail: str


class Description(BaseModel):
    """What is served, and within which limits."""

    model: str
    folder: str
    classes: list[str]
    image_size: int
    engine: str
    precision: str
    overlays: bool
    no_overlays: str | None
    max_megabytes: float
    max_megapixels: float
    max_images: int
    timeout: float
    version: str


REFUSALS = {
    400: "Malformed form data.",
    408: "The request did not arrive in time.",
    411: "There is no Content-Length.",
    413: "Too many bytes, images or pixels.",
    415: "Unsupported content type.",
    422: "No image that can be used, or an invalid parameter.",
    503: "The server is overloaded: try again after Retry-After seconds.",
    504: "There was no answer in time.",
}
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"images": {"type": "array", "items": _FILE}}}
BODY = {"content": {"multipart/form-data": {"schema": _FORM}, "image/*": {"schema": _FILE}}, "required": True}


class Service:
    """A model behind its limits: decoding in threads, the network in one, overlays in another."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.metrics = Metrics(waiting=lambda: self.batcher.waiting)
        self.batcher = Batcher(
            model.engine, largest=limits.batch_size, waiting=limits.max_waiting, on_batch=self.metrics.batch
        )
        self._uploads = Uploads(limits)
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="overlay")
        self._running = 0

    def close(self) -> None:
        """Finish what was accepted."""
        self.batcher.close()
        self._decoders.shutdown(cancel_futures=True)
        self._painter.shutdown(cancel_futures=True)

    async def predict(
        self,
        request: Request,
        top: Annotated[int, Query(ge=1, description="Classes to give for each image.")] = 5,
        overlay: Annotated[bool, Query(description="Also draw a Grad-CAM map of the top class.")] = False,
    ) -> Answer:
        """Classify one image or several: the body is an image file, or a form with files."""
        if overlay and self.model.draw is None:
            raise Refusal(422, f"There are no overlays: {self.model.no_overlays}.")
        self._require_room()
        async with self._uploads.read(request) as uploads:
            self._require_room()
            self._running += 1
            try:
                async with asyncio.timeout(self.limits.timeout):
                    return await self._answer(uploads, top, overlay)
            except TimeoutError:
                raise Refusal(504, f"There was no answer within {self.limits.timeout:g} s.") from None
            except QueueFull:
                raise Refusal(503, "Too many images wait for the network. Try again.") from None
            finally:
                self._running -= 1

    def _require_room(self) -> None:
        if self._running >= self.limits.max_requests:
            raise Refusal(503, f"The server is at work on {self._running} requests. Try again.")

    async def _answer(self, uploads: Sequence[Upload], top: int, overlay: bool) -> Answer:
        run = asyncio.get_running_loop().run_in_executor
        decoded = await asyncio.gather(*(run(self._decoders, self._decode, each.content) for each in uploads))
        images = [each for each in decoded if not isinstance(each, ImageProblem)]
        self.metrics.unusable.inc(len(decoded) - len(images))
        if not images:
            raise _all_unusable(uploads, [each for each in decoded if isinstance(each, ImageProblem)])
        futures = self.batcher.submit(images)
        rows = np.stack(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        self.metrics.images.inc(len(images))
        pictures: list[str | None] = [None] * len(images)
        if overlay:
            pictures = await run(self._painter, self._draw, np.stack(images), rows.argmax(axis=1).tolist())
        found = zip(ranked(rows, self.model.class_names, top), pictures, strict=True)
        return Answer(
            predictions=[
                Prediction(name=upload.name, problem=str(each))
                if isinstance(each, ImageProblem)
                else _prediction(upload.name, *next(found))
                for upload, each in zip(uploads, decoded, strict=True)
            ]
        )

    def _decode(self, content: bytes) -> Pixels | ImageProblem:
        try:
            return self.model.decode(content, max_pixels=self.limits.pixels)
        except ImageProblem as problem:
            return problem

    def _draw(self, images: np.ndarray, classes: Sequence[int]) -> list[str | None]:
        assert self.model.draw is not None
        return [_data_uri(picture) for picture in self.model.draw(images, classes)]

    async def describe(self) -> Description:
        """What is served, and within which limits."""
        model, limits = self.model, self.limits
        return Description(
            model=model.name,
            folder=model.folder,
            classes=list(model.class_names),
            image_size=model.image_size,
            engine=model.engine_name,
            precision=model.precision,
            overlays=model.draw is not None,
            no_overlays=model.no_overlays,
            max_megabytes=limits.max_megabytes,
            max_megapixels=limits.max_megapixels,
            max_images=limits.max_images,
            timeout=limits.timeout,
            version=VERSION,
        )

    async def healthy(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """The network takes images now."""
        if not self.batcher.accepts or (self.batcher.failing and not await self._computes()):
            raise Refusal(503, "The network takes no images now.")
        return {"status": "ready"}

    async def _computes(self) -> bool:
        """Whether the network computes an image, after a batch that failed."""
        try:
            (probe,) = self.batcher.submit([self.model.grey_image])
            await asyncio.wait_for(asyncio.wrap_future(probe), self.limits.timeout)
        except Exception:
            return False
        return True

    async def measure(self) -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


def create_app(model: ServedModel, limits: Limits, *, hosts: Sequence[str]) -> FastAPI:
    """The ASGI application.

    Args:
        hosts: names by which clients may address the server, "*" for any: a page of another site that has its own name
            resolve to this machine is refused.
    """
    service = Service(model, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="resnetlab",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
    )
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text} for status, text in REFUSALS.items()
    }
    app.post("/predict", response_model_exclude_none=True, responses=refusals, openapi_extra={"requestBody": BODY})(
        service.predict
    )
    app.get("/model")(service.describe)
    app.get("/healthz")(service.healthy)
    app.get("/readyz", responses={503: refusals[503]})(service.ready)
    app.get("/metrics", response_class=Response)(service.measure)
    for path, name in PAGE.items():
        app.get(path, include_in_schema=False)(partial(_asset, name))
    app.exception_handler(Refusal)(_refuse)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Observer, metrics=service.metrics)
    return app


def _asset(name: str) -> Response:
    content = (files("resnetlab.server") / "assets" / name).read_bytes()
    return Response(content, media_type=TYPES[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"})


async def _refuse(_: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    return JSONResponse({"detail": str(refusal)}, refusal.status, headers=refusal.headers)


def _all_unusable(uploads: Sequence[Upload], problems: Sequence[ImageProblem]) -> Refusal:
    names = [upload.name or "the image" for upload in uploads]
    reasons = "; ".join(f"{name[:80]}: {problem}" for name, problem in zip(names, problems, strict=True))
    return Refusal(413 if all(isinstance(each, TooManyPixels) for each in problems) else 422, reasons)


def _prediction(name: str | None, top: Sequence[tuple[str, float]], overlay: str | None) -> Prediction:
    classes = [ClassProbability(name=each, probability=probability) for each, probability in top]
    return Prediction(name=name, classes=classes, overlay=overlay)


def _data_uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
