"""The machine below the frameworks: system, processor, memory, NVIDIA's driver and cards.

Nothing here raises: what cannot be read is empty, zero or None.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from resnetlab import cores
from resnetlab.doctor.facts import Cpu, Gpu, Memory, Nvidia, Platform

ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "JAX_PLATFORMS",
    "KERAS_BACKEND",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
)

CAP_SYS_ADMIN = 21  # the bit in Linux's capability sets that NVIDIA's driver asks for


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def system() -> Platform:
    name, version = platform.system(), cores.read("/proc/version").lower()
    signs = {
        "WSL": "microsoft" in version,
        "Kaggle": "KAGGLE_KERNEL_RUN_TYPE" in os.environ,
        "Colab": "COLAB_RELEASE_TAG" in os.environ,
        "container": any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))) or "container" in os.environ,
        "Rosetta": name == "Darwin" and _output("sysctl", "-n", "sysctl.proc_translated") == "1",
    }
    return Platform(
        system=name,
        release=platform.mac_ver()[0] if name == "Darwin" else platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        places=tuple(place for place, is_there in signs.items() if is_there),
    )


def cpu() -> Cpu:
    logical = os.cpu_count() or 1
    usable = cores.usable()
    if platform.system() == "Darwin":
        model, physical = (_output("sysctl", "-n", key) for key in ("machdep.cpu.brand_string", "hw.physicalcpu"))
        return Cpu(model=model, physical_cores=int(physical or logical), usable_cores=usable)
    info: dict[str, str] = {}
    sockets = set()
    for processor in filter(None, cores.read("/proc/cpuinfo").split("\n\n")):
        fields = (line.partition(":") for line in processor.splitlines())
        info = {key.strip(): value.strip() for key, _, value in fields}
        sockets.add((info.get("physical id"), info.get("core id", info.get("processor"))))
    arm_part = (info.get("CPU implementer"), info.get("CPU part"))  # Arm's processors have numbers for names
    other_name = "Neoverse V1" if arm_part == ("0x41", "0xd40") else platform.processor() or platform.machine()
    return Cpu(
        model=info.get("model name", other_name),
        physical_cores=len(sockets) or logical,
        usable_cores=usable,
        flags=cores.instructions(),
    )


def memory(*folders: Path) -> Memory:
    """Memory, and the free space of the file systems that hold `folders`."""
    total = available = 0
    lines = dict(line.split(":", 1) for line in cores.read("/proc/meminfo").splitlines() if ":" in line)
    if lines:
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    elif platform.system() == "Darwin":
        total = available = int(_output("sysctl", "-n", "hw.memsize") or 0)
    elif platform.system() == "Windows":
        status = (ctypes.c_ulonglong * 8)(64)  # MEMORYSTATUSEX: its size, then total, available, ...
        with contextlib.suppress(AttributeError):
            ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
            total, available = status[1], status[2]
    limits = cores.cgroup("memory.max", "memory/memory.limit_in_bytes")
    uses = cores.cgroup("memory.current", "memory/memory.usage_in_bytes")
    stats = cores.cgroup("memory.stat", "memory/memory.stat")
    for limit, used, stat in zip_longest(limits, uses, stats, fillvalue=""):
        if limit.isdecimal() and used.isdecimal() and int(limit) < total:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)  # given back where it is needed
            total, available = int(limit), min(available, int(limit) - int(used) + int(cached[1] if cached else 0))
    disk_free = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            disk_free[str(folder)] = shutil.disk_usage(existing).free
    return Memory(total=total, available=available, disk_free=disk_free)


def nvidia() -> Nvidia:
    error, driver, cuda, gpus = "", "", "", []
    try:
        nvml: Any = importlib.import_module("pynvml")  # the package nvidia-ml-py
        nvml.nvmlInit()
        driver, number = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion_v2()
        cuda = f"{number // 1000}.{number % 1000 // 10}"
        gpus = [_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
        nvml.nvmlShutdown()
    except Exception as caught:  # nvmlInit's error states what is missing
        error = f"{type(caught).__name__}: {caught}"
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
        libcuda = ""
    except OSError as caught:
        libcuda = str(caught)
    parameters = cores.read("/proc/driver/nvidia/params")
    capabilities = [
        line.split()[1] for line in cores.read("/proc/self/status").splitlines() if line.startswith("CapEff:")
    ]
    return Nvidia(
        error=error,
        driver=driver,
        cuda=cuda,
        gpus=tuple(gpus),
        adapters=tuple(_adapters()),
        device_files=tuple(map(str, sorted([*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dxg")]))),
        libcuda=libcuda,
        nvidia_smi=shutil.which("nvidia-smi") or "",
        profiling_for_admin_only="RmProfilingAdminOnly: 1" in parameters if parameters else None,
        may_profile=bool(int(capabilities[0], 16) >> CAP_SYS_ADMIN & 1) if capabilities else None,
    )


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory, used, processes, ecc_errors = 0, 0, (), 0
    with contextlib.suppress(nvml.NVMLError):  # not supported where the GPU shares the CPU's memory
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
        memory, used = int(info.total), int(info.used)
    with contextlib.suppress(nvml.NVMLError):  # not permitted in some containers
        processes = tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    with contextlib.suppress(nvml.NVMLError):
        ecc_errors = nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        memory=memory,
        memory_used=used,
        compute_capability="{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        processes=processes,
        ecc_errors=int(ecc_errors),
    )


def _adapters() -> Iterator[str]:
    """Graphics cards on the bus, with or without a driver."""
    makers = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
    for device in sorted(Path("/sys/bus/pci/devices").glob("*")):
        if cores.read(device / "class").startswith("0x03"):  # display controllers; 0x0302 has no display attached
            maker = cores.read(device / "vendor")
            yield f"{makers.get(maker, maker)} {cores.read(device / 'device').removeprefix('0x')} at {device.name}"
    if platform.system() == "Windows":
        query = "(Get-CimInstance Win32_VideoController).Name"
        yield from _output("powershell", "-NoProfile", "-Command", query).splitlines()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
