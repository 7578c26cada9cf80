"""Several processes, on one machine or several, that train one run together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from resnetlab.errors import UsageError

FIRST_PORT, PORTS = 61_440, 4096  # as JAX chooses them for Slurm: the upper end of the ephemeral ports


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
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Cluster:
        """The cluster that Slurm (`srun`) or Cloud TPU describes in the environment variables of each process.

        Raises:
            UsageError: neither does.
        """
        if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"} <= variables.keys():
            host = _first_host(variables["SLURM_STEP_NODELIST"])
            port = FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS  # two jobs on a node rarely have the same
            return cls(f"{host}:{port}", int(variables["SLURM_NTASKS"]), int(variables["SLURM_PROCID"]))
        if {"TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"} <= variables.keys():
            hosts = variables["TPU_WORKER_HOSTNAMES"].split(",")
            return cls(f"{hosts[0]}:{FIRST_PORT}", len(hosts), int(variables["TPU_WORKER_ID"]))
        raise UsageError(
            "Received coordinator 'auto', and the environment describes no cluster. Expected the variables of Slurm "
            "(SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID: start the processes with srun) or of "
            "Cloud TPU (TPU_WORKER_HOSTNAMES, TPU_WORKER_ID); or use HOST:PORT, num_processes and process_id."
        )

    @classmethod
    def of(cls, coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster | None:
        """The cluster of these options; None where none is given. A coordinator "auto" stands for all three.

        Raises:
            UsageError: some are missing.
        """
        given = (coordinator, num_processes, process_id)
        if all(value is None for value in given):
            return None
        if coordinator == "auto" and num_processes is None and process_id is None:
            return cls.from_environment()
        if coordinator is None or num_processes is None or process_id is None:
            raise UsageError("Several processes need all of coordinator, num_processes and process_id.")
        return cls(coordinator, num_processes, process_id)


def _first_host(nodes: str) -> str:
    """The first host of a Slurm list such as "n1,n2" or "gpu[007-015,020],n1"."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if match is None:
        raise UsageError(f"Received SLURM_STEP_NODELIST={nodes!r}, expected names of nodes.")
    return match[1] + (match[2] or "")
