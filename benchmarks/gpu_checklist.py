"""What must hold on a GPU, one line each: PASS, FAIL or SKIPPED, with the figure.

    python benchmarks/gpu_checklist.py                 all checks, about eight minutes; results in $OUT, or in results/
    python benchmarks/gpu_checklist.py --check oom     one check; may be repeated
    python benchmarks/gpu_checklist.py --smoke         on a CPU: what can be tried without a GPU, the rest is skipped

Each check is a process of its own, with a limit; the file is written after each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
from peers import SOURCE  # puts src/ on the path

from resnetlab import environment, results

LIMIT = 150.0  # seconds for one check
SMOKE = "--smoke" in sys.argv
DEVICE = "cpu" if SMOKE else "gpu"
BACKENDS = [name for name in environment.BACKENDS if environment.installed(name)]
Answer = tuple[bool | None, str]  # passed (None: skipped), and the figure


def _resnetlab(*arguments: str) -> str:
    command = [sys.executable, "-m", "resnetlab.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"resnetlab {arguments[0]}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    return done.stdout


def _trainer(backend: str, *, model: str = "resnet50", size: int = 64, batch: int = 32, **settings: Any) -> Any:
    """A trainer and an endless stream of one random batch for it."""
    environment.start(backend=backend, device=DEVICE)
    import numpy as np

    from resnetlab.data.stream import Stream
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import BASE
    from resnetlab.training.trainer import make_augmentation, make_trainer

    recipe = BASE.changed(model=model, image_size=size, batch_size=batch, validation=0.0, test=0.0)
    stream = Stream(
        images=np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8),
        labels=np.arange(batch) % 10,
        indices=np.arange(batch),
        batch_size=batch,
        num_classes=10,
        augmentation=make_augmentation(recipe),
    )
    return make_trainer(build_network(recipe, 10), recipe, stream, **settings), stream


def doctor() -> Answer:
    """The doctor's convolution and training step are right on each backend's device."""
    report = json.loads(_resnetlab("doctor", "--json"))
    right = [name for name in BACKENDS if DEVICE.upper() in report["runs_on"].get(name, ())]
    return right == BACKENDS, f"{', '.join(right) or 'none'} of {', '.join(BACKENDS)}"


def xla() -> Answer:
    """Five training steps of TensorFlow compiled by XLA."""
    if "tensorflow" not in BACKENDS:
        return None, "TensorFlow is not installed"
    trainer, stream = _trainer("tensorflow", model="resnet-tiny" if SMOKE else "resnet50", jit_compile=True)
    losses = [float(trainer.train_on_batch(*stream.batch(step)[:2], return_dict=True)["loss"]) for step in range(5)]
    return all(0 < loss < 100 for loss in losses), f"losses {losses[0]:.3f} to {losses[-1]:.3f}"


def compare() -> Answer:
    """`resnetlab compare digits` has rows of the device."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--devices", DEVICE, "--batch-sizes", "64", "--repeats", "1", "--budget", "0.3", "--output", folder]
        _resnetlab("compare", "digits", *options)
        rows = json.loads(Path(folder, "compare.json").read_text("utf-8"))["rows"]
    good = [row for row in rows if not row.get("problem") and row["device"] == DEVICE]
    return len(good) == len(rows) > 0, f"{len(good)} of {len(rows)} configurations measured"


def verification() -> Answer:
    """An export and an import are verified against their references."""
    with tempfile.TemporaryDirectory() as folder:
        _resnetlab("train", "digits", "--set", "epochs=1", "--run", f"{folder}/run")
        _resnetlab("export", f"{folder}/run", "--format", "onnx", "--output", f"{folder}/export")
        found = json.loads(Path(folder, "export", "export.json").read_text("utf-8"))["verified"]
        make = f"import keras; keras.applications.ResNet50(weights=None).save({f'{folder}/net.keras'!r})"
        subprocess.run([sys.executable, "-c", make], check=True, capture_output=True, timeout=LIMIT)
        _resnetlab("port", f"{folder}/net.keras", "--run", f"{folder}/imported")
        check = json.loads(Path(folder, "imported", "import.json").read_text("utf-8"))["check"]
    figure = f"export within {found['largest_difference']:.1e}, import within {check.get('difference', 1.0):.1e}"
    return check["against"] is not None, figure


def layouts() -> Answer:
    """A PyTorch training step of ResNet-50 has no kernel that converts between memory layouts."""
    if SMOKE or "torch" not in BACKENDS:
        return None, "needs PyTorch and a GPU"
    trainer, stream = _trainer("torch", batch=64)
    import torch

    for step in range(3):
        trainer.train_on_batch(*stream.batch(step)[:2])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        trainer.train_on_batch(*stream.batch(3)[:2])
    names = [event.key for event in profile.key_averages()]
    found = [
        name for name in names if any(word in name.lower() for word in ("nchwtonhwc", "nhwctonchw", "converttensor"))
    ]
    return (
        not found,
        f"{len(found)} of {len(names)} kernels: {', '.join(found)[:80]}" if found else f"0 of {len(names)} kernels",
    )


