"""Diagnosis of the GPU stack, from the driver to a convolution, and of the point where it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from resnetlab.doctor.facts import BACKENDS, LABELS, Facts, Finding, Framework, Gpu, Library, Probe, Status

GIB = 2**30

CPU_INSTALL = {
    "tensorflow": 'pip install "resnetlab[cpu]"',
    "jax": 'pip install "resnetlab[jax]"',
    "torch": 'pip install "resnetlab[torch]"',
}
GPU_INSTALL = {
    "tensorflow": 'pip install "resnetlab[gpu]"',
    "jax": 'pip install "resnetlab[jax-gpu]"',
    # PyPI has the CUDA build for Linux; a CPU build that came from elsewhere is only replaced by force.
    "torch": "pip install --force-reinstall torch",
}
TORCH_SELECTOR = "https://pytorch.org/get-started/locally"
WSL_DRIVER = "Install or update the NVIDIA driver in Windows (none inside WSL), then wsl --shutdown"

# TensorFlow computes on one GPU without these: they are for profiling and for several GPUs.
SPARED_BY_TENSORFLOW = ("CUPTI", "NCCL")


def diagnose_platform(facts: Facts) -> tuple[Status, str, str, tuple[str, ...]]:
    """What the operating system rules out: status, needed, fix, the backends without a GPU there."""
    here = facts.platform
    if here.system == "Windows":
        needed = "WSL2 for a GPU with TensorFlow (none on native Windows since 2.11) or JAX; PyTorch has one here"
        fix = (
            f"wsl --install, then in WSL: {GPU_INSTALL['tensorflow']}; or here: PyTorch's CUDA build from "
            f"{TORCH_SELECTOR} and --backend torch"
        )
        return ("warning" if _has_nvidia(facts) else "info"), needed, fix, ("tensorflow", "jax")
    if here.system == "Darwin" and here.machine == "x86_64":
        rosetta = "Install an arm64 Python: this one runs under Rosetta"
        fix = rosetta if "Rosetta" in here.places else "Train on Apple silicon or on Linux"
        return "warning", "arm64: the frameworks no longer have wheels for Intel Macs", fix, BACKENDS
    if here.system == "Darwin":
        needed = "PyTorch for Apple's GPU (mps): TensorFlow and JAX compute on the CPU here"
        return "info", needed, f"{CPU_INSTALL['torch']} and --backend torch", ("tensorflow", "jax")
    return "ok", "", "", ()


def diagnose_gpus(facts: Facts) -> Iterator[Finding]:
    section, nvidia = "GPU", facts.nvidia
    if nvidia.gpus:
        yield _driver(facts)
        for index, gpu in enumerate(nvidia.gpus):
            yield _card(f"GPU {index}", gpu)
        yield from _profiling(facts)
    elif computing := [LABELS[f.name] for f in facts.frameworks if f.computes_on("GPU")]:
        found = f"one that NVIDIA's driver does not list; {', '.join(computing)} computes on it"
        yield Finding(section, "GPU", "ok", found)
    elif _has_nvidia(facts):
        yield _no_driver(facts)
    else:
        yield _no_card(facts)
    if not nvidia.gpus and any(adapter.startswith("AMD") for adapter in nvidia.adapters):
        fix = f"PyTorch's ROCm build for Linux from {TORCH_SELECTOR}, and --backend torch"
        yield Finding(section, "AMD GPU", "info", "found; not used by the frameworks' usual wheels", "", fix)


def _driver(facts: Facts) -> Finding:
    """Check the driver: it runs code built for its own major version of CUDA or an older one."""
    nvidia = facts.nvidia
    found = f"{nvidia.driver}, runs CUDA up to {nvidia.cuda}"
    built = {f.name: f.probe.cuda for f in facts.frameworks if f.probe and f.probe.cuda}
    needed = {name: f"CUDA {cuda} for {LABELS[name]}" for name, cuda in built.items()}
    works = {f.name for f in facts.frameworks if f.computes_on("GPU")}
    too_new = tuple(n for n, cuda in built.items() if _numbers(cuda)[:1] > _numbers(nvidia.cuda)[:1] and n not in works)
    if too_new:
        wanted = "; ".join(needed[name] for name in too_new)
        return Finding("GPU", "NVIDIA driver", "error", f"{found}: too old", wanted, _driver_fix(facts), too_new)
    if any(_numbers(cuda) > _numbers(nvidia.cuda) for cuda in built.values()):
        found += " (enough: the major version decides)"
    return Finding("GPU", "NVIDIA driver", "ok", found, "; ".join(needed.values()))


def _no_driver(facts: Facts) -> Finding:
    """There are signs of an NVIDIA card, but no driver that shows it."""
    nvidia, places = facts.nvidia, facts.platform.places
    card = next((adapter for adapter in nvidia.adapters if "NVIDIA" in adapter), "")
    signs = ", ".join(filter(None, (card, *nvidia.device_files[:2], nvidia.nvidia_smi)))
    found = f"none that answers ({nvidia.error or 'it lists no GPU'}), but there is {signs}"
    if "mismatch" in nvidia.error.lower():
        found, fix = f"its kernel module and libraries are of different versions ({nvidia.error})", "sudo reboot"
    elif "container" in places:
        fix = "Start the container with docker run --gpus all (on the host: the NVIDIA Container Toolkit)"
    elif any(file.startswith("/dev/nvidia") for file in nvidia.device_files):
        fix = "sudo nvidia-smi shows the cause; if that fails as well, sudo reboot"
    else:
        fix = _driver_fix(facts)
    return Finding("GPU", "NVIDIA driver", "error", found, "a driver that nvidia-smi lists a GPU with", fix, BACKENDS)


def _driver_fix(facts: Facts) -> str:
    if "WSL" in facts.platform.places:
        return WSL_DRIVER
    by_hand = "install the newest driver from https://www.nvidia.com/drivers"
    if facts.platform.system == "Windows":
        return by_hand.capitalize()
    return f"sudo ubuntu-drivers install && sudo reboot (elsewhere than on Ubuntu: {by_hand})"


def _no_card(facts: Facts) -> Finding:
    places, fix = facts.platform.places, ""
    linux = facts.platform.system == "Linux"
    missing = {
        "no NVIDIA card on the PCI bus": linux,
        "no NVIDIA card in the system's list": facts.platform.system == "Windows",
        "no /dev/nvidia*": linux,
        "no nvidia-smi": not facts.nvidia.nvidia_smi,
        "no CUDA driver library": bool(facts.nvidia.libcuda),
        "no answer from NVML": bool(facts.nvidia.error),
    }
    found = f"none: {', '.join(what for what, is_so in missing.items() if is_so)}"
    if "Kaggle" in places:
        fix = "Choose one in the notebook's settings, under Accelerator"
    elif "Colab" in places:
        fix = "Choose one under Runtime, Change runtime type"
    elif "WSL" in places:
        fix = f"If the PC has an NVIDIA GPU: {WSL_DRIVER}"
    elif "container" in places:
        fix = "If the host has an NVIDIA GPU: start the container with docker run --gpus all"
    # On Apple silicon, PyTorch uses the GPU without an NVIDIA card.
    apple = facts.platform.system == "Darwin" and facts.platform.machine == "arm64"
    return Finding("GPU", "NVIDIA GPU", "info", found, "", fix, ("tensorflow", "jax") if apple else BACKENDS)


def _card(part: str, gpu: Gpu) -> Finding:
    found = f"{gpu.name}, {gpu.memory / GIB:.0f} GiB, compute capability {gpu.compute_capability}"
    if gpu.memory_used > 0.9 * gpu.memory:
        users = f" by process {', '.join(map(str, gpu.processes))}" if gpu.processes else ""
        found += f"; {gpu.memory_used / gpu.memory:.0%} of its memory is taken{users}"
        fix = "nvidia-smi lists who uses it: end that program, or choose another GPU by CUDA_VISIBLE_DEVICES"
        return Finding("GPU", part, "warning", found, "free memory", fix)
    if gpu.ecc_errors:
        found += f"; {gpu.ecc_errors} uncorrected memory errors"
        fix = "nvidia-smi -q -d ECC shows them; sudo reboot, and have the card replaced if they return"
        return Finding("GPU", part, "warning", found, "no memory errors", fix)
    return Finding("GPU", part, "ok", found)


def _profiling(facts: Facts) -> Iterator[Finding]:
    """CUPTI reads a GPU's counters with a privilege only, unless the driver is set otherwise."""
    nvidia = facts.nvidia
    if nvidia.profiling_for_admin_only and not nvidia.may_profile:
        yield Finding(
            section="GPU",
            part="CUPTI permission",
            status="warning",
            found="profiling is for administrators only; training is not affected",
            needed="RmProfilingAdminOnly: 0, to profile",
            fix="echo 'options nvidia NVreg_RestrictProfilingToAdminUsers=0' | "
            "sudo tee /etc/modprobe.d/nvidia-profiling.conf && sudo update-initramfs -u && sudo reboot",
        )
    elif nvidia.profiling_for_admin_only is not None:
        yield Finding("GPU", "CUPTI permission", "ok", "this process may profile")


