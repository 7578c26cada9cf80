"""Several devices and several processes: the same run as on one device."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab.cluster import FIRST_PORT, Cluster
from resnetlab.environment import installed
from resnetlab.errors import UsageError
from resnetlab.training.build import make_stream
from tests.training.test_trainer import BASE, EVERYTHING, FAST, digits
from tests.workers import ENVIRONMENT, ROOT

needs_jax = pytest.mark.skipif(not installed("jax"), reason="several devices need JAX: make test EXTRAS=jax")
# 1,290 training images: epochs of 20 steps; 171 for validation, which neither 2 nor 4 divide. The rate is small, as
# rounding errors grow with it.
OPTIONS = ["--batch-size", "64", "--epochs", "3", "--learning-rate", "0.01", "--set", "early_stopping=0"]


@pytest.mark.parametrize("recipe", [BASE, EVERYTHING, FAST], ids=["base", "everything", "fast"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_rows_of_all_processes_are_the_batch(recipe: Any, count: int) -> None:
    stream = make_stream(recipe, digits())
    for step in (0, 5):
        whole = stream.batch(step)
        parts = [make_part(stream, number, count).batch(step) for number in range(count)]
        for name, values in whole[0].items():
            np.testing.assert_array_equal(np.concatenate([part[0][name] for part in parts]), values)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), whole[1])
        assert (whole[2] is None) == (parts[0][2] is None)


def make_part(stream: Any, number: int, count: int) -> Any:
    from dataclasses import replace

    return replace(stream, process=(number, count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost", 2, 0), "expected HOST:PORT"),
        ((":80", 2, 0), "expected HOST:PORT"),
        (("localhost:x", 2, 0), "expected HOST:PORT"),
        (("localhost:99999", 2, 0), "expected HOST:PORT"),
        (("localhost:80", 1, 0), "expected at least 2"),
        (("localhost:80", 2, 2), "expected 0 to 1"),
        (("localhost:80", 2, -1), "expected 0 to 1"),
        (("localhost:80", 2, None), "need all of"),
        ((None, None, 0), "need all of"),
    ],
)
def test_a_cluster_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cluster.of(*arguments)


def test_no_cluster_and_one() -> None:
    assert Cluster.of(None, None, None) is None
    assert Cluster.of("[::1]:80", 2, 1) == Cluster("[::1]:80", 2, 1)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[007-015,020],n1", "gpu007"), ("gpu[3,5]", "gpu3"), ("a-b[1-2]", "a-b1")],
)
def test_the_cluster_of_slurm(nodes: str, host: str) -> None:
    """As JAX, which reads the same variables, understands them."""
    variables = {"SLURM_JOB_ID": "81920", "SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}
    assert Cluster.from_environment(variables) == Cluster(f"{host}:61440", 4, 2)


def test_the_cluster_of_cloud_tpu_and_none() -> None:
    variables = {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2", "TPU_WORKER_ID": "1"}
    assert Cluster.from_environment(variables) == Cluster("10.0.0.1:61440", 2, 1)
    with pytest.raises(UsageError, match="describes no cluster"):
        Cluster.from_environment({"SLURM_JOB_ID": "1"})
    with pytest.raises(UsageError, match="need all of"):
        Cluster.of("auto", 2, None)


def start(
    folder: Path, *arguments: str, backend: str = "jax", cwd: Path = ROOT, variables: Mapping[str, str] = {}
) -> subprocess.Popen[str]:
    program = ["train", "--backend", backend, "--device", "cpu", *arguments]
    code = f"import sys; sys.argv[1:] = {program!r}; from resnetlab.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"RESNETLAB_CACHE": str(folder / "cache")} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )


def together(folder: Path, count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """The processes of a cluster on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = ("--coordinator", address, "--num-processes", str(count))
    return [start(folder, *arguments, *shared, "--process-id", str(number)) for number in range(count)]


def by_slurm(folder: Path, count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """The processes of a cluster on this machine, each with the variables that srun would set."""
    for job in range(1, 4096):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", FIRST_PORT + job))
            break
    shared = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(count)}
    return [
        start(folder, *arguments, "--coordinator", "auto", variables=shared | {"SLURM_PROCID": str(number)})
        for number in range(count)
    ]


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(texts)
    return texts


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_alone(tmp_path_factory.mktemp("alone"), "jax")


