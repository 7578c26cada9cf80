"""Several processes, on one machine or several, that train one run together."""

from __future__ import annotations

from dataclasses import dataclass

from resnetlab.errors import UsageError


@dataclass(frozen=True)
class Cluster:
    """How a process finds the others; each is started with the same arguments but for `process_id`.

    Attributes:
        coordinator: HOST:PORT of process 0, which all others can reach.
        num_processes: how many there are.
        process_id: this one's number, from 0. Process 0 writes the run folder.
    """

    coordinator: str
    num_processes: int
    process_id: int

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"Received coordinator {self.coordinator!r}, expected HOST:PORT of process 0.")
        if self.num_processes < 2:
            raise UsageError(f"Received num_processes={self.num_processes}, expected at least 2.")
        if not 0 <= self.process_id < self.num_processes:
            raise UsageError(
                f"Received process_id={self.process_id}, expected 0 to {self.num_processes - 1}, "
                "another for each process."
            )

    @classmethod
    def of(cls, coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster | None:
        """The cluster of these options; None where none is given.

        Raises:
            UsageError: some are missing.
        """
        given = (coordinator, num_processes, process_id)
        if all(value is None for value in given):
            return None
        if coordinator is None or num_processes is None or process_id is None:
            raise UsageError("Several processes need all of coordinator, num_processes and process_id.")
        return cls(coordinator, num_processes, process_id)
