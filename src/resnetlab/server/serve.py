"""`serve`: a run or an export over HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from resnetlab.errors import UsageError
from resnetlab.inference.engines import EXPORT_FILE, PACKAGES, require_packages
from resnetlab.progress import Progress, make_progress
from resnetlab.run import Run
from resnetlab.run_folder import RunFolder
from resnetlab.server.limits import Limits

if TYPE_CHECKING:
    from resnetlab.server.model import ServedModel

Ready = Callable[["ServedModel", str], None]


def serve(
    source: str | PathLike[str] | Run,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: str = "auto",
    precision: str = "float32",
    overlays: bool = True,
    limits: Limits | None = None,
    allowed_hosts: Sequence[str] = (),
    backend: str | None = None,
    device: str = "auto",
    ready: Ready | None = None,
    progress: Progress | str | None = "auto",
) -> None:
    """Serve a network over HTTP until SIGINT or SIGTERM: predictions as JSON, and a page to try it on.

    Args:
        source: a run or its folder, or the folder of an export.
        host: address to listen on. There is no authentication: an address that other machines reach is warned of.
        port: 0 for any that is free.
        engine: of a run: "keras", "onnx", "openvino", or "auto", which is "onnx" where it is installed, and "keras" for
            device="gpu".
        precision: of the engine's export.
        overlays: whether to load a run's network into Keras too, for Grad-CAM.
        limits: of size, number and time of requests; by default `Limits()`.
        allowed_hosts: names by which clients may address the server, such as that of a proxy; by default those of this
            machine on a loopback address, and any on another.
        backend, device: as in `load`.
        ready: called with the network and the URL once connections are accepted.

    Raises:
        UsageError: neither a run nor an export; an engine for an export, which has its own; an address that is none.
        ResnetlabError: a package is missing; the port is taken; no weights yet, or damaged ones.
    """
    require_packages("serve")
    if _in_event_loop():
        raise UsageError(
            "An event loop runs here already, as in a notebook: run `resnetlab serve` in a terminal, or rl.serve in a "
            "thread."
        )
    from resnetlab.server import listening

    report, limits = make_progress(progress), limits or Limits()
    for name in allowed_hosts:
        if (name != "*" and "*" in name.removeprefix("*.")) or "/" in name or re.search(r":\d+$", name):
            raise UsageError(f"Received the host name {name!r}; expected one without port, such as example.org.")
    with listening.bind(host, port) as listener:  # before the network is loaded, which takes a while
        if not listening.is_loopback(host):
            report.warning(
                f"{host} can be reached from other machines, and there is no authentication: whoever reaches it can "
                "use the server. Put it behind a proxy that authenticates and encrypts."
            )
        if isinstance(source, Run):
            model = _run(source, engine, precision, overlays, report)
        elif ((path := Path(source).expanduser()) / EXPORT_FILE).is_file():
            model = _export(path, engine)
        else:
            run = Run(RunFolder.open(path), backend=backend, device=device)
            model = _run(run, engine, precision, overlays, report)
        url = listening.url(listener)
        announce = partial(ready, model, url) if ready else partial(report.info, f"serving {model.name} on {url}")
        model.warm_up(limits.batch_size)
        listening.listen(model, listener, limits, hosts=allowed_hosts, ready=announce)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _export(folder: Path, engine: str) -> ServedModel:
    from resnetlab.server.model import of_export

    if engine != "auto":
        raise UsageError(f"{folder} is an export, which has its own engine: leave out the engine ({engine}).")
    return of_export(folder)


def _run(run: Run, engine: str, precision: str, overlays: bool, report: Progress) -> ServedModel:
    from resnetlab.server.model import of_run

    if engine == "auto":
        fits = run.device != "gpu" and all(find_spec(name) for name in PACKAGES["onnx"][0])
        engine = "onnx" if fits else "keras"
    predictor = run.predictor(engine, precision, progress=report)
    explainer = run.predictor(progress=report) if overlays else None
    if explainer is predictor:  # two threads must not share a network: JAX donates its variables to a step
        from resnetlab.inference.predictor import Predictor

        explainer = Predictor(run.folder)
    return of_run(predictor, engine, precision, explainer=explainer)