def run_alone(folder: Path, backend: str) -> Path:
    finish(start(folder, "digits", "--run", str(folder / "alone"), *OPTIONS, backend=backend))
    return folder / "alone"


def assert_same(run: Path, other: Path) -> None:
    assert history(run)[-1]["step"] >= 50
    for one, many in zip(history(run), history(other), strict=True):
        assert one["step"] == many["step"]
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert many["val_loss"] == pytest.approx(one["val_loss"], rel=1e-4)
        assert many["val_top1"] == one["val_top1"]


@pytest.mark.parametrize(
    ("backend", "count"),
    [
        pytest.param("tensorflow", "2", marks=pytest.mark.benchmark),
        pytest.param("jax", "2", marks=[needs_jax, pytest.mark.benchmark]),
        pytest.param("jax", "8", marks=[needs_jax, pytest.mark.benchmark]),
    ],
)
@pytest.mark.long
def test_several_devices_give_the_run_of_one(request: Any, tmp_path: Path, backend: str, count: str) -> None:
    """The run is stopped in between, and resumed."""
    alone = request.getfixturevalue("alone") if backend == "jax" else run_alone(tmp_path, backend)
    run = tmp_path / "run"
    process = start(tmp_path, "digits", "--run", str(run), "--devices", count, *OPTIONS, backend=backend)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(history(run)) == 1, process)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"{count} devices" in told
    finish(start(tmp_path, "--resume", str(run), "--devices", count, backend=backend))
    assert_same(alone, run)
    assert json.loads((run / "run.json").read_text())["devices"] == int(count)


@needs_jax
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.benchmark)])
@pytest.mark.long
def test_several_processes_give_the_run_of_one(alone: Path, tmp_path: Path, count: int) -> None:
    run = tmp_path / "run"
    told = finish(*together(tmp_path, count, "digits", "--run", str(run), *OPTIONS))
    assert "epoch 3/3" in told[0]
    assert all("epoch" not in text for text in told[1:])
    assert_same(alone, run)
    assert {path.name for path in run.iterdir()} == {path.name for path in alone.iterdir()}


@needs_jax
@pytest.mark.long
@pytest.mark.benchmark
def test_where_one_process_is_killed_the_others_stop_and_the_run_can_be_resumed(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*OPTIONS, "--checkpoint-every", "10"]
    first, second = together(tmp_path, 2, "digits", "--run", str(run), *options)
    wait_for(lambda: any((run / "checkpoints").glob("step-*[1-9]*.npz")), first)
    second.kill()
    second.communicate()
    began = time.monotonic()
    text, _ = first.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert first.returncode == 1
    assert "Process 0 of 2 stops, as another one has ended" in text
    assert "Traceback" not in text
    finish(*together(tmp_path, 2, "--resume", str(run)))
    assert_same(alone, run)


@needs_jax
@pytest.mark.long
def test_ctrl_c_at_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = by_slurm(tmp_path, 2, "digits", "--run", str(run), *OPTIONS, "--epochs", "1000")
    wait_for((run / "metrics.jsonl").exists, first)
    os.kill(second.pid, signal.SIGINT)
    texts = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [130, 130], texts
    assert "Stopped at step" in texts[0]


def wait_for(happened: Any, process: subprocess.Popen[str], seconds: float = 240) -> None:
    began = time.monotonic()
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


@needs_jax
def test_what_cannot_be_shared_is_told(tmp_path: Path) -> None:
    process = start(tmp_path, "digits", "--run", str(tmp_path / "run"), "--devices", "3", "--batch-size", "64")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Received batch_size=64 for 3 devices, expected a multiple" in text.replace("\n", " ")
    assert not (tmp_path / "run").exists()
    process = start(tmp_path, "digits", "--devices", "2", backend="torch", cwd=tmp_path)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "need the backend jax or tensorflow" in text.replace("\n", " ")
    named = ("--devices", "2", "--weights", "resnet18.pth")
    process = start(tmp_path, "digits", *named, backend="jax", cwd=tmp_path)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Import resnet18.pth first: `resnetlab import resnet18.pth" in text.replace("\n", " ")
    divided = ("--devices", "2", "--accumulate", "2", "--batch-size", "64")
    process = start(tmp_path, "digits", *divided, backend="tensorflow", cwd=tmp_path)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "accumulate is not for several devices on TensorFlow" in text.replace("\n", " ")
