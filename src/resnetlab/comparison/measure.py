"""Measure one configuration in a separate process, the child of `compare.py` (which does not import Keras).

"train" repeats one batch, "end_to_end" uses the training stream.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from resnetlab import environment
from resnetlab.child_process import serve
from resnetlab.comparison.timing import FitTimer, interleave, steps_to_time
from resnetlab.errors import first_informative_line, is_out_of_memory
from resnetlab.recipes import Recipe
from resnetlab.results import Timing

MATMUL_SIDE = {"cpu": 2048, "gpu": 8192}
SLOWEST_STEP = 6.0  # seconds: batch sizes whose steps would take longer are skipped
MAX_STEPS = 400  # of one measurement on a CPU


def measure(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The device, then a row for each batch size, as soon as it is known."""
    began = time.perf_counter()
    environment.start(backend=job["backend"], device=job["device"])
    from resnetlab import backend

    imported = time.perf_counter() - began
    if job["device"] == "gpu" and not backend.gpus():
        raise RuntimeError(f"{job['backend']} sees no GPU")
    if job["precision"] in ("float32", "tf32"):
        backend.allow_tf32(job["precision"] == "tf32")

    gpu = backend.gpus()[0] if job["device"] == "gpu" else None
    yield {
        "device": {
            "gpu": gpu,
            "import_seconds": imported,
            "matmul_gflops": matmul_gflops(job["device"], job["precision"]),
        }
    }
    if gpu:
        with suppress(ValueError):  # where the backend cannot
            backend.reset_gpu_memory_peak()
    step_seconds, previous = 0.0, 1
    for batch_size in job["batch_sizes"]:
        expected = step_seconds * batch_size / previous
        if expected > SLOWEST_STEP:
            yield {"batch_size": batch_size, "problem": f"left out: one step would take {expected:.0f} s"}
            continue
        try:
            row = _measure(job, batch_size)
        except Exception as error:
            full = is_out_of_memory(error)
            problem = ("out of memory: " if full else "") + first_informative_line(error)
            yield {"batch_size": batch_size, "problem": problem}
            if full:
                break  # larger ones will not fit either
            continue
        step_seconds, previous = batch_size / row["train"]["median"], batch_size
        peak = backend.gpu_memory_peak() if gpu else _resident_peak()
        yield {"batch_size": batch_size, "peak_memory": peak, **row}


def _resident_peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def repeat_batch(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


def _measure(job: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Time to the first step, and rates of training and inference, at one batch size."""
    import numpy as np

    from resnetlab import backend
    from resnetlab.data.pack import prepare_pack
    from resnetlab.data.sources import resolve
    from resnetlab.data.stream import as_item
    from resnetlab.evaluation.logits import centre_crop
    from resnetlab.models.from_recipe import build_network
    from resnetlab.training.build import first_step_of_all, make_stream, make_trainer

    precision = job["precision"] if job["precision"] in ("bfloat16", "float16") else "float32"
    recipe = Recipe(**job["recipe"]).changed(batch_size=batch_size, accumulate=1, precision=precision, progressive=())
    packed = prepare_pack(resolve(job["data"]), recipe, allow_losses=True)
    stream = make_stream(recipe, packed)
    began = time.perf_counter()
    network = build_network(recipe, len(packed.class_names))
    xla = job["xla"] if job["xla"] is not None else "auto"
    trainer = make_trainer(network, recipe, stream, step=first_step_of_all(recipe, stream), jit_compile=xla)
    build = time.perf_counter() - began

    item = as_item(stream.batch(0))
    same = partial(repeat_batch, item)
    network.jit_compile = trainer.jit_compile
    timer = FitTimer(trainer, job["device"], backend.feed(item))  # as in training
    first = timer.call(same(), 1).seconds
    timer.call(same(), 1)  # TensorFlow's second step still includes one-time work
    if job["device"] == "gpu":
        steps = steps_to_time(lambda count: timer.call(same(), count).seconds, job["budget"])
        step = timer.steps(same, steps).seconds / steps
    else:
        step = timer.steps(same, 1).seconds
        steps = int(min(max(job["budget"] / step, 1), MAX_STEPS))
    repeats = job["repeats"] if step < job["budget"] else min(job["repeats"], 2)  # slow steps: two rounds are enough

    def rate(make: Callable[[], Iterator[Any]]) -> float:
        return steps * batch_size / timer.steps(make, steps).seconds

    feeds: dict[str, Callable[[], Iterator[Any]]] = {"train": same, "end_to_end": partial(stream.batches, 0)}
    rates = interleave({kind: partial(rate, make) for kind, make in feeds.items()}, repeats)
    images = centre_crop(item[0]["image"], recipe.image_size)
    inference = _rates(lambda: network.predict_on_batch(images), batch_size, job)
    began = time.perf_counter()
    count = sum(1 for _ in islice(stream.batches(0), 1 + min(steps * 4, MAX_STEPS)))
    loader = count * batch_size / (time.perf_counter() - began)
    return {
        "build_seconds": build,
        "first_step_seconds": first,
        "compile_seconds": max(first - step, 0.0),
        **{kind: Timing.of(found).to_json() for kind, found in rates.items()},
        "inference": inference.to_json(),
        "loader": loader,
        "image_size": recipe.image_size,
        "steps": steps,
        "finite": bool(np.isfinite(trainer.get_metrics_result()["loss"])),
    }


def _rates(call: Callable[[], Any], batch_size: int, job: dict[str, Any]) -> Timing:
    """Throughput, in images/s, of a synchronous `call` that processes `batch_size` images."""
    call()
    began = time.perf_counter()
    call()
    calls = int(min(max(job["budget"] / 2 / max(time.perf_counter() - began, 1e-6), 2), MAX_STEPS))
    rates = []
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        rates.append(calls * batch_size / (time.perf_counter() - began))
    return Timing.of(rates)


def matmul_gflops(device: str, precision: str) -> float:
    """Rate of square matrix products in a precision, in GFLOP/s: best of 6 runs, on a GPU of 20 products each."""
    import numpy as np
    from keras import ops

    side = MATMUL_SIDE[device]
    dtype = precision if precision in ("bfloat16", "float16") else "float32"
    a = ops.cast(np.random.default_rng(0).standard_normal((side, side), np.float32), dtype)
    best, products = float("inf"), 20 if device == "gpu" else 1
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(products):
            product = ops.matmul(a, a)
        ops.convert_to_numpy(ops.cast(product[0, 0], "float32"))  # NumPy has no bfloat16
        best = min(best, time.perf_counter() - began)
    return 2 * products * side**3 / best / 1e9


if __name__ == "__main__":
    serve(measure)