def diagnose_libraries(facts: Facts) -> Iterator[Finding]:
    """The CUDA libraries that the frameworks ask for; nothing where there is no GPU to use them."""
    if not facts.nvidia.gpus:
        return
    works = {f.name for f in facts.frameworks if f.computes_on("GPU")}
    asked = [library for f in facts.frameworks if gpu_build(f) is not False for library in f.libraries]
    for _, group in groupby(sorted(asked, key=_identity), key=_identity):
        yield _library(list(group), works)


def _identity(library: Library) -> tuple[str, str]:
    return library.name, library.package


def _library(askers: list[Library], works: set[str]) -> Finding:
    """The finding for one library, given the requirements of all frameworks that need it."""
    section, one = "CUDA libraries", askers[0]
    needed = "; ".join(f"{LABELS[each.framework]} {each.needed}".strip() for each in askers)
    version = one.installed or one.version
    unfit = [each for each in askers if not _satisfies(version, each.needed)]
    shadow = one.shadowed_by and not _satisfies(_file_version(one.shadowed_by), one.needed)
    if shadow:
        found, fix = f"LD_LIBRARY_PATH puts {one.shadowed_by} before the right one", "unset LD_LIBRARY_PATH"
    elif one.present and not unfit:
        source = f"pip, {one.package}" if one.installed else f"the system's {one.soname}"
        return Finding(section, one.name, "ok", f"{version} ({source})".strip(), needed)
    elif all(each.framework in works for each in askers):
        found = f"{version or 'not found'}; the frameworks compute on the GPU all the same"
        return Finding(section, one.name, "ok", found, needed)
    elif one.installed and not one.present:
        found = f"{one.package} {version} is installed, but its {one.soname} is gone"
        fix = f"pip install --force-reinstall --no-deps {one.package}=={version}"
    else:
        found = f"not found: neither the package {one.package} nor {one.soname} in the system"
        if one.present:
            found = f"{version} does not suit {' and '.join(LABELS[each.framework] for each in unfit)}"
        idle = [each.framework for each in unfit or askers if each.framework not in works]
        fix = " && ".join(dict.fromkeys(GPU_INSTALL[name] for name in idle))
    blocked = tuple(
        each.framework
        for each in (askers if shadow or not one.present else unfit)
        if each.framework not in works and not (each.framework == "tensorflow" and one.name in SPARED_BY_TENSORFLOW)
    )
    return Finding(section, one.name, "error" if blocked else "warning", found, needed, fix, blocked)


