"""What a server accepts, and how it refuses the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from resnetlab.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Limits of a server; together they bound its memory and how long anyone waits.

    Attributes:
        max_megabytes: of a request's body; more is answered with 413. Bodies held at one time have at most `BODIES`
            times as much; beyond that the answer is 503.
        max_megapixels: of an image, known from its header; more is answered with 413.
        max_images: in one request; more is answered with 413.
        max_requests: predicted at one time; more are answered with 503.
        max_waiting: images that wait for the network; more are answered with 503.
        batch_size: images that the network computes at one time.
        timeout: for a request's head (then the connection is closed), for its body (408), for its answer (504), and
            for the client to read it (closed).
    """

    max_megabytes: float = 16.0
    max_megapixels: float = 50.0
    max_images: int = 16
    max_requests: int = 64
    max_waiting: int = 256
    batch_size: int = 8
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 < (value := getattr(self, each.name)) < math.inf:
                raise UsageError(f"Received {each.name}={value}, expected a number greater than 0.")

    @property
    def body_bytes(self) -> int:
        return int(self.max_megabytes * 1e6)

    @property
    def pixels(self) -> int:
        return int(self.max_megapixels * 1e6)

    @property
    def connections(self) -> int:
        """Open at one time; a request on one more is answered with 503."""
        return 4 * self.max_requests


BODIES = 8
RETRY_AFTER = {"Retry-After": "1"}


class Refusal(Exception):
    """A request is refused with this status; the message says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = RETRY_AFTER if status == 503 else {}
