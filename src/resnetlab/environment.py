"""Settings to make before Keras is imported (backend, device, oneDNN, threads, memory), and a record of them."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from resnetlab import cores
from resnetlab.errors import ResnetlabError, unknown_name
from resnetlab.keras_hook import BACKENDS

DEVICES = ("auto", "cpu", "gpu")

XLA_DETERMINISM = "--xla_gpu_deterministic_ops=true"
_DISTRIBUTIONS = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax",), "torch": ("torch",)}
_EXTRAS = {"tensorflow": "cpu", "jax": "jax", "torch": "torch"}


def configure(
    *,
    backend: str | None = None,
    device: str = "auto",
    onednn: bool = True,
    deterministic: bool = False,
    devices: int | Literal["all"] = 1,
) -> str:
    """Set up the process for one backend on one device, and return the backend's name. Imports no backend.

    Args:
        backend: "tensorflow", "jax" or "torch"; by default the one that runs, $KERAS_BACKEND, or the first installed.
        device: "cpu" hides all GPUs (NVIDIA, Apple, Intel) from all three frameworks; "gpu" and "auto" leave only the
            NVIDIA GPUs visible that are used, as JAX would allocate memory on all: see `idle_gpus`.
        onednn: enable oneDNN's kernels even where TensorFlow disables them by default (CPUs without AVX512-VNNI),
            where a ResNet-50 then trains three times as fast.
        deterministic: the settings that `backend.require_determinism` needs.
        devices: how many GPUs are used; on a CPU, into how many devices it is divided, to try a program.

    Raises:
        UsageError: an unknown backend or device.
        ResnetlabError: the backend is not installed, or Keras already runs on another one.
    """
    if device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    if backend is None and "keras" in sys.modules:
        backend = sys.modules["keras"].backend.backend()
    backend = backend or os.environ.get("KERAS_BACKEND") or next(filter(installed, BACKENDS), "tensorflow")
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if not installed(backend):
        extra = _EXTRAS[backend]
        raise ResnetlabError(f"Backend {backend!r} is not installed. Install: pip install 'resnetlab[{extra}]'.")
    if "keras" in sys.modules:
        running = sys.modules["keras"].backend.backend()
        if running != backend:
            raise ResnetlabError(
                f"Keras already runs on {running!r} in this process, but {backend!r} was requested. Start a new "
                "process, or set KERAS_BACKEND before the first import."
            )

    os.environ["KERAS_BACKEND"] = backend
    if onednn:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read once, when TensorFlow loads
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    # Otherwise JAX preallocates 75 % of the memory of every visible GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # by default it stops at 75 %, where the others do not
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")
    if deterministic:
        _add_xla_flag(XLA_DETERMINISM)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device == "cpu" and isinstance(devices, int) and devices > 1:
        _add_xla_flag(f"--xla_force_host_platform_device_count={devices}")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"  # Keras takes CUDA, MPS or XPU by itself
    elif "keras" not in sys.modules:  # its backend has its devices already
        _leave_gpus(devices)
    if backend == "tensorflow":
        _keep_freed_memory()
    return backend


def start(**settings: Any) -> str:
    """`configure`, then import Keras and its backend with TensorFlow's greetings kept off the terminal.

    TensorFlow logs to the process's stderr before it reads its own log settings; its output is shown only if the
    import fails, or in verbose mode.
    """
    backend = configure(**settings)
    with greetings_hidden():
        import keras

        keras.ops.zeros(())  # makes the backend find its devices
    return backend


@contextmanager
def greetings_hidden() -> Iterator[None]:
    """Within the context, keep what native code writes to stderr, and show it only if there is an exception."""
    if os.environ.get("RESNETLAB_VERBOSE"):
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as output:
        terminal = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield
        except BaseException:
            output.seek(0)
            os.write(terminal, output.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def cache_folder() -> Path:
    """$RESNETLAB_CACHE, or ~/.cache/resnetlab: packed images, imported weights, results of studies."""
    return Path(os.environ.get("RESNETLAB_CACHE") or Path.home() / ".cache" / "resnetlab")


def installed(backend: str) -> bool:
    """Whether a backend's package is there, without importing it."""
    return _version(*_DISTRIBUTIONS[backend]) is not None


_idle_gpus: list[str] = []


def idle_gpus() -> tuple[str, ...]:
    """The GPUs that `configure` hid."""
    return tuple(_idle_gpus)


def _add_xla_flag(flag: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*(f for f in flags if f.partition("=")[0] != flag.partition("=")[0]), flag])


def _leave_gpus(devices: int | Literal["all"], listing: Path = Path("/proc/driver/nvidia/gpus")) -> None:
    """Leave only the first `devices` visible NVIDIA GPUs visible; fewer that the user chose are kept."""
    if devices == "all":
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        try:
            gpus = [str(i) for i, _ in enumerate(listing.iterdir())]
        except OSError:  # no driver, or one that lists its cards elsewhere
            return
    else:
        gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if len(gpus) > devices and not gpus[0].startswith("-"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[:devices])
        _idle_gpus[:] = gpus[devices:]


def usable_cores() -> int:
    """The number of threads to start: the cores that CPU affinity and control groups allow, rounded."""
    return cores.threads()


def _keep_freed_memory() -> None:
    """Have glibc reuse freed memory, unless the user has tuned it (MALLOC_MMAP_MAX_=65536 is glibc's default).

    By default every feature map of TensorFlow is newly mapped at each step, and the kernel faults in and zeroes its
    pages: 70,000 page faults and 15 % of the CPU time of a ResNet-50 step at 64x64, batch 32. PyTorch does not
    benefit, and XLA has its own allocator.

    Memory that one thread has freed is of no use to a thread of another arena, so with many arenas the memory that
    malloc holds grows for hours. By default there are eight for each core; here, one for each four cores.
    """
    knobs = (
        "MALLOC_ARENA_MAX",
        "MALLOC_MMAP_MAX_",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
        "MALLOC_TOP_PAD_",
    )
    tuned = any(key in os.environ for key in knobs) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of <malloc.h>
    libc = ctypes.CDLL(None)
    libc.mallopt(arena_max, max(1, usable_cores() // 4))
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


def snapshot() -> dict[str, Any]:
    """The conditions a figure was measured under: versions, machine, settings. Imports nothing heavy."""
    packages = ("resnetlab", "keras", "numpy", *(name for names in _DISTRIBUTIONS.values() for name in names))
    settings = ("KERAS_BACKEND", "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "instructions": cores.instructions(),
        "versions": {name: found for name in packages if (found := _version(name))},
        "settings": {name: os.environ[name] for name in settings if name in os.environ},
    }


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
