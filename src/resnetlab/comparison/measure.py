"""One configuration, measured in a process of its own: `python -m resnetlab.comparison.measure`.

Reads a job (JSON) from stdin and writes lines of "@row {...}" to stdout, each as soon as it is known, so that what was
measured before a crash or a kill is not lost. The parent (`compare.py`) never imports Keras.

On a CPU a rate is read from the clock at the end of the first and of the last step. On a GPU, where reading the clock
at each step would keep the device waiting, the time of n steps is T(n + 1) - T(1), of whole calls of `fit`: both calls
end by waiting for the device, and what `fit` itself costs cancels but for its scatter, small against n steps
(`steps_to_time`).
"Compute" feeds the same batch again and again, "end to end" feeds the training stream.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from resnetlab import environment
from resnetlab.errors import first_informative_line, is_out_of_memory
from resnetlab.recipes import Recipe
from resnetlab.results import Timing

MATMUL_SIDE = {"cpu": 2048, "gpu": 8192}
SLOWEST_STEP = 6.0  # seconds: a batch size at which one step would take longer is left out
MOST_STEPS = 400  # of one measurement on a CPU
FEWEST_GPU_STEPS, MOST_GPU_STEPS = 50, 10_000
ATTEMPTS = 3  # at a difference of times that must be positive


def main() -> None:
    job = json.loads(sys.stdin.read())
    began = time.perf_counter()
    environment.start(backend=job["backend"], device=job["device"])
    from resnetlab import backend

    imported = time.perf_counter() - began
    if job["device"] == "gpu" and not backend.gpus():
        raise RuntimeError(f"{job['backend']} sees no GPU")
    if job["precision"] in ("float32", "tf32"):
        backend.allow_tf32(job["precision"] == "tf32")

    gpu = backend.gpus()[0] if job["device"] == "gpu" else None
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
            full = is_out_of_memory(error)
            problem = ("out of memory: " if full else "") + first_informative_line(error)
            _emit(event="rate", batch_size=batch_size, problem=problem)
            if full:
                break  # larger ones will not fit either
            continue
        step_seconds, previous = batch_size / row["train"]["median"], batch_size
        row["peak_memory"] = (
            backend.gpu_memory_peak() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        _emit(event="rate", batch_size=batch_size, **row)


def steps_to_time(seconds_of: Callable[[int], float], budget: float) -> int:
    """How many steps to time on a GPU: at least 50, and as many as fill `budget` seconds, but never twice its time.

    Args:
        seconds_of: the time of a whole call of so many steps.
        budget: seconds; long against the scatter of what a call itself costs.
    """
    step = max((seconds_of(3) - seconds_of(1)) / 2, 0.0)
    steps = 2
    while steps < MOST_GPU_STEPS:
        # The estimate is of steps that were timed already; where it is poor, the next one is of at most ten times more.
        wanted = min(max(budget / step, FEWEST_GPU_STEPS), 2 * budget / step) if step > 0 else MOST_GPU_STEPS
        following = int(min(max(wanted, 1), 10 * steps, MOST_GPU_STEPS))
        if following <= steps * 1.2:
            break
        steps = following
        step = max((seconds_of(steps + 1) - seconds_of(1)) / steps, 0.0)
    return max(steps, 1)


def seconds_per_step(seconds_of: Callable[[int], float], steps: int) -> float:
    """Seconds of one step, from calls of 1 and of `steps` + 1 steps. Raises RuntimeError where that is not positive."""
    for _ in range(ATTEMPTS):
        found = (seconds_of(steps + 1) - seconds_of(1)) / steps
        if found > 0:
            return found
    raise RuntimeError(f"could not be timed: {steps + 1} steps took no longer than one, {ATTEMPTS} times")


def _measure(job: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Time to the first step, and rates of training and inference, at one batch size."""
    import keras
    import numpy as np

    from resnetlab.data.pack import prepare_pack
    from resnetlab.data.sources import resolve
    from resnetlab.evaluation.logits import centre_crop
    from resnetlab.models.from_recipe import build_network
    from resnetlab.training.trainer import make_stream, make_trainer

    precision = job["precision"] if job["precision"] in ("bfloat16", "float16") else "float32"
    recipe = Recipe(**job["recipe"]).changed(batch_size=batch_size, precision=precision)
    packed = prepare_pack(resolve(job["data"]), recipe, allow_losses=True)
    stream = make_stream(recipe, packed)
    clock = time.perf_counter()
    network = build_network(recipe, len(packed.class_names))
    trainer = make_trainer(network, recipe, stream, jit_compile=job["xla"] if job["xla"] is not None else "auto")
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

    def seconds_of(steps: int, make: Callable[[], Iterator[Any]] = same) -> float:
        batches = make()
        try:
            return fit(steps, batches)[0]
        finally:
            batches.close()  # type: ignore[attr-defined]

    first, _ = fit(1, same())
    warm, between = fit(2, same())
    if clocked:
        step = between or warm / 2
        steps = int(min(max(job["budget"] / step, 1), MOST_STEPS))
    else:
        steps = steps_to_time(seconds_of, job["budget"])
        step = seconds_per_step(seconds_of, steps)
    repeats = job["repeats"] if step < job["budget"] else min(job["repeats"], 2)  # slow steps: two turns are enough

    rates: dict[str, list[float]] = {"train": [], "end_to_end": []}
    for _ in range(repeats):  # in turn, so that the machine's drift hits both alike
        for kind, found in rates.items():
            make = same if kind == "train" else partial(stream.batches, 0)
            if clocked:
                batches = make()
                one = fit(steps + 1, batches)[1] / steps
                batches.close()  # type: ignore[attr-defined]
            else:
                one = seconds_per_step(partial(seconds_of, make=make), steps)
            found.append(batch_size / one)

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
    dtype = job["precision"] if job["precision"] in ("bfloat16", "float16") else "float32"
    a = ops.cast(np.random.default_rng(0).standard_normal((side, side), np.float32), dtype)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        ops.convert_to_numpy(ops.cast(ops.matmul(a, a)[0, 0], "float32"))  # NumPy has no bfloat16
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9


def _emit(**row: Any) -> None:
    print("@row " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
