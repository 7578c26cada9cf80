"""The processor: its instructions, and how many cores this process may use, given CPU affinity and control groups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# Vector and matrix instructions; NEON and SVE under the names that Linux gives them on Arm.
INSTRUCTIONS = (
    *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_bf16", "amx_int8", "amx_tile"),
    *("asimd", "sve", "bf16", "i8mm"),
)


def usable() -> float:
    """The number of cores that this process may use; a container may be limited to a fraction, such as 1.5."""
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with contextlib.suppress(ValueError, ZeroDivisionError):
        found = min([found, *_quotas()])
    return found


def threads() -> int:
    """How many threads are worth starting: the usable cores, rounded, and at least one."""
    return max(1, round(usable()))


def instructions() -> tuple[str, ...]:
    """The vector and matrix instructions of the processor; none where Linux does not list them."""
    for line in read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # on x86, on Arm
            found = value.split()
            return tuple(name for name in INSTRUCTIONS if name in found)
    return ()


def _quotas() -> Iterator[float]:
    for line in cgroup("cpu.max", ""):
        quota, period = line.split()
        if quota != "max":
            yield int(quota) / int(period)
    for quota, period in zip(cgroup("", "cpu/cpu.cfs_quota_us"), cgroup("", "cpu/cpu.cfs_period_us"), strict=False):
        if int(quota) > 0:
            yield int(quota) / int(period)


def cgroup(v2: str, v1: str) -> Iterator[str]:
    """The content of a control group's file, from this process's group up to the root; every level sets a limit.

    `v1` is "controller/file": version 1 keeps a tree per controller, version 2 one tree.
    """
    controller, _, v1_file = v1.partition("/")
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            tree, file = Path("/sys/fs/cgroup"), v2
        elif controller in controllers.split(","):
            tree, file = Path("/sys/fs/cgroup") / controller, v1_file
        else:
            continue
        for folder in (Path(group), *Path(group).parents):
            if file and (text := read(tree / folder.relative_to("/") / file)):
                yield text


def read(path: str | Path) -> str:
    """A file's text, stripped; "" where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