def diagnose_frameworks(facts: Facts, explained: set[str]) -> Iterator[Finding]:
    """Diagnose the frameworks; for backends in `explained`, another finding already explains why they have no GPU."""
    for framework in facts.frameworks:
        if len(framework.packages) > 1 and framework.name != "jax":
            both = list(framework.packages)
            install = (GPU_INSTALL if facts.nvidia.gpus else CPU_INSTALL)[framework.name]
            found, fix = f"{' and '.join(both)} overwrite each other", f"pip uninstall -y {' '.join(both)} && {install}"
            part = f"{LABELS[framework.name]} packages"
            yield Finding("Frameworks", part, "warning", found, "one of them", fix)
        yield _framework(facts, framework, explained)


def _framework(facts: Facts, framework: Framework, explained: set[str]) -> Finding:
    section, name, probe, gpus = "Frameworks", framework.name, framework.probe, facts.nvidia.gpus
    label, alone = LABELS[name], (name,)
    if not framework.packages:
        for_gpu = gpus and facts.platform.system == "Linux" and name != "torch"
        install = GPU_INSTALL[name] if for_gpu else CPU_INSTALL[name]
        return Finding(section, label, "info", "not installed (one framework is enough)", "", install, alone)
    version = (probe and probe.version) or next(iter(framework.packages.values()))
    if probe and (probe.error or not framework.computes_on("CPU")):
        return _broken(facts, framework, probe)
    if gpus and gpu_build(framework) is False and name not in explained:
        found, needed = f"{version}, a build for the CPU only: the GPU stays idle", f"a CUDA build, for {gpus[0].name}"
        return Finding(section, label, "warning", found, needed, _gpu_build_fix(facts, framework), alone)
    if not probe:
        return Finding(section, label, "info", f"{version}, not tried")
    if gpus and not framework.computes_on("GPU") and name not in explained:
        return _idle_gpu(facts, probe, name)
    found = f"{version}: a convolution is correct on {', '.join(d.name for d in probe.devices if d.computes)}"
    wrong = [f"{device.name}: {device.error}" for device in probe.devices if not device.computes]
    if wrong:  # one of several
        fix = "Leave that device out by CUDA_VISIBLE_DEVICES"
        return Finding(section, label, "warning", "; ".join((found, *wrong)), _built_for(probe), fix)
    return Finding(section, label, "ok", found, _built_for(probe))


def _gpu_build_fix(facts: Facts, framework: Framework) -> str:
    if framework.name == "torch" and facts.platform.system == "Windows":
        return f"Run what {TORCH_SELECTOR} gives for Windows, Pip and a CUDA up to {facts.nvidia.cuda}"
    first = "pip uninstall -y tensorflow-cpu && " if "tensorflow-cpu" in framework.packages else ""
    return first + GPU_INSTALL[framework.name]


