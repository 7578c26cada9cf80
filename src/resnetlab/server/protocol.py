"""HTTP/1.1 as uvicorn speaks it, with an end to the patience that it has with slow clients.

uvicorn waits without limit for a request's head, for the rest of a body that was answered already, and for a client
that does not read its answer. Here the connection is closed instead. The body of a request that is being handled is the
application's affair.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LINGER = 2.0  # seconds in which what is left of an answered request is read: a client that still sends reads later


class ImpatientProtocol(H11Protocol):
    """Make a subclass with `seconds` set: for a head, and for the reading of an answer."""

    seconds: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency and len(self.connections) > 2 * self.limit_concurrency:
            transport.abort()
            return
        self._head = self.loop.call_later(self.seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head = _cancel(self._head)
        elif self._head is None and self.conn.trailing_data[0]:  # the first bytes of a head
            self._head = self.loop.call_later(self.seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        answered = self.cycle
        if self.conn.their_state is h11.SEND_BODY:
            self.loop.call_later(LINGER, self._close_unless_complete, answered)
        super().on_response_complete()

    def _close_unless_complete(self, answered: Any) -> None:
        if self.cycle is answered and self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _cancel(self._writing)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head, self._writing = _cancel(self._head), _cancel(self._writing)


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
