"""The comparison: what it measures, what it says of it, and what it does with what fails."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from resnetlab import environment
from resnetlab.compare import compare
from resnetlab.compare.compare import Configuration, configurations, verdict
from resnetlab.errors import UsageError
from resnetlab.recipes import RECIPES
from resnetlab.report.comparison import problems, table

Row = dict[str, Any]


def row(device: str, batch_size: int, rate: float, **changes: Any) -> Row:
    """A measurement as `run` hands it on."""
    timing = {"n": 3, "median": rate, "mean": rate, "deviation": 0.1, "minimum": rate, "maximum": rate}
    configuration = Configuration(device, "tensorflow")
    facts: Row = {
        "configuration": configuration.label,
        "device": device,
        "backend": "tensorflow",
        "precision": "float32",
        "xla": None,
        "onednn": True,
        "gpu": "NVIDIA H200" if device == "gpu" else None,
        "batch_size": batch_size,
        "train": timing,
        "end_to_end": timing,
        "inference": timing,
        "loader": 20_000.0,
        "import_seconds": 3.0,
        "build_seconds": 1.0,
        "first_step_seconds": 5.5,
        "peak_memory": 2_000_000_000,
        "epoch_seconds": 6_000 / rate,
        "matmul_share": 0.5,
        "bottleneck": "compute",
    }
    return facts | changes


def failed(device: str, batch_size: int, problem: str) -> Row:
    keep = ("configuration", "device", "backend", "precision", "xla", "onednn", "batch_size")
    whole = row(device, batch_size, 1.0)
    return {key: whole[key] for key in keep} | {"problem": problem}


def test_what_is_worth_measuring() -> None:
    labels = [c.label for c in configurations(["cpu"], ["tensorflow", "jax", "torch"])]
    assert labels == [
        "CPU · tensorflow · float32 · oneDNN",
        "CPU · tensorflow · float32 · no oneDNN",
        "CPU · jax · float32",
        "CPU · torch · float32",
    ]
    on_gpu = list(configurations(["gpu"], ["tensorflow", "jax"]))
    assert {(c.precision, c.xla) for c in on_gpu if c.backend == "tensorflow"} == {
        (precision, xla) for precision in ("float32", "tf32", "bfloat16") for xla in (True, False)
    }
    assert [(c.precision, c.xla) for c in on_gpu if c.backend == "jax"] == [
        ("float32", None),
        ("tf32", None),
        ("bfloat16", None),
    ]
    both = [c.label for c in configurations(["cpu", "gpu"], ["tensorflow", "jax", "torch"])]
    assert len(both) == len(set(both)) == 4 + 6 + 3 + 3


def test_batch_sizes() -> None:
    recipe = RECIPES["animals"]
    assert compare._batch_sizes(recipe, ["cpu", "gpu"], None) == {"cpu": [8, 32, 128], "gpu": [8, 32, 128, 512]}
    assert compare._batch_sizes(recipe, ["cpu"], [64, 8, 64]) == {"cpu": [8, 64]}
    assert compare._batch_sizes(recipe.changed(batch_size=2), ["cpu"], None) == {"cpu": [1, 2, 8]}
    with pytest.raises(UsageError, match="at least 1"):
        compare._batch_sizes(recipe, ["cpu"], [0, 8])


def test_the_verdict_on_both_devices() -> None:
    rows = [
        row("cpu", 8, 60.0),
        row("cpu", 32, 50.0),
        row("cpu", 8, 20.0, onednn=False),
        row("cpu", 32, 25.0, onednn=False),
        row("gpu", 8, 30.0, xla=True),
        row("gpu", 32, 400.0, xla=True),
        row("gpu", 128, 1200.0, xla=True, bottleneck="input"),
        row("gpu", 128, 600.0, xla=False),
        failed("gpu", 512, "out of memory"),
    ]
    assert verdict(rows, 32, "") == [
        "An epoch of your data takes 1.7 min on the CPU: fastest with CPU · tensorflow · float32 · oneDNN, batch size 8"
        "; limited by compute.",
        "An epoch of your data takes 5.0 s on the GPU (NVIDIA H200): fastest with GPU · tensorflow · float32, "
        "batch size 128; limited by input.",
        "At their best settings the GPU is 20.0 times as fast as the CPU.",
        "At the recipe's batch size 32 it is 8.0 times as fast.",
        "The GPU wins from batch size 32 on.",
        "oneDNN makes TensorFlow on this CPU 3.00 times as fast.",
        "XLA makes TensorFlow on this GPU 2.00 times as fast.",
    ]


def test_the_verdict_on_a_cpu_alone_says_why_there_is_no_gpu() -> None:
    sentences = verdict([row("cpu", 32, 50.0), failed("cpu", 128, "left out")], 32, "No GPU: none was found.")
    assert len(sentences) == 2
    assert sentences[1] == "No GPU: none was found."


def test_the_verdict_where_all_failed() -> None:
    assert verdict([failed("cpu", 8, "it broke")], 8, "No GPU.") == [
        "Nothing could be measured: see the reasons above.",
        "No GPU.",
    ]
    assert verdict([], 8, "") == ["Nothing could be measured: see the reasons above."]


def test_the_verdict_without_the_recipes_batch_size() -> None:
    sentences = verdict([row("cpu", 8, 10.0), row("gpu", 128, 100.0)], 32, "")
    assert not any("recipe's batch size" in sentence for sentence in sentences)
    assert len(sentences) == 3  # and nothing of who wins where: no size was measured on both


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        ([20.0, 200.0, 900.0], "The GPU wins from the smallest batch size on (8)."),
        ([5.0, 200.0, 900.0], "The GPU wins from batch size 32 on."),
        ([50.0, 5.0, 900.0], "The GPU wins from batch size 128 on."),
        ([5.0, 5.0, 5.0], "The GPU does not win at any batch size that both were measured at."),
        ([50.0, 50.0, 5.0], "The GPU does not win at the largest batch sizes that both were measured at."),
    ],
)
def test_from_which_batch_size_on_the_gpu_wins(gpu: list[float], told: str) -> None:
    sizes = (8, 32, 128)
    rows = [row("cpu", size, 10.0) for size in sizes]
    rows += [row("gpu", size, rate) for size, rate in zip(sizes, gpu, strict=True)]
    rows += [row("gpu", size, 1.0, precision="tf32") for size in sizes]  # a slower setting hides nothing
    assert compare._crossover(rows) == told


def test_ratios_are_of_rows_that_agree_in_everything_else() -> None:
    rows = [
        row("cpu", 8, 30.0),
        row("cpu", 8, 10.0, onednn=False),
        row("cpu", 32, 40.0),
        row("cpu", 32, 20.0, onednn=False),
        row("cpu", 128, 500.0),  # with nothing to compare it to
        row("cpu", 64, 1.0, onednn=False),
        row("cpu", 8, 999.0, backend="jax"),
        row("cpu", 256, 80.0),
        row("cpu", 256, 20.0, onednn=False),
    ]
    ours = lambda r: r["backend"] == "tensorflow"  # noqa: E731
    assert compare._pair(rows, ours, "onednn") == 3.0  # of 2, 3 and 4
    assert compare._pair(rows[:1], ours, "onednn") is None
    assert compare._pair([], ours, "onednn") is None


@pytest.mark.parametrize(
    ("code", "said", "seconds", "told"),
    [
        (1, ["Trace", "a.b.Error: Backend 'jax' is not installed.\n", "\n"], 1.0, "Backend 'jax' is not installed."),
        (1, ["RuntimeError: jax sees no GPU"], 1.0, "jax sees no GPU"),
        (1, [], 1.0, "it said nothing"),
        (-9, [], 1.0, "killed for want of memory"),
        (-11, ["something"], 1.0, "killed by signal 11"),
        (0, [], 1.0, "a smaller batch size was out of memory"),
        (-9, [], compare.CHILD_LIMIT + 1, "ended after 900 s"),
    ],
)  # fmt: skip
def test_why_a_child_ended_early(code: int, said: list[str], seconds: float, told: str) -> None:
    assert compare._reason(code, said, seconds) == told


@pytest.mark.parametrize("rate", [0.123, 12.3, 123_456.7])
def test_the_table_fits_a_terminal(rate: float) -> None:
    rows = [row(device, size, rate * size) for device in ("cpu", "gpu") for size in (1, 32, 4096)]
    rows += [
        failed("gpu", 65_536, "out of memory: " + "x" * 180),
        row("gpu", 8, rate, xla=False, configuration="other"),
    ]
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.endswith("*") for line in lines) == 1
    assert lines.count("CPU · tensorflow · float32 · oneDNN") == 1
    assert problems(rows) == [f"GPU · tensorflow · float32, batch size 65536: out of memory: {'x' * 180}"]
    assert table([failed("cpu", 8, "it broke")]).splitlines()[-1].split()[0] == "8"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The arguments of the smallest comparison."""
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    return {
        "data": "digits",
        "recipe": RECIPES["quick"],
        "images": 1290,
        "source_name": "digits",
        "devices": ["cpu"],
        "backends": ["tensorflow"],
        "batch_sizes": [16],
        "repeats": 1,
        "budget": 0.05,
        "output": tmp_path / "out put",
    }