def _broken(facts: Facts, framework: Framework, probe: Probe) -> Finding:
    wrong = [f"{device.name}: {device.error}" for device in probe.devices if not device.computes]
    found = probe.error or "; ".join(wrong) or "it lists no CPU"
    pinned = " ".join(f"{package}=={version}" for package, version in framework.packages.items())
    fix = f"pip install --force-reinstall {pinned}"
    if framework.name == "jax" and "JAX_PLATFORMS" in facts.environment:
        fix = "unset JAX_PLATFORMS"
    elif "SIGILL" in found:
        fix = f"This CPU lacks an instruction that the build uses: try another backend, {CPU_INSTALL['torch']}"
    elif "no answer" in found:
        fix = f'python -c "import {framework.name}" alone shows whether disk or driver hangs'
    needed = "an import and a right convolution"
    return Finding("Frameworks", LABELS[framework.name], "error", found, needed, fix, (framework.name,))


def _idle_gpu(facts: Facts, probe: Probe, name: str) -> Finding:
    """A CUDA build that does not compute on the GPU, although the driver and the libraries are in order."""
    label, gpu = LABELS[name], facts.nvidia.gpus[0]
    wrong = [f"{device.name}: {device.error}" for device in probe.devices if not device.computes]
    reason = "; ".join(wrong or probe.log) or "it gives no reason"
    found = f"{probe.version} does not compute on the GPU: {reason}"
    needed, fix = _built_for(probe), GPU_INSTALL[name]
    if not _has_code_for(gpu, probe.architectures):
        found = f"{probe.version} has no code for {gpu.name} (compute capability {gpu.compute_capability})"
        needed = f"one of {' '.join(probe.architectures)}"
        newest = max(_numbers_of_code(code) for code in probe.architectures)
        if _numbers(gpu.compute_capability) > newest:
            fix = f"pip install --upgrade {name}"
        else:
            fix = f"This GPU is too old for it: an older {label}, or --device cpu"
    return Finding("Frameworks", label, "error", found, needed, fix, (name,))


def gpu_build(framework: Framework) -> bool | None:
    """Whether it is a build for GPUs: by its own report, else by its packages; None where neither states it."""
    if framework.probe and framework.probe.gpu_build is not None:
        return framework.probe.gpu_build
    packages = framework.packages
    if framework.name == "jax":
        return any("plugin" in package for package in packages)
    if "tensorflow-cpu" in packages or packages.get("torch", "").endswith("+cpu"):
        return False
    return None


def _has_nvidia(facts: Facts) -> bool:
    """Whether there are signs of an NVIDIA card. nvidia-smi alone is none: Colab has it without one."""
    nvidia = facts.nvidia
    in_windows = "WSL" in facts.platform.places and bool(nvidia.nvidia_smi)  # Windows's driver brings it into WSL
    listed = any("NVIDIA" in adapter for adapter in nvidia.adapters)
    device = any(file.startswith("/dev/nvidia") for file in nvidia.device_files)
    return bool(nvidia.gpus) or listed or device or in_windows


def _has_code_for(gpu: Gpu, architectures: tuple[str, ...]) -> bool:
    """Machine code (sm_) runs on its major version, from its minor one on; PTX (compute_) on all newer."""
    have = _numbers(gpu.compute_capability)
    for code in architectures:
        needs = _numbers_of_code(code)
        if needs <= have and (code.startswith("compute") or needs[:1] == have[:1]):
            return True
    return not architectures  # not stated


def _numbers_of_code(code: str) -> tuple[int, ...]:
    """sm_90a, compute_90 and 9.0 are (9, 0)."""
    digits = re.sub(r"\D", "", code)
    return (int(digits[:-1]), int(digits[-1])) if len(digits) > 1 else (0, 0)


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _satisfies(version: str, needed: str) -> bool:
    """Whether a version is as needed, as far as it is known: 12.5 may be the 12.5.82 that is needed."""
    known = version.count(".") + 1
    needed = re.sub(r"\d+(?:\.\d+)+", lambda found: ".".join(found[0].split(".")[:known]), needed)
    try:
        return SpecifierSet(needed).contains(Version(version), prereleases=True)
    except InvalidVersion:  # unknown: no reason to complain
        return True


def _file_version(path: str) -> str:
    """libcudnn.so.9.1.0 is 9.1.0."""
    return path.rpartition(".so.")[2]


def _built_for(probe: Probe) -> str:
    parts = (probe.cuda and f"CUDA {probe.cuda}", probe.cudnn and f"cuDNN {probe.cudnn}")
    return f"{', '.join(filter(None, parts))} for a GPU" if any(parts) else ""