def timing() -> Answer:
    """The rate of `compare`'s method is within 5 % of 200 steps timed by hand; the smoke run only reports it."""
    from resnetlab.comparison.measure import seconds_per_step, steps_to_time

    trainer, stream = _trainer(BACKENDS[0], **({"model": "resnet-tiny", "size": 16} if SMOKE else {}))
    batch = stream.batch(0)[:2]

    def seconds_of(steps: int) -> float:
        began = time.perf_counter()
        trainer.fit((batch for _ in range(steps)), steps_per_epoch=steps, shuffle=False, verbose=0)
        return time.perf_counter() - began

    seconds_of(2)
    measured = sorted(seconds_per_step(seconds_of, steps_to_time(seconds_of, 2.0)) for _ in range(3))[1]
    by_hand = sorted((seconds_of(201) - seconds_of(1)) / 200 for _ in range(3))[1]
    return SMOKE or abs(measured / by_hand - 1) < 0.05, f"{measured / by_hand - 1:+.1%}"


def cpu() -> Answer:
    """`--device cpu` leaves the GPU empty."""
    if SMOKE:
        return None, "needs a GPU"
    import pynvml

    pynvml.nvmlInit()
    handle, seen = pynvml.nvmlDeviceGetHandleByIndex(0), 0
    command = [sys.executable, "-m", "resnetlab.cli", "train", "digits", "--set", "epochs=3", "--device", "cpu"]
    before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([*command, "--run", f"{folder}/run"], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            seen = max(seen, pynvml.nvmlDeviceGetMemoryInfo(handle).used - before)
            time.sleep(0.1)
    return process.returncode == 0 and seen < 2**20, f"{seen / 2**20:.0f} MiB taken at most"


def oom() -> Answer:
    """Running out of the GPU's memory is recognised on each backend."""
    if SMOKE:
        return None, "needs a GPU"
    from resnetlab.errors import first_informative_line, is_out_of_memory

    trainer, stream = _trainer(BACKENDS[-1], size=224, batch=8192)
    try:
        trainer.train_on_batch(*stream.batch(0)[:2])
    except Exception as error:
        return is_out_of_memory(error), first_informative_line(error)[:80]
    return False, "8,192 images of 224x224 fitted"


def two_gpus() -> Answer:
    """Of several visible GPUs one is used, and the run says that the others idle."""
    report = json.loads(_resnetlab("doctor", "--json"))
    count = len(report["facts"]["nvidia"]["gpus"])
    if count < 2:
        return None, f"{count} GPUs here"
    environment.configure(backend=BACKENDS[0])
    return len(environment.idle_gpus()) == count - 1, f"{len(environment.idle_gpus())} of {count} idle"


CHECKS: dict[str, Callable[[], Answer]] = {
    each.__name__: each for each in (doctor, xla, compare, verification, layouts, timing, cpu, oom, two_gpus)
}


def examine(name: str) -> dict[str, Any]:
    """Run one check in a process of its own."""
    command = [sys.executable, __file__, "--child", name, *(["--smoke"] if SMOKE else [])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    began = time.monotonic()
    try:
        done = processes.run(command, limit=LIMIT, env=environ)
        line = next((line for line in done.stdout.splitlines()[::-1] if line.startswith("@answer ")), "")
        passed, figure = json.loads(line.removeprefix("@answer ")) if line else (False, done.stderr.strip()[-200:])
    except subprocess.TimeoutExpired:
        passed, figure = False, f"not done within {LIMIT:.0f} s"
    status = "SKIPPED" if passed is None else "PASS" if passed else "FAIL"
    what = (CHECKS[name].__doc__ or "").strip()
    return {
        "check": name,
        "what": what,
        "status": status,
        "figure": figure,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="append", choices=list(CHECKS), help="default: all")
    parser.add_argument("--smoke", action="store_true", help="on a CPU")
    parser.add_argument("--out", type=Path, help="folder; default: $OUT, or results/")
    parser.add_argument("--child", choices=list(CHECKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        processes.end_with_parent()
        try:
            passed, figure = CHECKS[options.child]()
        except Exception as error:
            passed, figure = False, f"{type(error).__name__}: {error}"[:300]
        print("@answer " + json.dumps([passed, figure]), flush=True)
        return 0
    folder = options.out or Path(os.environ.get("OUT") or SOURCE.parent / "results")
    file = folder / ("gpu-checklist-smoke.json" if options.smoke else "gpu-checklist.json")
    rows: list[dict[str, Any]] = []
    for name in options.check or CHECKS:
        rows.append(examine(name))
        row = rows[-1]
        print(f"{row['status']:8} {row['check']:13} {row['figure']}  ({row['seconds']:.0f} s)", flush=True)
        results.write(file, results.result("GPU checklist", configuration={"smoke": options.smoke}, rows=rows))
    return 1 if any(row["status"] == "FAIL" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
