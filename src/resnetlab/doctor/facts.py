"""Facts about a machine and the findings derived from them, as frozen dataclasses.

machine.py and frameworks.py collect the facts, diagnosis.py and accelerators.py derive the findings. Facts turn into
JSON and back, so that one machine's can be replayed on another: in a test, or from a bug report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resnetlab.keras_hook import BACKENDS as BACKENDS

LABELS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

Status = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One part of the machine: what was found, what is needed, and the command or step that fixes it."""

    section: str
    part: str
    status: Status
    found: str
    needed: str = ""
    fix: str = ""
    blocks_gpu: tuple[str, ...] = ()  # the backends that compute on no GPU because of it


@dataclass(frozen=True)
class Platform:
    system: str  # "Linux", "Windows", "Darwin"
    release: str
    machine: str  # "x86_64", "aarch64", "arm64", "AMD64"
    python: str
    places: tuple[str, ...] = ()  # of "WSL", "Kaggle", "Colab", "container", "Rosetta"


@dataclass(frozen=True)
class Cpu:
    model: str
    physical_cores: int
    usable_cores: float  # what affinity and the control group leave
    flags: tuple[str, ...] = ()  # of those that decide how fast a convolution is

    @property
    def has_bfloat16(self) -> bool:
        """Whether the backends compute faster in bfloat16 than in float32: it has instructions for it (x86)."""
        return "avx512_bf16" in self.flags or "amx_bf16" in self.flags

    @property
    def may_have_bfloat16(self) -> bool:
        """Whether it is worth measuring: an Arm CPU with its instructions is faster with some builds only."""
        return self.has_bfloat16 or "bf16" in self.flags


@dataclass(frozen=True)
class Memory:
    total: int  # bytes, within the control group's limit; 0 where it cannot be read
    available: int
    disk_free: dict[str, int] = field(default_factory=dict)  # folder to bytes


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes
    memory_used: int
    compute_capability: str  # "9.0"
    processes: tuple[int, ...] = ()
    ecc_errors: int = 0  # uncorrected, since the driver was loaded

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16 and TF32: since Ampere, compute capability 8.0."""
        return tuple(int(number) for number in self.compute_capability.split(".")) >= (8, 0)


@dataclass(frozen=True)
class Nvidia:
    """What NVIDIA's management library reports, and signs of a card or a driver where it reports none."""

    error: str = ""  # why the management library did not answer
    driver: str = ""
    cuda: str = ""  # the newest CUDA that the driver runs
    gpus: tuple[Gpu, ...] = ()
    adapters: tuple[str, ...] = ()  # graphics cards of any maker, as the operating system lists them
    device_files: tuple[str, ...] = ()
    libcuda: str = ""  # "" where it loads, else the loader's error
    nvidia_smi: str = ""  # its path
    profiling_for_admin_only: bool | None = None
    may_profile: bool | None = None  # whether this process has the privilege that profiling then needs


@dataclass(frozen=True)
class Library:
    """A CUDA library that an installed framework asks for in the metadata of its package."""

    name: str  # "cuDNN"
    framework: str
    package: str  # "nvidia-cudnn-cu12"
    needed: str  # ">=9.3.0.75,<10.0"
    soname: str  # "libcudnn.so.9"
    installed: str = ""  # the package's version; "" where it is not installed
    present: bool = False  # the file is where the package put it, or the system's loader finds it
    version: str = ""  # of the system's library, where it can be asked
    error: str = ""  # the loader's
    shadowed_by: str = ""  # a file in LD_LIBRARY_PATH that is loaded before it


@dataclass(frozen=True)
class Device:
    name: str
    kind: str  # "CPU", "GPU"
    computes: bool  # a convolution, with the right result
    error: str = ""


@dataclass(frozen=True)
class Probe:
    """What a framework reported, in a process of its own."""

    version: str = ""
    gpu_build: bool | None = None
    cuda: str = ""  # what it was built for
    cudnn: str = ""
    architectures: tuple[str, ...] = ()  # the GPU code that it carries: "sm_80", "compute_90"
    devices: tuple[Device, ...] = ()
    error: str = ""
    log: tuple[str, ...] = ()  # what it logged about GPUs


@dataclass(frozen=True)
class Framework:
    name: str
    packages: dict[str, str] = field(default_factory=dict)  # package to version; empty: not installed
    libraries: tuple[Library, ...] = ()
    probe: Probe | None = None  # None: not asked

    def computes_on(self, kind: str) -> bool:
        return self.probe is not None and any(d.computes and d.kind == kind for d in self.probe.devices)


@dataclass(frozen=True)
class Facts:
    platform: Platform
    cpu: Cpu
    memory: Memory
    nvidia: Nvidia
    frameworks: tuple[Framework, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)  # the variables that matter here, where set
    keras: str = ""  # its version

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Facts:
        """Facts as `asdict` and JSON left them; raises pydantic.ValidationError for anything else."""
        from pydantic import TypeAdapter

        return TypeAdapter(Facts).validate_python(data)
