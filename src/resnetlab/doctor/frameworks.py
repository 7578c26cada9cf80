"""TensorFlow, JAX, PyTorch: what is installed, which CUDA libraries they need, what each reports."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from resnetlab.child_process import Child, ChildFailed
from resnetlab.doctor.facts import BACKENDS, Framework, Library, Probe

# Packages that provide each framework; if two of one row are installed, they overwrite each other's files.
PACKAGES = {
    "tensorflow": (
        "tensorflow",
        "tensorflow-cpu",
        "tf-nightly",
        "tf-nightly-cpu",
        "tensorflow-rocm",
        "tensorflow-macos",
    ),
    "jax": ("jax",),
    "torch": ("torch",),
}

# What requirements call a library (without "nvidia-" and "-cu12"), its usual name, how its file is called.
LIBRARIES = {
    "cuda-runtime": ("CUDA runtime", "libcudart"),
    "cublas": ("cuBLAS", "libcublas"),
    "cudnn": ("cuDNN", "libcudnn"),
    "cufft": ("cuFFT", "libcufft"),
    "cusolver": ("cuSOLVER", "libcusolver"),
    "cusparse": ("cuSPARSE", "libcusparse"),
    "nvjitlink": ("nvJitLink", "libnvJitLink"),
    "cuda-nvrtc": ("NVRTC", "libnvrtc"),
    "nccl": ("NCCL", "libnccl"),
    "cuda-cupti": ("CUPTI", "libcupti"),
}


def examine(names: Sequence[str], *, with_libraries: bool, time_limit: float) -> tuple[Framework, ...]:
    """All three frameworks by their metadata, and those in `names` by a child process each.

    A child has `time_limit` seconds. `with_libraries` looks for the CUDA libraries they ask for.
    """
    found = [_from_metadata(name, with_libraries=with_libraries) for name in BACKENDS]
    sonames = sorted({library.soname for f in found for library in f.libraries if not library.installed})
    with ThreadPoolExecutor() as pool:
        system = pool.submit(_ask, {"libraries": sonames}, time_limit) if sonames else None
        asked = {f.name: pool.submit(_probe, f.name, time_limit) for f in found if f.packages and f.name in names}
    in_system: dict[str, Any] = system.result()[0] if system else {}
    return tuple(
        replace(
            framework,
            libraries=tuple(_located(library, in_system.get(library.soname, {})) for library in framework.libraries),
            probe=asked[framework.name].result() if framework.name in asked else None,
        )
        for framework in found
    )


def version_of(package: str) -> str:
    """The installed version, or ""."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _from_metadata(name: str, *, with_libraries: bool) -> Framework:
    packages = {package: version for package in PACKAGES[name] if (version := version_of(package))}
    if name == "jax" and packages:
        plugins = (f"jax-cuda{major}-plugin" for major in range(12, 30))
        packages |= {package: version for package in ("jaxlib", *plugins) if (version := version_of(package))}
    if not with_libraries:
        return Framework(name=name, packages=packages)
    required = {str(r): r for package in packages for r in _requirements(package, {"and-cuda", "with-cuda", ""})}
    return Framework(
        name=name,
        packages=packages,
        libraries=tuple(_library(name, r) for r in required.values() if _is_library(r)),
    )


def _requirements(package: str, extras: set[str]) -> Iterator[Requirement]:
    """The requirements that hold here, and those of `cuda-toolkit`, which stands for a set of libraries."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for text in importlib.metadata.requires(package) or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                yield requirement
                if requirement.name == "cuda-toolkit":
                    yield from _requirements(requirement.name, set(requirement.extras))


def _component(requirement: Requirement) -> str:
    return re.sub(r"^nvidia-|-cu\d+$", "", canonicalize_name(requirement.name))


def _is_library(requirement: Requirement) -> bool:
    return requirement.name.startswith("nvidia-") and _component(requirement) in LIBRARIES


def _library(framework: str, requirement: Requirement) -> Library:
    name, stem = LIBRARIES[_component(requirement)]
    # NVIDIA numbers the file by the library's major version, which is that of the lowest version asked for.
    majors = [int(s.version.split(".")[0]) for s in requirement.specifier if s.operator in ("==", ">=", "~=")]
    soname = f"{stem}.so.{majors[0]}" if majors else f"{stem}.so"
    installed = version_of(requirement.name)
    return Library(
        name=name,
        framework=framework,
        package=requirement.name,
        needed=",".join(sorted(map(str, requirement.specifier), reverse=True)),  # ">=9.3,<10"
        soname=soname,
        installed=installed,
        present=bool(installed) and _has_file(requirement.name, soname),
        shadowed_by=next((str(path.resolve()) for path in _in_library_path(soname)), ""),
    )


def _has_file(package: str, soname: str) -> bool:
    files = importlib.metadata.files(package) or ()
    return any(file.name == soname and Path(str(file.locate())).exists() for file in files)


def _in_library_path(soname: str) -> Iterator[Path]:
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        if (path := Path(folder) / soname).exists():
            yield path


def _located(library: Library, in_system: dict[str, Any]) -> Library:
    if library.installed:
        return library
    present, version = bool(in_system.get("loads")), str(in_system.get("version", ""))
    return replace(library, present=present, version=version, error=str(in_system.get("error", "")))


def _probe(name: str, time_limit: float) -> Probe:
    from pydantic import TypeAdapter

    answer, log = _ask({"framework": name}, time_limit)
    return TypeAdapter(Probe).validate_python(answer | {"log": tuple(_about_gpus(log))})


def _ask(request: dict[str, Any], time_limit: float) -> tuple[dict[str, Any], str]:
    """The answer of probe.py in a child process, and what was logged on the way."""
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPP_VMODULE": "dso_loader=1",  # names the library that could not be loaded
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the probe must not allocate the whole GPU memory
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # TensorFlow loads Keras, which a wrong value would break; it is examined by itself.
        "KERAS_BACKEND": request.get("framework", "tensorflow"),
        "PYTHONWARNINGS": "ignore",
    }
    # -P: what lies in the current folder, a torch.py, is not imported.
    with Child("-P", "-m", "resnetlab.doctor.probe", environment=environment) as child:
        try:
            return child.ask_one(request, limit=time_limit), child.log()
        except ChildFailed as failure:
            return {"error": str(failure)}, child.log()


def _about_gpus(log: str) -> Iterator[str]:
    """The first lines about GPUs, without time stamps and without what every start of TensorFlow logs."""
    lines = []
    for line in log.splitlines():
        usual = re.search(r"computation_placer|Unable to register cu|cpu_feature_guard|oneDNN|InitializeLog", line)
        if re.search(r"dlopen|dso_loader|lib(cu|nv|nccl)|CUDA|GPU|cuInit|driver", line) and not usual:
            lines.append(re.sub(r"^([EIWF]?\d{4}[-\d]* ?[\d:.]+|\d+:)*:?\s*\d* *[EIWF]? *", "", line).strip()[:300])
    yield from list(dict.fromkeys(lines))[:4]
