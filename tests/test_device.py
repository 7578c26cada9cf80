"""What `train --device auto|gpu` does on recorded machines: the framework here computes on the CPU alone."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnetlab import backend as running
from resnetlab import doctor, environment
from resnetlab.devices import Placement, Started, resolve_precision, start
from resnetlab.doctor import Facts, machine
from resnetlab.doctor.facts import Cpu, Gpu
from resnetlab.errors import ResnetlabError
from resnetlab.progress import TerminalProgress

RECORDED = Path(__file__).with_name("doctor_findings")
MACHINES = sorted(path.stem for path in RECORDED.glob("*.json"))


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> doctor.Report:
    """The doctor sees a recorded machine, without having probed a framework, as `start` asks it."""
    facts = Facts.from_json(json.loads((RECORDED / f"{request.param}.json").read_text()))
    report = doctor.diagnose(replace(facts, frameworks=tuple(replace(f, probe=None) for f in facts.frameworks)))
    monkeypatch.setattr(doctor, "examine", lambda frameworks: report)
    for name in ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that they are restored
    return report


@pytest.mark.parametrize("on_machine", MACHINES, indirect=True)
def test_a_gpu_that_is_not_used_is_warned_of(on_machine: doctor.Report, capsys: pytest.CaptureFixture[str]) -> None:
    used = start(Placement("tensorflow", "auto"), progress=TerminalProgress())
    assert used == Started("tensorflow", "cpu", environment.cpu_name())
    warned = capsys.readouterr().err
    gpus = on_machine.facts.nvidia.gpus
    assert (gpus[0].name in warned and "is not used" in warned) if gpus else not warned
    if gpus and (reason := doctor.why_no_gpu(on_machine, backend="tensorflow")):
        assert " ".join(reason.split()) in " ".join(warned.split())
    start(Placement("tensorflow", "cpu"), progress=TerminalProgress())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("on_machine", MACHINES, indirect=True)
def test_a_gpu_that_was_asked_for_is_missed_with_the_reason(on_machine: doctor.Report) -> None:
    with pytest.raises(ResnetlabError, match="--device gpu: tensorflow sees no GPU") as error:
        start(Placement("tensorflow", "gpu"), progress=TerminalProgress())
    reason = doctor.why_no_gpu(on_machine, backend="tensorflow")
    assert reason in str(error.value) if reason else "is unknown" in str(error.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(("avx512f", "avx512_bf16"), "bfloat16"), (("amx_bf16",), "bfloat16"), (("avx2",), "float32"), ((), "float32")],
)
def test_automatic_precision_on_a_cpu(flags: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "device", lambda: "cpu")
    monkeypatch.setattr(machine, "cpu", lambda: Cpu("CPU", 1, 1.0, flags))
    assert resolve_precision("auto") == expected
    assert resolve_precision("float16") == "float16"


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bfloat16"), ((7, 5), "float32"), (None, "float32")])
def test_automatic_precision_on_a_gpu(
    capability: tuple[int, int] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "device", lambda: "gpu")
    monkeypatch.setattr(running, "compute_capability", lambda: capability)
    assert resolve_precision("auto") == expected


def test_a_tpu_computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "device", lambda: "gpu")
    monkeypatch.setattr(running, "gpus", lambda: ["TPU v5 lite"])
    assert resolve_precision("auto") == "bfloat16"


@pytest.mark.parametrize(("flags", "warned"), [(("avx2",), True), (("avx512_bf16",), False), (("bf16",), False)])
def test_bfloat16_on_a_cpu_without_it_is_warned_of(
    flags: tuple[str, ...], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu", lambda: Cpu("CPU", 1, 1.0, flags))
    warnings: list[str] = []
    progress = TerminalProgress()
    monkeypatch.setattr(progress, "warning", warnings.append)
    start(Placement("tensorflow", "cpu"), progress=progress, precision="bfloat16")
    assert ["no bfloat16 instructions" in warning for warning in warnings] == [True] * warned


@pytest.mark.parametrize(
    ("visible", "expected"), [("1", "A100"), ("0", "V100"), ("", "A100"), ("GPU-77", "A100"), ("9", "A100")]
)
def test_the_gpu_whose_precisions_are_measured_is_the_one_in_use(visible: str, expected: str) -> None:
    gpus = (Gpu("V100", 0, 0, "7.0"), Gpu("A100", 0, 0, "8.0"))
    facts = SimpleNamespace(nvidia=SimpleNamespace(gpus=gpus), environment={"CUDA_VISIBLE_DEVICES": visible})
    assert doctor.first_visible_gpu(facts).name == expected  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(("visible", "left", "idle"), [(None, "0", ("1", "2")), ("2,0", "2", ("0",)), ("1", "1", ())])
def test_one_of_several_gpus_is_left_visible(
    visible: str | None, left: str, idle: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / bus).mkdir()
    monkeypatch.setattr(environment, "_idle_gpus", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    environment._leave_gpus(1, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    assert environment.idle_gpus() == idle


def test_device_cpu_hides_every_kind_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "KERAS_TORCH_DEVICE", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    environment.configure(backend="tensorflow", device="cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["KERAS_TORCH_DEVICE"] == "cpu"  # Keras takes MPS or XPU otherwise
