"""Start the backend on a device, and report a GPU that is not used or not suited."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from resnetlab import environment
from resnetlab.cluster import Cluster
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.progress import Progress


@dataclass(frozen=True)
class Placement:
    """Where to compute, as `train` documents it."""

    backend: str | None = None
    device: str = "auto"
    devices: int | Literal["all"] = 1
    cluster: Cluster | None = None
    deterministic: bool = False

    @property
    def is_distributed(self) -> bool:
        return self.devices != 1 or self.cluster is not None


@dataclass(frozen=True)
class Started:
    """The backend and the devices in use, as a run records them."""

    backend: str
    device: str  # "cpu" or "gpu"
    device_name: str
    devices: int = 1  # of all processes
    processes: int = 1


def resolve_precision(precision: str) -> str:
    """Resolve "auto": bfloat16 if the device has instructions for it, otherwise float32."""
    if precision != "auto":
        return precision
    from resnetlab import backend as running
    from resnetlab.doctor import machine

    if running.device() == "gpu":
        fast = _gpu_has_bfloat16()
    else:
        fast = machine.cpu().has_bfloat16
    return "bfloat16" if fast else "float32"


def _gpu_has_bfloat16() -> bool:
    """Of the GPU or TPU in use, by the backend; the driver's list has all, in an order of its own."""
    from resnetlab import backend as running

    if any(name.startswith("TPU") for name in running.gpus()):
        return True
    return (running.compute_capability() or (0, 0)) >= (8, 0)


def start(placement: Placement, *, progress: Progress, precision: str = "float32") -> Started:
    """Import Keras on a backend, and set up its devices and processes.

    Raises:
        UsageError: an unknown backend or device; a backend that cannot use several devices or processes.
        ResnetlabError: the backend is not installed, or Keras already runs on another backend or device; a GPU was
            requested, and the backend sees none; the other processes cannot be reached.
    """
    backend, device = placement.backend, placement.device
    settings = {"device": device, "deterministic": placement.deterministic, "devices": placement.devices}
    if placement.is_distributed:
        name = environment.configure(backend=backend, **settings)  # type: ignore[arg-type]
        if name == "torch" or (name == "tensorflow" and placement.cluster is not None):
            raise UsageError(
                f"Several devices need the backend jax or tensorflow, several processes jax; received {name}. "
                "Use --backend jax."
            )
        with environment.greetings_hidden():
            from resnetlab import backend as running

        # before the backend has found its devices
        if placement.cluster is not None:
            running.join(placement.cluster)
        if device == "cpu" and placement.devices != "all":
            running.divide_cpu(placement.devices)
    environment.start(backend=backend, **settings)
    started = _started(backend, device, progress=progress, precision=precision)
    if not placement.is_distributed:
        return started
    from resnetlab import backend as running

    running.distribute(placement.devices)
    return replace(started, devices=running.replicas(), processes=running.process()[1])


def _started(backend: str | None, device: str, *, progress: Progress, precision: str) -> Started:
    """What runs; warns of a GPU that is not used, or not suited to `precision`."""
    from resnetlab import backend as running
    from resnetlab import doctor
    from resnetlab.doctor import machine

    used = running.device()
    if used == "cpu" and precision == "bfloat16" and not machine.cpu().may_have_bfloat16:
        progress.warning(
            "This CPU has no bfloat16 instructions: float32 is faster on it. Use --precision float32, or auto."
        )
    if device == "cpu":
        if used == "gpu":
            raise ResnetlabError(
                f"{running.NAME} already uses the GPU in this process; for device 'cpu', start a new process."
            )
        return Started(running.NAME, used, environment.cpu_name())
    report = doctor.examine(frameworks=())
    gpus = report.facts.nvidia.gpus
    if used == "cpu":
        reason = doctor.why_no_gpu(report, backend=running.NAME) or (
            f"The driver lists a GPU; the reason why {running.NAME} does not see it is unknown."
        )
        if device == "gpu":
            raise ResnetlabError(f"--device gpu: {running.NAME} sees no GPU. {reason} See `resnetlab doctor`.")
        if gpus:
            progress.warning(
                f"{gpus[0].name} is not used, {running.NAME} computes on the CPU. {reason} See `resnetlab doctor`, "
                "or pass --device cpu."
            )
        return Started(running.NAME, used, environment.cpu_name())
    name = (running.gpus() or [environment.cpu_name()])[0]
    if precision == "bfloat16" and gpus and not _gpu_has_bfloat16():
        progress.warning(
            f"{name} (compute capability below 8.0) has no bfloat16 hardware and emulates it slowly. Use --set "
            "precision=float16."
        )
    if idle := environment.idle_gpus():
        progress.info(f"{len(idle)} more GPUs ({', '.join(idle)}) stay idle: to use them, --devices all.")
    return Started(running.NAME, used, name)
