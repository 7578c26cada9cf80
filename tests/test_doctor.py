"""The doctor's judgement on recorded machines (tests/doctor_findings), and its own eyes on this one."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from resnetlab import cores, doctor, environment
from resnetlab.doctor import Facts, Finding, Report, accelerators, frameworks, machine
from resnetlab.doctor.facts import BACKENDS, Library

RECORDED = Path(__file__).with_name("doctor_findings")
ALL = sorted(path.stem for path in RECORDED.glob("*.json"))


def recorded(name: str) -> Facts:
    return Facts.from_json(json.loads((RECORDED / f"{name}.json").read_text()))


def report(name: str) -> Report:
    return doctor.diagnose(recorded(name))


def part(report: Report, name: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.part == name]
    return finding


def at(report: Report, *statuses: str) -> set[str]:
    return {finding.part for finding in report.findings if finding.status in statuses}


def text(report: Report, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(doctor.render(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ALL)
def test_every_warning_and_error_has_a_fix(name: str) -> None:
    assert [f for f in report(name).findings if f.status in ("warning", "error") and not f.fix] == []


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_loses_nothing_and_fits(name: str, width: int) -> None:
    shown = text(report(name), width)
    assert max(map(len, shown.splitlines())) <= width
    squeezed = "".join(shown.split())
    for finding in report(name).findings:
        assert "".join(finding.found.split()) in squeezed
        assert "".join(finding.fix.split()) in squeezed  # brackets of "resnetlab[gpu]" included


@pytest.mark.parametrize("name", ALL)
def test_facts_survive_json(name: str) -> None:
    made = report(name)
    again = json.loads(json.dumps(made.to_json()))
    assert Facts.from_json(again["facts"]) == made.facts
    assert again["exit_code"] == made.exit_code


def test_healthy_h200() -> None:
    made = report("healthy_h200")
    assert at(made, "warning", "error") == set()
    assert made.exit_code == 0
    assert made.runs_on == {"jax": ["CPU", "GPU"], "torch": ["CPU", "GPU"]}
    assert "GPU: NVIDIA H200." in made.summary
    assert doctor.why_no_gpu(made) == ""
    assert part(made, "cuDNN").needed == "JAX >=9.12.0.46,<10.0; PyTorch ==9.19.0.56"


def test_driver_too_old_for_one_framework_and_new_enough_for_another() -> None:
    """The driver runs CUDA 12.2: TensorFlow's 12.5 by minor-version compatibility, PyTorch's 13.0 not."""
    made = report("driver_too_old")
    driver = part(made, "NVIDIA driver")
    assert (driver.status, driver.blocks_gpu) == ("error", ("torch",))
    assert "535.183.01" in driver.found
    assert driver.needed == "CUDA 13.0 for PyTorch"
    assert "ubuntu-drivers install" in driver.fix
    assert "NVIDIA driver" in doctor.why_no_gpu(made, backend="torch")
    assert doctor.why_no_gpu(made, backend="tensorflow") == ""
    assert made.exit_code == 0


def test_cudnn_missing() -> None:
    made = report("cudnn_missing")
    assert at(made, "warning", "error") == {"cuDNN"}  # one cause, one finding
    cudnn = part(made, "cuDNN")
    assert cudnn.status == "error"
    assert "libcudnn.so.9" in cudnn.found
    assert cudnn.needed == "TensorFlow >=9.3.0.75,<10.0"
    assert cudnn.fix == 'pip install "resnetlab[gpu]"'
    assert "cuDNN" in doctor.why_no_gpu(made)
    assert made.exit_code == 0


def test_cpu_builds_on_a_gpu_machine() -> None:
    made = report("cpu_build_on_gpu_machine")
    assert at(made, "warning", "error") == {"TensorFlow", "PyTorch"}
    assert part(made, "TensorFlow").status == "warning"
    assert part(made, "TensorFlow").fix == 'pip uninstall -y tensorflow-cpu && pip install "resnetlab[gpu]"'
    assert "--force-reinstall" in part(made, "PyTorch").fix
    assert "RTX 4090" in part(made, "TensorFlow").needed
    assert "for the CPU only" in doctor.why_no_gpu(made)
    assert doctor.why_no_gpu(made, backend="jax") == (
        'No GPU: JAX: not installed (one framework is enough). Fix: pip install "resnetlab[jax-gpu]".'
    )


def test_cpu_builds_are_known_without_importing_them() -> None:
    facts = recorded("cpu_build_on_gpu_machine")
    quick = replace(facts, frameworks=tuple(replace(f, probe=None) for f in facts.frameworks))
    assert "for the CPU only" in doctor.why_no_gpu(doctor.diagnose(quick), backend="tensorflow")
    assert "for the CPU only" in doctor.why_no_gpu(doctor.diagnose(quick), backend="torch")


def test_cupti_not_permitted_is_a_warning_and_training_runs() -> None:
    made = report("cupti_not_permitted")
    assert at(made, "warning", "error") == {"CUPTI permission"}
    assert part(made, "CUPTI permission").status == "warning"
    assert "NVreg_RestrictProfilingToAdminUsers=0" in part(made, "CUPTI permission").fix
    assert (made.exit_code, made.runs_on) == (0, {"tensorflow": ["CPU", "GPU"]})


def test_an_administrator_may_profile() -> None:
    facts = recorded("cupti_not_permitted")
    made = doctor.diagnose(replace(facts, nvidia=replace(facts.nvidia, may_profile=True)))
    assert part(made, "CUPTI permission").status == "ok"


def test_card_without_driver() -> None:
    made = report("card_without_driver")
    driver = part(made, "NVIDIA driver")
    assert driver.status == "error"
    assert "NVIDIA 2684" in driver.found
    assert "ubuntu-drivers install" in driver.fix
    assert "NVIDIA driver" in doctor.why_no_gpu(made)
    assert made.exit_code == 0


def test_driver_updated_but_not_rebooted() -> None:
    facts = recorded("card_without_driver")
    error = "NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch."
    made = doctor.diagnose(replace(facts, nvidia=replace(facts.nvidia, error=error)))
    assert part(made, "NVIDIA driver").fix == "sudo reboot"


def test_gpu_hidden_by_environment() -> None:
    made = report("gpu_hidden")
    assert at(made, "warning", "error") == {"CUDA_VISIBLE_DEVICES"}
    assert part(made, "CUDA_VISIBLE_DEVICES").fix == "unset CUDA_VISIBLE_DEVICES"
    assert doctor.why_no_gpu(made) == (
        "No GPU: CUDA_VISIBLE_DEVICES: '-1' hides every GPU. Fix: unset CUDA_VISIBLE_DEVICES."
    )


@pytest.mark.parametrize(("value", "hides"), [("", True), ("-1", True), ("1", True), ("0", False), ("GPU-8a", False)])
def test_what_cuda_visible_devices_hides(value: str, hides: bool) -> None:
    facts = replace(recorded("cupti_not_permitted"), environment={"CUDA_VISIBLE_DEVICES": value})
    assert (part(doctor.diagnose(facts), "CUDA_VISIBLE_DEVICES").status == "warning") is hides


def test_windows_points_to_wsl_or_pytorch() -> None:
    made = report("windows")
    system = part(made, "Operating system")
    assert (system.status, system.blocks_gpu) == ("warning", ("tensorflow", "jax"))
    assert "2.11" in system.needed
    assert "wsl --install" in system.fix
    assert "--backend torch" in system.fix
    assert "CUDA up to 12.8" in part(made, "PyTorch").fix
    assert "WSL2" in doctor.why_no_gpu(made, backend="tensorflow")
    assert made.exit_code == 0


def test_wsl2() -> None:
    healthy, without = report("wsl2_healthy"), report("wsl2_without_driver")
    assert at(healthy, "warning", "error") == at(without, "warning", "error") == set()
    assert healthy.runs_on == {"tensorflow": ["CPU", "GPU"]}
    assert "driver in Windows (none inside WSL)" in part(without, "NVIDIA GPU").fix


def test_macos_computes_on_apples_gpu_with_pytorch() -> None:
    made = report("macos")
    assert at(made, "warning", "error") == set()
    assert made.runs_on == {"tensorflow": ["CPU"], "torch": ["CPU", "GPU"]}
    assert "GPU: mps." in made.summary
    assert "mps" in doctor.why_no_gpu(made, backend="tensorflow")


def test_broken_framework_means_no_training() -> None:
    made = report("broken_tensorflow")
    assert made.exit_code == 1
    assert part(made, "TensorFlow").status == "error"
    assert "SIGILL" in part(made, "TensorFlow").found
    assert part(made, "TensorFlow packages").fix.startswith("pip uninstall -y tensorflow tensorflow-cpu && pip")
    assert "nothing yet" in made.summary


def test_old_cuda_in_the_library_path() -> None:
    facts = recorded("cudnn_missing")
    tensorflow, *others = facts.frameworks
    shadow = "/usr/local/cuda-12.1/lib64/libcudnn.so.9.1.0"
    shadowed: list[Library] = [
        replace(lib, installed="9.14.0.64", present=True, error="", shadowed_by=shadow) if lib.name == "cuDNN" else lib
        for lib in tensorflow.libraries
    ]
    facts = replace(facts, frameworks=(replace(tensorflow, libraries=tuple(shadowed)), *others))
    cudnn = part(doctor.diagnose(facts), "cuDNN")
    assert (cudnn.status, cudnn.fix) == ("error", "unset LD_LIBRARY_PATH")
    assert shadow in cudnn.found


def test_gpu_too_new_for_the_build() -> None:
    facts = recorded("cudnn_missing")
    tensorflow, *others = facts.frameworks
    assert tensorflow.probe
    probe = replace(tensorflow.probe, architectures=("sm_60", "sm_80", "sm_90"))
    (gpu,) = facts.nvidia.gpus
    nvidia = replace(facts.nvidia, gpus=(replace(gpu, compute_capability="12.0"),))
    facts = replace(facts, nvidia=nvidia, frameworks=(replace(tensorflow, libraries=(), probe=probe), *others))
    finding = part(doctor.diagnose(facts), "TensorFlow")
    assert (finding.status, finding.fix) == ("error", "pip install --upgrade tensorflow")
    with_ptx = replace(probe, architectures=("sm_60", "sm_80", "compute_90"))
    facts = replace(facts, frameworks=(replace(tensorflow, libraries=(), probe=with_ptx), *others))
    assert "no code for" not in part(doctor.diagnose(facts), "TensorFlow").found


def test_gpu_memory_taken_by_another_process() -> None:
    facts = recorded("cupti_not_permitted")
    (gpu,) = facts.nvidia.gpus
    busy = replace(gpu, memory_used=int(0.97 * gpu.memory), processes=(4711,))
    finding = part(doctor.diagnose(replace(facts, nvidia=replace(facts.nvidia, gpus=(busy,)))), "GPU 0")
    assert finding.status == "warning"
    assert "97%" in finding.found
    assert "4711" in finding.found
    assert "nvidia-smi" in finding.fix


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OMP_NUM_THREADS", "1", "Cores"),
        ("TF_ENABLE_ONEDNN_OPTS", "0", "oneDNN"),
        ("KERAS_BACKEND", "jax", "KERAS_BACKEND"),
    ],
)
def test_environment_traps(variable: str, value: str, name: str) -> None:
    made = doctor.diagnose(replace(recorded("cupti_not_permitted"), environment={variable: value}))
    assert part(made, name).status == "warning"


def test_jax_platforms_hides_the_gpu_from_jax_only() -> None:
    made = doctor.diagnose(replace(recorded("healthy_h200"), environment={"JAX_PLATFORMS": "cpu"}))
    assert part(made, "JAX_PLATFORMS").blocks_gpu == ("jax",)


def test_this_machine() -> None:
    """The one that is really looked at, TensorFlow in its child process included."""
    if not frameworks.version_of("tensorflow") and not frameworks.version_of("tensorflow-cpu"):
        pytest.skip("TensorFlow is not installed")
    made = doctor.examine(frameworks=("tensorflow",))
    assert made.exit_code == 0
    assert "CPU" in made.runs_on["tensorflow"]
    assert set(made.runs_on) == {"tensorflow"}
    assert "TensorFlow (CPU" in made.summary
    if not made.facts.nvidia.gpus and not made.facts.nvidia.adapters and sys.platform == "linux":
        assert doctor.why_no_gpu(made).startswith("No GPU: no NVIDIA card on the PCI bus, no /dev/nvidia*")
    assert text(made, 100)


def test_the_quick_look_imports_no_framework() -> None:
    facts = doctor.collect(frameworks=())
    assert [framework.name for framework in facts.frameworks] == list(BACKENDS)
    assert all(framework.probe is None for framework in facts.frameworks)
    assert facts.memory.total > facts.memory.available > 0
    assert 0 < facts.cpu.usable_cores <= (os.cpu_count() or 1)


def test_a_framework_that_hangs_is_an_error_and_no_hanging_doctor() -> None:
    if not frameworks.version_of("jax"):
        pytest.skip("JAX is not installed")
    (_, jax, _) = frameworks.examine(("jax",), with_libraries=False, time_limit=0.05)
    assert jax.probe
    assert "no answer within" in jax.probe.error


def test_control_group_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2, as in a Kubernetes pod: 1.5 cores, the limit set one level above the process's own group."""
    files = {
        "/proc/self/cgroup": "0::/pod/app",
        "/sys/fs/cgroup/pod/app/cpu.max": "max 100000",
        "/sys/fs/cgroup/pod/cpu.max": "150000 100000",
        "/sys/fs/cgroup/pod/memory.max": str(2 * 2**30),
        "/sys/fs/cgroup/pod/memory.current": str(2**30 + 2**20),
        "/sys/fs/cgroup/pod/memory.stat": f"anon {2**30}\ninactive_file {2**20}",  # which is given back when needed
        "/proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB",
    }
    monkeypatch.setattr(cores, "read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.cpu().usable_cores == 1.5
    assert environment.usable_cores() == 2  # threads, also of ONNX Runtime and OpenVINO
    files["/sys/fs/cgroup/pod/cpu.max"] = "20000 100000"
    assert environment.usable_cores() == 1
    memory = machine.memory(tmp_path)
    assert (memory.total, memory.available) == (2 * 2**30, 2**30)
    assert memory.disk_free[str(tmp_path)] > 0


def test_a_version_is_compared_as_far_as_it_is_known() -> None:
    """The system's libraries tell no patch level."""
    satisfies = accelerators._satisfies
    assert satisfies("12.5", ">=12.5.82,<13.0")
    assert satisfies("9.3", ">=9.3.0.75")
    assert not satisfies("12.4", ">=12.5.82")
    assert not satisfies("9.3.0.74", ">=9.3.0.75")
    assert satisfies("12.9.1", ">=12.5.82")


def test_a_library_is_named_by_the_version_asked_for() -> None:
    from packaging.requirements import Requirement

    made = [
        frameworks._library("tensorflow", Requirement(text)).soname
        for text in ("nvidia-cudnn-cu12<10.0,>=9.3.0.75", "nvidia-cufft==12.0.0.61.*", "nvidia-nccl-cu13>=2.27")
    ]
    assert made == ["libcudnn.so.9", "libcufft.so.12", "libnccl.so.2"]


def package(site: Path, name: str, version: str, requires: tuple[str, ...] = (), files: tuple[str, ...] = ()) -> None:
    """What pip leaves of a package: its metadata and its record of files."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    extras = "".join(f"Provides-Extra: {r.split('==')[-1][1:-1]}\n" for r in requires if "extra ==" in r)
    needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}{needs}")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_libraries_come_from_the_frameworks_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's requirements as of 2.11, through cuda-toolkit; cuDNN's file went with another package."""
    toolkit = ("nvidia-cublas==13.1.0.3.*; extra == 'cublas'", "nvidia-cufft==12.0.0.61.*; extra == 'cufft'")
    package(tmp_path, "torch", "2.11.0", ("cuda-toolkit[cublas]==13.0.2", "nvidia-cudnn-cu13==9.19.0.56", "sympy"))
    package(tmp_path, "cuda-toolkit", "13.0.2", toolkit)
    package(tmp_path, "nvidia-cublas", "13.1.0.3", files=("nvidia/cu13/lib/libcublas.so.13",))
    package(tmp_path, "nvidia-cudnn-cu13", "9.19.0.56", files=("nvidia/cudnn/lib/libcudnn.so.9",))
    library = tmp_path / "nvidia/cu13/lib/libcublas.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)

    (_, _, torch) = frameworks.examine((), with_libraries=True, time_limit=30)
    assert {lib.name: (lib.installed, lib.present) for lib in torch.libraries} == {
        "cuBLAS": ("13.1.0.3", True),
        "cuDNN": ("9.19.0.56", False),
    }
    probe = recorded("cudnn_missing").frameworks[0].probe
    facts = replace(recorded("cudnn_missing"), frameworks=(replace(torch, probe=probe),))
    cudnn = part(doctor.diagnose(facts), "cuDNN")
    assert cudnn.fix == "pip install --force-reinstall --no-deps nvidia-cudnn-cu13==9.19.0.56"
    assert cudnn.blocks_gpu == ("torch",)


class FakeNvml(types.ModuleType):
    """NVIDIA's management library as on a machine with one GPU; every name is one that the real binding has."""

    NVMLError = RuntimeError

    def __getattribute__(self, name: str) -> object:
        if name.startswith(("nvml", "NVML_")):
            assert hasattr(importlib.import_module("pynvml_real"), name)
            answers = {
                "nvmlSystemGetDriverVersion": "580.159.04",
                "nvmlSystemGetCudaDriverVersion_v2": 13000,
                "nvmlDeviceGetCount": 1,
                "nvmlDeviceGetName": "NVIDIA H200",
                "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=150 * 2**30, used=2**30),
                "nvmlDeviceGetCudaComputeCapability": (9, 0),
                "nvmlDeviceGetComputeRunningProcesses": [types.SimpleNamespace(pid=42)],
                "nvmlDeviceGetTotalEccErrors": 0,
            }
            return 0 if name.startswith("NVML_") else lambda *_: answers.get(name)
        return super().__getattribute__(name)


def test_what_is_asked_of_nvidias_management_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml_real", importlib.import_module("pynvml"))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    found = machine.nvidia()
    assert (found.error, found.driver, found.cuda) == ("", "580.159.04", "13.0")
    (gpu,) = found.gpus
    assert (gpu.name, gpu.compute_capability, gpu.processes, gpu.memory) == ("NVIDIA H200", "9.0", (42,), 150 * 2**30)
