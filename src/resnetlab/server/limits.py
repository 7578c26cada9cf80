"""What a server accepts, and how it refuses the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from resnetlab.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Limits of a server; together they bound its memory and how long anyone waits.

    Attributes:
        megabytes: of a request's body; more is answered with 413. Bodies held at one time have at most `BODIES` times
            as much; beyond that the answer is 503.
        megapixels: of an image, known from its header; more is answered with 413.
        images: in one request; more is answered with 413.
        requests: predicted at one time; more are answered with 503.
        waiting: images that wait for the network; more are answered with 503.
        batch: images that the network computes at one time.
        seconds: for a request's head (then the connection is closed), for its body (408), for its answer (504), and
            for the client to read it (closed).
    """

    megabytes: float = 16.0
    megapixels: float = 50.0
    images: int = 16
    requests: int = 64
    waiting: int = 256
    batch: int = 8
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 < (value := getattr(self, each.name)) < math.inf:
                raise UsageError(f"Received {each.name}={value}, expected a number of more than 0.")

    @property
    def body_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)

    @property
    def connections(self) -> int:
        """Open at one time; a request on one more is answered with 503."""
        return 4 * self.requests


BODIES = 8
RETRY_AFTER = {"Retry-After": "1"}


class Refusal(Exception):
    """A request is refused with this status; the message says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = RETRY_AFTER if status == 503 else {}