def test_a_comparison_is_measured_and_written(quick: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = compare.run(**quick)
    assert [r.get("problem") for r in found["rows"]] == [None, None]
    keys = {"what", "configuration", "measured_at", "commit", "environment", "device", "rows", "verdict"}
    assert found.keys() == keys
    output = quick["output"]
    assert json.loads((output / "compare.json").read_text()) == json.loads(json.dumps(found))
    assert (output / "compare.png").read_bytes().startswith(b"\x89PNG")
    with_onednn, without = found["rows"]
    assert (with_onednn["onednn"], without["onednn"]) == (True, False)
    for measured in found["rows"]:
        assert measured["finite"]
        assert measured["batch_size"] == 16
        assert measured["epoch_seconds"] == pytest.approx(1290 / measured["end_to_end"]["median"])
        assert 0 < measured["matmul_share"] < 1
        assert measured["train"]["n"] == 1
        assert measured["peak_memory"] > 1e8
    shown, text = capsys.readouterr().out, (output / "compare.txt").read_text()
    assert text.splitlines()[0] in shown
    assert "An epoch of your data takes" in shown
    assert max(map(len, table(found["rows"]).splitlines())) <= 100
    assert found["verdict"][-1].startswith("No GPU") or "gpu" in found["configuration"]


def test_a_backend_that_is_not_installed_is_a_row_with_its_reason(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "version = m.version\n"
        "def absent(name):\n"
        "    if name == 'jax': raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = absent\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hide))
    found = compare.run(**quick | {"backends": ["jax"], "batch_sizes": [8, 16]}, as_json=True)
    reason = "Backend 'jax' is not installed. Do: pip install 'resnetlab[jax]'."
    assert [(r["batch_size"], r["problem"]) for r in found["rows"]] == [(8, reason), (16, reason)]
    assert not (quick["output"] / "compare.png").exists()
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"][0].startswith("Nothing could be measured")
    assert reason in err


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "killed by signal 11"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "killed for want of memory"),
        ("raise RuntimeError('the card fell off [the bus]')", "the card fell off [the bus]"),
        ("import sys; sys.stdin.close(); import os; os._exit(3)", "it said nothing"),
    ],
)
def test_a_child_that_crashes_is_a_row_with_its_reason(
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    told: str,
) -> None:
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\nexec "{compare.sys.executable}" -c "{program}"\n')
    broken.chmod(0o755)
    monkeypatch.setattr(compare.sys, "executable", str(broken))
    found = compare.run(**quick)
    assert {r["problem"] for r in found["rows"]} == {told}
    assert told in capsys.readouterr().out


def test_the_parent_imports_no_backend_and_leaves_the_environment_alone(quick: dict[str, Any]) -> None:
    before = dict(os.environ)
    with pytest.raises(UsageError, match="Unknown backend"):
        compare.run(**quick | {"backends": ["numpy"]})
    with pytest.raises(UsageError, match="Unknown device"):
        compare.run(**quick | {"devices": ["tpu"]})
    assert dict(os.environ) == before
    assert environment.installed("tensorflow")
