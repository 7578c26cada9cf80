"""The operations on JAX."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from resnetlab import environment
from resnetlab.cluster import Cluster
from resnetlab.errors import ResnetlabError, first_informative_line

Tensor = Any

# XLA fuses the elementwise chains of a batch norm and of an update by itself.


def convolution(
    x: Tensor, kernel: Tensor, *, stride: int, groups: int, padded: bool = True, training: bool = False
) -> Tensor:
    """As in `tensorflow.py`."""
    half = int(kernel.shape[0]) // 2 if padded else 0
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(half, half), (half, half)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """As in `tensorflow.py`."""
    mean, variance = keras.ops.moments(keras.ops.cast(x, "float32"), axes=(0, 1, 2))
    return batch_norm_inference(x, gamma, beta, mean, variance, epsilon=epsilon), mean, variance


def batch_norm_inference(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
) -> Tensor:
    """As in `tensorflow.py`."""
    scale = gamma * jax.lax.rsqrt(variance + epsilon)
    y = keras.ops.cast(x, "float32") * scale + (beta - mean * scale)
    return keras.ops.cast(y, x.dtype)


def momentum_update(
    variable: Any, velocity: Any, gradient: Tensor, *, rate: Tensor, momentum: float, nesterov: bool
) -> bool:
    """As in `tensorflow.py`."""
    return False  # XLA fuses Keras's own update


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """As in `tensorflow.py`."""
    return keras.ops.max_pool(x, size, stride, "valid", data_format="channels_last")


def average_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """As in `tensorflow.py`."""
    return keras.ops.average_pool(x, size, stride, "same", data_format="channels_last")


def add_scaled(xs: Sequence[Tensor], ys: Sequence[keras.Variable], scale: float) -> list[Tensor]:
    """As in `tensorflow.py`."""
    return [x + scale * keras.ops.convert_to_tensor(y) for x, y in zip(xs, ys, strict=True)]


def sgd_update(*_: Any, **__: Any) -> bool:
    """As in `tensorflow.py`."""
    return False


adam_update = lamb_update = sgd_update


def update_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
    """As in `tensorflow.py`."""
    for average, value in zip(averages, values, strict=True):
        before = keras.ops.convert_to_tensor(average)
        average.assign(before + (keras.ops.convert_to_tensor(value) - before) * weight)


def constant(values: tuple[Any, ...] | float, dtype: str = "float32") -> Tensor:
    """As in `tensorflow.py`."""
    return keras.ops.convert_to_tensor(values, dtype)


def feed(example: Any) -> Callable[[Callable[[], Iterator[Any]]], Any]:
    """As in `tensorflow.py`."""
    return lambda make: make()


def set_kernel_layout(variable: keras.Variable) -> None:
    """As in `tensorflow.py`."""


def update_running_statistic(variable: keras.Variable, value: Tensor, momentum: float) -> None:
    """As in `tensorflow.py`."""
    variable.assign(keras.ops.convert_to_tensor(variable) * momentum + value * (1.0 - momentum))


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As in `tensorflow.py`."""
    return jax.grad(lambda value: function(value).sum())(x)


def gpus() -> list[str]:
    """As in `tensorflow.py`."""
    return [device.device_kind for device in jax.devices() if device.platform != "cpu"]


def device() -> str:
    """As in `tensorflow.py`."""
    return "cpu" if jax.devices()[0].platform == "cpu" else "gpu"


def compute_capability() -> tuple[int, int] | None:
    """As in `tensorflow.py`."""
    major, dot, minor = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if dot else None


def reset_gpu_memory_peak() -> None:
    """As in `tensorflow.py`: not on JAX."""


def gpu_memory_peak() -> int:
    """As in `tensorflow.py`."""
    return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def require_determinism() -> None:
    """As in `tensorflow.py`; raises RuntimeError where `environment.configure` was not asked for it."""
    if device() == "gpu" and environment.XLA_DETERMINISM not in os.environ.get("XLA_FLAGS", ""):
        raise RuntimeError(f"JAX has started without XLA_FLAGS={environment.XLA_DETERMINISM}")


def tf32_setting() -> Any:
    """As in `tensorflow.py`."""
    return jax.config.jax_default_matmul_precision


def set_tf32(setting: Any) -> None:
    """As in `tensorflow.py`."""
    jax.config.update("jax_default_matmul_precision", setting)


def allow_tf32(allowed: bool) -> None:
    """As in `tensorflow.py`."""
    set_tf32("tensorfloat32" if allowed else "float32")


def join(cluster: Cluster) -> None:
    """Connect to the other processes; once in a process, before anything is computed.

    Raises:
        ResnetlabError: they cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=30,
        )
    except RuntimeError as error:
        raise ResnetlabError(
            f"Process {cluster.process_id} of {cluster.num_processes} cannot reach the others at "
            f"{cluster.coordinator}: {first_informative_line(error)}."
        ) from error


def divide_cpu(devices: int) -> None:
    """As in `tensorflow.py`; `environment.configure` has done it."""


def distribute(devices: int | str) -> None:
    """As in `tensorflow.py`, those of all processes.

    Raises:
        ResnetlabError: there are not so many.
    """
    kind = jax.devices()[0].platform  # "cpu", "gpu" or "tpu"
    found = keras.distribution.list_devices(kind)
    wanted = len(found) if devices == "all" or jax.process_count() > 1 else int(devices)
    if wanted > len(found):
        raise ResnetlabError(f"Received devices={devices}, and JAX sees {len(found)} ({kind}).")
    chosen = keras.distribution.DataParallel(devices=found[:wanted], auto_shard_dataset=False)
    keras.distribution.set_distribution(chosen)


def end_distribution() -> None:
    """As in `tensorflow.py`."""
    keras.distribution.set_distribution(None)


def replicas() -> int:
    """As in `tensorflow.py`."""
    chosen = keras.distribution.distribution()
    return 1 if chosen is None else int(chosen.num_model_replicas)


def process() -> tuple[int, int]:
    """As in `tensorflow.py`."""
    return jax.process_index(), jax.process_count()


def gather(array: np.ndarray) -> np.ndarray:
    """As in `tensorflow.py`."""
    return np.asarray(multihost_utils.process_allgather(array)).reshape(-1, *array.shape)


@contextmanager
def one_device() -> Iterator[None]:
    """As in `tensorflow.py`."""
    chosen = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(chosen)


def mixing_groups() -> int:
    """As in `tensorflow.py`."""
    return 1


def sum_over_devices(gradients: Sequence[Tensor]) -> list[Tensor]:
    """As in `tensorflow.py`; JAX adds them up by itself."""
    return list(gradients)
