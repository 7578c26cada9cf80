"""`resnetlab serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnetlab.cli.options import Backend, Device, Json, Verbose, print_json, terminal

if TYPE_CHECKING:
    from resnetlab.server.model import ServedModel


def serve(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|EXPORT", help="A run folder, or one made by `resnetlab export`.")
    ],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all, without authentication.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0: any that is free.", min=0, max=65535)] = 8000,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="For a run: keras, onnx or openvino; auto: onnx where it is installed.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Precision of the engine's export: float32, float16 or int8.")
    ] = "float32",
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Load Keras too, for Grad-CAM of a run.")
    ] = True,
    max_megabytes: Annotated[float, typer.Option(metavar="N", help="Largest request body, in MB.")] = 16,
    max_megapixels: Annotated[float, typer.Option(metavar="N", help="Largest image, in megapixels.")] = 50,
    max_images: Annotated[int, typer.Option(metavar="N", help="Maximum number of images per request.")] = 16,
    max_requests: Annotated[int, typer.Option(metavar="N", help="Maximum number of concurrent requests.")] = 64,
    max_waiting: Annotated[int, typer.Option(metavar="N", help="Maximum number of images queued.")] = 256,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Largest batch.")] = 8,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Timeout for receiving a request, and for answering it.")
    ] = 30,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Extra Host header to accept, such as a proxy's name; may be repeated."),
    ] = None,
    backend: Backend = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve a network over HTTP: predictions as JSON, and a page to try it on. Ctrl+C stops it."""
    from resnetlab.server.limits import Limits
    from resnetlab.server.serve import serve

    limits = Limits(
        max_megabytes=max_megabytes,
        max_megapixels=max_megapixels,
        max_images=max_images,
        max_requests=max_requests,
        max_waiting=max_waiting,
        batch_size=batch_size,
        timeout=timeout,
    )

    def ready(model: ServedModel, url: str) -> None:
        if as_json:
            print_json({"url": url, "model": model.name, "engine": model.engine_name, "precision": model.precision})
        else:
            overlays = f"no overlays: {model.no_overlays}" if model.no_overlays else "with overlays"
            progress.info(f"{model.name}, {len(model.class_names)} classes: {model.engine_name}, {model.precision}")
            progress.info(overlays)
            progress.info(f"serving on {url}  (Ctrl+C stops it)")

    progress = terminal(as_json=as_json)
    serve(
        source,
        host=host,
        port=port,
        engine=engine,
        precision=precision,
        overlays=overlays,
        limits=limits,
        allowed_hosts=allow_host or (),
        backend=backend,
        device=device,
        ready=ready,
        progress=progress,
    )
