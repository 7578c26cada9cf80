"""One configuration, measured in a process of its own: `python -m resnetlab.compare.measure`.

Reads a job (JSON) from stdin and writes lines of "@row {...}" to stdout, each as soon as it is known, so that what was
measured before a crash or a kill is not lost. The parent (`compare.py`) never imports Keras.

On a CPU a rate is read from the clock at the end of the first and of the last step. On a GPU, where that would keep
the device waiting, it is n - 1 steps over T(n) - T(1) for whole calls of `fit`: both ends wait for the device, and what
`fit` itself costs cancels. "Compute" feeds the same batch again and again, "end to end" feeds the training stream.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from resnetlab import environment
from resnetlab.recipes import Recipe
from resnetlab.results import Timing

MATMUL_SIDE = {"cpu": 2048, "gpu": 8192}
SLOWEST_STEP = 6.0  # seconds: a batch size at which one step would take longer is left out
MOST_STEPS = 400


def main() -> None:
    job = json.loads(sys.stdin.read())
    began = time.perf_counter()
    environment.start(backend=job["backend"], device=job["device"])
    from resnetlab import kernels

    imported = time.perf_counter() - began
    if job["device"] == "gpu" and not kernels.gpus():
        raise RuntimeError(f"{job['backend']} sees no GPU")
    if job["precision"] != "bfloat16":
        kernels.allow_tf32(job["precision"] == "tf32")

    gpu = kernels.gpus()[0] if job["device"] == "gpu" else None
    _emit(event="device", gpu=gpu, import_seconds=imported, matmul_gflops=_matmul_gflops(job))
    step_seconds, previous = 0.0, 1
    for batch_size in job["batch_sizes"]:
        expected = step_seconds * batch_size / previous
        if expected > SLOWEST_STEP:
            _emit(event="rate", batch_size=batch_size, problem=f"left out: one step would take {expected:.0f} s")
            continue
        try:
            row = _measure(job, batch_size)
        except Exception as error:
            message = str(error).strip() or type(error).__name__
            _emit(event="rate", batch_size=batch_size, problem=message.splitlines()[0][:200])
            if _out_of_memory(message):
                break  # larger ones will not fit either
            continue
        step_seconds, previous = batch_size / row["train"]["median"], batch_size
        row["peak_memory"] = (
            kernels.gpu_memory_peak() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        _emit(event="rate", batch_size=batch_size, **row)


def _measure(job: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Time to the first step, and rates of training and inference, at one batch size."""
    import keras
    import numpy as np

    from resnetlab.data.pack import pack_for
    from resnetlab.data.sources import resolve
    from resnetlab.evaluation.logits import centre_crop
    from resnetlab.training.fit import network_for, stream_for, trainer_for

    precision = "bfloat16" if job["precision"] == "bfloat16" else "float32"
    recipe = Recipe(**job["recipe"]).changed(batch_size=batch_size, precision=precision)
    packed = pack_for(resolve(job["data"]), recipe)
    stream = stream_for(recipe, packed)
    clock = time.perf_counter()
    network = network_for(recipe, len(packed.class_names))
    trainer = trainer_for(network, recipe, stream, jit_compile=job["xla"] if job["xla"] is not None else "auto")
    build = time.perf_counter() - clock

    inputs, targets, weights = stream.batch(0)
    batch = (inputs, targets) if weights is None else (inputs, targets, weights)

    clocked = job["device"] == "cpu"  # a clock that reads each step's end would keep a GPU waiting

    def fit(steps: int, batches: Iterator[Any]) -> tuple[float, float]:
        """Seconds in all, and (on a CPU) from the end of the first step to the end of the last."""
        ends: list[float] = []

        def read(batch: int, logs: Any = None) -> None:
            ends.append(time.perf_counter())

        callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=read)] if clocked else []
        began = time.perf_counter()
        trainer.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=callbacks)
        return time.perf_counter() - began, ends[-1] - ends[0] if ends else 0.0

    def same() -> Iterator[Any]:
        while True:
            yield batch

    first, _ = fit(1, same())
    warm, between = fit(2, same())
    step = between or warm / 2
    steps = int(min(max(job["budget"] / step, 1), MOST_STEPS))
    repeats = job["repeats"] if step < job["budget"] else min(job["repeats"], 2)  # slow steps: two turns are enough

    rates: dict[str, list[float]] = {"train": [], "end_to_end": []}
    for _ in range(repeats):  # in turn, so that the machine's drift hits both alike
        for kind, found in rates.items():
            batches = same() if kind == "train" else stream.batches(0)
            single = 0.0 if clocked else fit(1, batches)[0]
            whole, between = fit(steps + 1, batches)
            found.append(steps * batch_size / max(between if clocked else whole - single, 1e-9))
            batches.close()  # type: ignore[attr-defined]

    images = centre_crop(inputs["image"], recipe.image_size)
    inference = _rates(lambda: network.predict_on_batch(images), batch_size, job)
    began = time.perf_counter()
    count = sum(1 for _ in islice(stream.batches(0), 1 + min(steps * 4, MOST_STEPS)))
    loader = count * batch_size / (time.perf_counter() - began)
    return {
        "build_seconds": build,
        "first_step_seconds": first,
        "compile_seconds": max(first - step, 0.0),
        "train": Timing.of(rates["train"]).to_json(),
        "end_to_end": Timing.of(rates["end_to_end"]).to_json(),
        "inference": inference.to_json(),
        "loader": loader,
        "image_size": recipe.image_size,
        "steps": steps,
        "finite": bool(np.isfinite(trainer.get_metrics_result()["loss"])),
    }


def _rates(call: Callable[[], Any], batch_size: int, job: dict[str, Any]) -> Timing:
    """Images per second of a call that waits for its result."""
    call()
    began = time.perf_counter()
    call()
    calls = int(min(max(job["budget"] / 2 / max(time.perf_counter() - began, 1e-6), 2), MOST_STEPS))
    rates = []
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        rates.append(calls * batch_size / (time.perf_counter() - began))
    return Timing.of(rates)


def _matmul_gflops(job: dict[str, Any]) -> float:
    """The device's own rate of square matrix products, in this configuration's precision: the best of five."""
    import numpy as np
    from keras import ops

    side = MATMUL_SIDE[job["device"]]
    dtype = "bfloat16" if job["precision"] == "bfloat16" else "float32"
    a = ops.cast(np.random.default_rng(0).standard_normal((side, side), np.float32), dtype)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        ops.convert_to_numpy(ops.matmul(a, a)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9


def _out_of_memory(message: str) -> bool:
    return any(sign in message.lower() for sign in ("out of memory", "oom", "resource_exhausted", "alloc"))


def _emit(**row: Any) -> None:
    print("@row " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
