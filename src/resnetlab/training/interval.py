"""How often a checkpoint is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resnetlab.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """How often a checkpoint is written within an epoch: after so many steps, or so many seconds."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, interval: str | int) -> Interval:
        """Of "500" or 500 (steps), "90s" or "5m".

        Raises:
            UsageError: anything else.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", str(interval))
        amount = float(match[1]) if match else 0.0
        if match is None or not amount or (not match[2] and not amount.is_integer()):
            raise UsageError(f"Received a checkpoint interval of {interval!r}, expected steps (500), 90s, or 5m.")
        if not match[2]:
            return cls(steps=int(amount))
        return cls(seconds=amount * {"s": 1, "m": 60}[match[2]])

    def passed(self, steps: int, seconds: float) -> bool:
        return steps >= self.steps if self.steps else seconds >= self.seconds


EVERY_FIVE_MINUTES = Interval(seconds=300)
