"""Bind a socket, listen on it, and stop without dropping what was accepted."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.server.app import create_app
from resnetlab.server.limits import Limits
from resnetlab.server.model import ServedModel
from resnetlab.server.protocol import ImpatientProtocol

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet.

    Raises:
        UsageError: not an address of this machine.
        ResnetlabError: the port is taken, or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError):
        raise UsageError(f"Received host {host!r}, port {port}; expected an address such as 127.0.0.1.") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ResnetlabError(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another with --host or --port (0: any)."
        ) from None
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listen(
    model: ServedModel,
    listener: socket.socket,
    limits: Limits,
    *,
    hosts: Sequence[str] = (),
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM; then requests that were accepted are answered first.

    Args:
        hosts: names by which clients may address the server, besides those of the loopback interface; by default any
            name where it listens on another interface.
        ready: called once it accepts connections.
    """
    if not hosts and not is_loopback(listener.getsockname()[0]):
        hosts = ("*",)
    server = _Server(_config(create_app(model, limits, hosts=(*LOOPBACK_NAMES, *hosts)), limits), ready)
    with _signals_that_end_well():
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    verbose = bool(os.environ.get("RESNETLAB_VERBOSE"))
    return uvicorn.Config(
        app,
        http=type("Protocol", (ImpatientProtocol,), {"seconds": limits.timeout}),
        ws="none",
        limit_concurrency=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(2 * limits.timeout) + 1,  # a body may still arrive, and be answered
        log_config=uvicorn.config.LOGGING_CONFIG if verbose else None,
        log_level="info" if verbose else "error",
        access_log=verbose,
        server_header=False,
        proxy_headers=False,
    )


@contextmanager
def _signals_that_end_well() -> Iterator[None]:
    """uvicorn sends itself the signal again that stopped it; ignored, the command ends with exit code 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
