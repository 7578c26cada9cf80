"""What the facts mean: pure functions from `Facts` to findings, causes before their effects.

This file diagnoses the machine and its environment; accelerators.py everything about GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from resnetlab.doctor import accelerators
from resnetlab.doctor.facts import BACKENDS, Facts, Finding

GIB = 2**30
MEMORY_NEEDED = 3 * GIB  # ResNet-50 at 64x64, batch 32, with the framework and the images
DISK_NEEDED = 2 * GIB  # Animals-10 as downloaded and packed, and some runs

# What TensorFlow's DefaultOneDnnPolicy looks for (tensorflow/core/util/port.cc), beside Arm's Neoverse V1.
ONEDNN_BY_DEFAULT = ("avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")


def collect_findings(facts: Facts) -> list[Finding]:
    """Findings from the facts. Every warning and every error has a fix."""
    findings = [
        *_system(facts),
        *_processor(facts),
        *_memory(facts),
        *accelerators.diagnose_gpus(facts),
        *_environment(facts),
        *accelerators.diagnose_libraries(facts),
    ]
    explained = {backend for finding in findings for backend in finding.blocks_gpu}
    return [*findings, *accelerators.diagnose_frameworks(facts, explained)]


def _system(facts: Facts) -> Iterator[Finding]:
    here = facts.platform
    name = {"Darwin": "macOS"}.get(here.system, here.system)
    found = ", ".join((f"{name} {here.release}", here.machine, *here.places))
    status, needed, fix, blocks = accelerators.diagnose_platform(facts)
    yield Finding("System", "Operating system", status, found, needed, fix, blocks)
    yield Finding("System", "Python", "ok", here.python)
    keras = facts.keras or "not installed"
    if keras.startswith("3."):
        yield Finding("System", "Keras", "ok", keras)
    else:
        yield Finding("System", "Keras", "error", keras, "Keras 3", "pip install --upgrade keras")


def _processor(facts: Facts) -> Iterator[Finding]:
    cpu, section = facts.cpu, "Processor"
    flags = " ".join(flag for flag in cpu.flags if flag not in ("avx", "fma"))
    yield Finding(section, "CPU", "ok", f"{cpu.model} {f'({flags})' if flags else ''}".strip())

    cores = f"{cpu.usable_cores:g} usable, {cpu.physical_cores} physical"
    threads = facts.environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) < int(cpu.usable_cores):
        found = f"{cores}, but OMP_NUM_THREADS={threads} leaves some idle"
        yield Finding(section, "Cores", "warning", found, "", _unset(facts, "OMP_NUM_THREADS"))
    else:
        yield Finding(section, "Cores", "ok", cores)

    if cpu.has_bfloat16:
        found = "in hardware: --precision auto takes it on the CPU"
    else:
        found = "not known to be faster on this CPU: --precision auto takes float32 on it"
    yield Finding(section, "bfloat16", "ok", found)

    if facts.platform.system == "Darwin":
        return  # TensorFlow is built without oneDNN there
    setting = facts.environment.get("TF_ENABLE_ONEDNN_OPTS", "")
    reasons = [flag for flag in cpu.flags if flag in ONEDNN_BY_DEFAULT]
    if setting.lower() in ("0", "false"):
        found = f"off, by TF_ENABLE_ONEDNN_OPTS={setting}: TensorFlow's convolutions are slower"
        fix = f"{_unset(facts, 'TF_ENABLE_ONEDNN_OPTS')} (resnetlab then turns it on)"
        yield Finding(section, "oneDNN", "warning", found, "TF_ENABLE_ONEDNN_OPTS=1", fix)
    elif reasons or cpu.model == "Neoverse V1":
        found = f"on: TensorFlow turns it on by itself on a CPU with {(reasons or [cpu.model])[0]}"
        yield Finding(section, "oneDNN", "ok", found)
    else:
        by_itself = "leaves it off on this CPU" if cpu.flags else "decides by the CPU"
        yield Finding(section, "oneDNN", "ok", f"on: resnetlab turns it on (TensorFlow {by_itself})")


def _memory(facts: Facts) -> Iterator[Finding]:
    memory, section = facts.memory, "Memory and disk"
    if memory.total:
        found = f"{memory.available / GIB:.1f} GiB available of {memory.total / GIB:.1f} GiB"
        if memory.available < MEMORY_NEEDED:
            needed = f"about {MEMORY_NEEDED / GIB:.0f} GiB for ResNet-50 at 64x64, batch 32"
            fix = "Close other programs, or train a smaller --model or with --set batch_size=8"
            yield Finding(section, "Memory", "warning", found, needed, fix)
        else:
            yield Finding(section, "Memory", "ok", found)
    for folder, free in memory.disk_free.items():
        found = f"{free / GIB:.1f} GiB free for {folder}"
        if free < DISK_NEEDED:
            needed = f"about {DISK_NEEDED / GIB:.0f} GiB for a data set and its runs"
            fix = f"Free some space on the file system of {folder}"
            yield Finding(section, "Disk", "warning", found, needed, fix)
        else:
            yield Finding(section, "Disk", "ok", found)


def _environment(facts: Facts) -> Iterator[Finding]:
    section, values, gpus = "Environment", facts.environment, facts.nvidia.gpus
    visible = values.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        first = visible.split(",")[0].strip()
        # CUDA takes the devices up to the first that does not exist; a name (GPU-…, MIG-…) may exist.
        hides = not first or (first.lstrip("-").isdecimal() and not 0 <= int(first) < len(gpus))
        if gpus and hides:
            found, fix = f"{visible!r} hides every GPU", _unset(facts, "CUDA_VISIBLE_DEVICES")
            needed = "not set, or a GPU's number"
            yield Finding(section, "CUDA_VISIBLE_DEVICES", "warning", found, needed, fix, BACKENDS)
        else:
            yield Finding(section, "CUDA_VISIBLE_DEVICES", "info", repr(visible))

    platforms = values.get("JAX_PLATFORMS", "")
    if platforms and gpus and not re.search("cuda|gpu", platforms):
        found, fix = f"{platforms!r} hides every GPU from JAX", _unset(facts, "JAX_PLATFORMS")
        yield Finding(section, "JAX_PLATFORMS", "warning", found, "not set", fix, ("jax",))

    chosen = values.get("KERAS_BACKEND")
    if chosen is not None:
        installed = [framework.name for framework in facts.frameworks if framework.packages]
        if chosen in installed:
            yield Finding(section, "KERAS_BACKEND", "info", chosen)
        else:
            needed = f"one of: {', '.join(installed or BACKENDS)}"
            fix = accelerators.CPU_INSTALL.get(chosen) or _unset(facts, "KERAS_BACKEND")
            yield Finding(section, "KERAS_BACKEND", "warning", f"{chosen!r} is not installed", needed, fix)

    for name in ("TF_FORCE_GPU_ALLOW_GROWTH", "XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        if name in values:
            yield Finding(section, name, "info", values[name])


def _unset(facts: Facts, variable: str) -> str:
    return f"set {variable}=" if facts.platform.system == "Windows" else f"unset {variable}"
