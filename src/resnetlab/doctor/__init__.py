"""`resnetlab doctor`: whether training can run here, on which devices, and what blocks the others.

Collecting facts (machine.py, frameworks.py) is separate from diagnosing them (diagnosis.py, accelerators.py), so that
the facts of one machine can be diagnosed on another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnetlab.doctor import frameworks as _frameworks
from resnetlab.doctor import machine
from resnetlab.doctor.diagnosis import collect_findings
from resnetlab.doctor.facts import BACKENDS, LABELS, Facts, Finding, Gpu
from resnetlab.doctor.table import render

__all__ = [
    "Facts",
    "Finding",
    "Report",
    "collect",
    "diagnose",
    "examine",
    "gpu_backends",
    "render",
    "why_no_gpu",
]


@dataclass(frozen=True)
class Report:
    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def runs_on(self) -> dict[str, list[str]]:
        """The backends that work, each with the device types on which its test computations were correct."""
        return {
            framework.name: kinds
            for framework in self.facts.frameworks
            if framework.probe and (kinds := [kind for kind in ("CPU", "GPU") if framework.computes_on(kind)])
        }

    @property
    def exit_code(self) -> int:
        """0 where training can run on at least one backend, else 1."""
        keras = any(finding.part == "Keras" and finding.status == "ok" for finding in self.findings)
        return 0 if self.runs_on and keras else 1

    @property
    def summary(self) -> str:
        tried = [framework for framework in self.facts.frameworks if framework.probe]
        runs = ", ".join(f"{LABELS[name]} ({' and '.join(kinds)})" for name, kinds in self.runs_on.items())
        if self.exit_code:
            runs = "nothing yet; see the errors above" if tried else "not tried"
            if not any(framework.packages for framework in self.facts.frameworks):
                runs = 'nothing yet: install a framework, such as pip install "resnetlab[cpu]"'
        devices = (device for f in tried if f.probe for device in f.probe.devices)
        others = [device.name for device in devices if device.kind == "GPU" and device.computes]
        gpus = ", ".join([gpu.name for gpu in self.facts.nvidia.gpus] or others)
        return f"Training runs on: {runs}. {why_no_gpu(self) or f'GPU: {gpus}.'}"

    def to_json(self) -> dict[str, Any]:
        return {
            "exit_code": self.exit_code,
            "runs_on": self.runs_on,
            "summary": self.summary,
            "findings": [asdict(finding) for finding in self.findings],
            "facts": asdict(self.facts),
        }


def collect(*, frameworks: Sequence[str] = BACKENDS, time_limit: float = 90.0) -> Facts:
    """Examine this machine, and test each of `frameworks` in a child process, limited to `time_limit` seconds.

    With `frameworks=()` no framework is imported, and the call takes a fraction of a second.
    """
    nvidia = machine.nvidia()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Facts(
        platform=machine.system(),
        cpu=machine.cpu(),
        memory=machine.memory(Path.cwd(), cache),
        nvidia=nvidia,
        frameworks=_frameworks.examine(frameworks, with_libraries=bool(nvidia.gpus), time_limit=time_limit),
        environment=machine.environment(),
        keras=_frameworks.version_of("keras"),
    )


def examine(*, frameworks: Sequence[str] = BACKENDS) -> Report:
    """Collect the facts and diagnose them: everything that `resnetlab doctor` shows."""
    return diagnose(collect(frameworks=frameworks))


def diagnose(facts: Facts) -> Report:
    """A report of facts from any machine."""
    return Report(facts, tuple(collect_findings(facts)))


def why_no_gpu(report: Report | None = None, *, backend: str | None = None) -> str:
    """One or two sentences: why no backend (or why `backend`) computes on a GPU; "" where one does or may.

    A backend that was not probed is assumed to work on a GPU unless a finding blocks it. Without a report, the machine
    is examined quickly, without importing or probing a framework.
    """
    report = report or examine(frameworks=())
    installed = [framework.name for framework in report.facts.frameworks if framework.packages]
    wanted = [backend] if backend else installed or list(BACKENDS)
    if gpu_backends(report, wanted):
        return ""
    # Findings are ordered from cause to effect, so the first one that blocks a backend is the reason.
    decisive = (next((f for f in report.findings if name in f.blocks_gpu), None) for name in wanted)
    reasons = dict.fromkeys(finding for finding in decisive if finding)
    if not reasons:
        return "No GPU: no framework computes on one here; `resnetlab doctor` shows what each of them reports."
    return f"No GPU: {' '.join(map(_sentence, reasons))}"


def gpu_backends(report: Report, backends: Sequence[str] = BACKENDS) -> list[str]:
    """The installed ones of `backends` that work on a GPU, or may: not probed, and not blocked by a finding."""
    probed = {framework.name for framework in report.facts.frameworks if framework.probe}
    installed = {framework.name for framework in report.facts.frameworks if framework.packages}
    blocked = {name for finding in report.findings for name in finding.blocks_gpu}
    return [
        name
        for name in backends
        if name in installed and ("GPU" in report.runs_on.get(name, ()) if name in probed else name not in blocked)
    ]


def first_visible_gpu(facts: Facts) -> Gpu | None:
    """The NVIDIA GPU that is used by default: the first of $CUDA_VISIBLE_DEVICES, else the most capable one."""
    gpus = facts.nvidia.gpus
    first = facts.environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.isdecimal() and int(first) < len(gpus):
        return gpus[int(first)]
    return max(gpus, key=lambda gpu: float(gpu.compute_capability), default=None)


def _sentence(finding: Finding) -> str:
    fix = f" Fix: {finding.fix}." if finding.fix and not finding.fix.startswith("If ") else ""
    if finding.part == "NVIDIA GPU":
        return f"{finding.found.removeprefix('none: ')}.{fix}"
    if finding.part == "Operating system":
        return f"{finding.found}: needs {finding.needed}.{fix}"
    return f"{finding.part}: {finding.found}.{fix}"
