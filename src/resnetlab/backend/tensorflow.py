"""The operations on TensorFlow. Their documentation applies to all backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnetlab.errors import ResnetlabError

Tensor = Any


def convolution(
    x: Tensor, kernel: Tensor, *, stride: int, groups: int, padded: bool = True, training: bool = False
) -> Tensor:
    """2-D convolution with "half" padding: kernel // 2 zeros on each side.

    Keras's "same" pads stride 2 on the bottom and right only; the papers' code, and its published weights, on
    both sides. `kernel` is (k, k, in / groups, out), the result (batch, ceil(h / stride), ceil(w / stride), out).
    Without padding, there is an output only where the whole kernel lies in the image. In `training` other kernels
    may be chosen, whose gradients are faster.
    """
    half = int(kernel.shape[0]) // 2 if padded else 0
    padding = "VALID" if half == 0 else "SAME"  # which is half padding at stride 1
    if half and stride > 1:
        # Not conv2d's explicit padding: its gradients do not use oneDNN, and take up to 15 times as long.
        x, padding = tf.pad(x, [(0, 0), (half, half), (half, half), (0, 0)]), "VALID"
    if groups > 1:  # TensorFlow has no gradient of a grouped convolution on the CPU: Keras compiles it with XLA
        return keras.ops.conv(x, kernel, strides=stride, padding=padding.lower(), data_format="channels_last")
    if training and not gpus():
        size = int(kernel.shape[0])
        if size == stride == 1:
            return _pointwise_convolution(x, kernel)
        margin = 2 * half if padding == "SAME" else 0
        if x.dtype == tf.bfloat16 and None not in x.shape[1:3]:
            height, width = ((side + margin - size) // stride + 1 for side in x.shape[1:3])
            if height * width <= 49:
                return _small_convolution(x, kernel, stride=stride, padding=padding)
    return tf.nn.conv2d(x, kernel, strides=stride, padding=padding)


def _pointwise_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product, whose gradients oneDNN computes faster on small feature maps."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    return tf.reshape(tf.matmul(rows, kernel[0, 0]), tf.concat([tf.shape(x)[:3], kernel.shape[3:]], axis=0))


def _small_convolution(x: Tensor, kernel: Tensor, *, stride: int, padding: str) -> Tensor:
    """A convolution whose kernel's gradient is one matrix product over all windows.

    oneDNN takes up to four times as long for it in bfloat16, on feature maps of 7x7 pixels and less.
    """
    size, _, channels, filters = kernel.shape

    @tf.custom_gradient
    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            dx = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x),
                filter=kernel,
                out_backprop=dy,
                strides=[1, stride, stride, 1],
                padding=padding,
            )
            half = size // 2 if padding == "SAME" else 0
            whole = tf.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
            height, width = (stride * (side - 1) + 1 for side in dy.shape[1:3])
            windows = [
                whole[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)
            ]
            rows = tf.reshape(tf.concat(windows, axis=-1), (-1, size * size * channels))
            return dx, tf.reshape(tf.matmul(rows, tf.reshape(dy, (-1, filters)), transpose_a=True), kernel.shape)

        return tf.nn.conv2d(x, kernel, strides=stride, padding=padding), gradient

    return convolve(x, kernel)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise with the batch's own statistics: (normalised, mean, biased variance), both (channels,) float32.

    Of several devices, with those of the whole batch.
    """
    here = tf.distribute.get_replica_context()
    if here is not None and here.num_replicas_in_sync > 1:
        return _shared_batch_norm(x, gamma, beta, epsilon, here)
    # The raw operation: tf.nn's wrapper raises epsilon to 1.001e-5, which an old cuDNN asked for.
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, exponential_avg_factor=1.0
    )
    count = tf.cast(tf.size(x) // tf.size(mean), tf.float32)  # the kernel's variance is the unbiased one
    return y, mean, variance * ((count - 1.0) / count)


def _shared_batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, here: tf.distribute.ReplicaContext
) -> tuple[Tensor, Tensor, Tensor]:
    values = tf.cast(x, tf.float32)
    mean = here.all_reduce(tf.distribute.ReduceOp.MEAN, tf.reduce_mean(values, (0, 1, 2)))
    squares = tf.reduce_mean(tf.math.squared_difference(values, mean), (0, 1, 2))
    variance = here.all_reduce(tf.distribute.ReduceOp.MEAN, squares)
    return tf.cast(tf.nn.batch_normalization(values, mean, variance, beta, gamma, epsilon), x.dtype), mean, variance


def batch_norm_inference(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
) -> Tensor:
    """Normalise with given statistics."""
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    )[0]


def momentum_update(
    variable: Any,
    velocity: Any,
    gradient: Tensor,
    *,
    rate: Tensor,
    momentum: float,
    nesterov: bool,
) -> bool:
    """Update velocity (momentum * velocity - rate * gradient) and weight in one pass over the memory.

    Returns whether it was done; if not, Keras's own update is as fast on this backend.
    """
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=velocity.value.handle,
        lr=tf.cast(rate, variable.dtype),
        grad=gradient,
        momentum=tf.cast(momentum, variable.dtype),
        use_nesterov=nesterov,
    )
    return True


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Maximum of each window that lies completely inside the image ("valid" padding)."""
    return tf.nn.max_pool2d(x, size, stride, "VALID")


def average_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Mean of each window ("same" padding); a window that extends beyond the image averages only pixels inside."""
    return tf.nn.avg_pool2d(x, size, stride, "SAME")


def add_scaled(xs: Sequence[Tensor], ys: Sequence[keras.Variable], scale: float) -> list[Tensor]:
    """x + scale * y, for each pair."""
    return [x + scale * y for x, y in zip(xs, ys, strict=True)]


def sgd_update(*_: Any, **__: Any) -> bool:
    """Update all variables at once where that is faster than one by one; returns whether it was done.

    Arguments of `sgd_update`, `adam_update` and `lamb_update`: lists of variables, of their slots and gradients;
    `rate`, the learning rate, and `fractions` of it for each variable (None: all 1); hyperparameters.
    """
    return False


adam_update = lamb_update = sgd_update


def update_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
    """average += (value - average) * weight, for each pair of variables."""
    for average, value in zip(averages, values, strict=True):
        average.assign_add((value - average) * tf.cast(weight, average.dtype))


def constant(values: tuple[Any, ...] | float, dtype: str = "float32") -> Tensor:
    """A constant tensor without cost per step: folded into the graph, or copied to the device once."""
    return tf.constant(values, dtype)


def feed(example: Any) -> Callable[[Callable[[], Iterator[Any]]], Any]:
    """A function from a maker of batches, like `example` but for the number of rows, to what `fit` reads.

    It serves many calls of `fit`, one after the other. For each plain iterator, Keras builds a `tf.data` graph, and
    TensorFlow never frees it, nor the batches that Keras has looked at. With several devices, the first of two
    iterators that are made is not used.
    """
    spec = keras.tree.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), example)
    current: list[Callable[[], Iterator[Any]]] = []
    # Without autotuning, for whose thread TensorFlow waits at the end of a pass: it wakes after up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_generator(lambda: current[0](), output_signature=spec)
    dataset = dataset.prefetch(2).with_options(options)

    def read(make: Callable[[], Iterator[Any]]) -> Any:
        current[:] = [make]
        return dataset

    return read


def set_kernel_layout(variable: keras.Variable) -> None:
    """Store a convolution kernel (k, k, in, out), or its optimizer slot, in the memory layout convolutions read."""


def update_running_statistic(variable: keras.Variable, value: Tensor, momentum: float) -> None:
    """variable = momentum * variable + (1 - momentum) * value."""
    variable.assign(variable * momentum + value * (1.0 - momentum))


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the sum of `function(x)` at x."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(function(x))
    return tape.gradient(total, x)


def gpus() -> list[str]:
    """Names of the GPUs that the backend sees."""
    devices = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(d).get("device_name", d.name) for d in devices]


def device() -> str:
    """The device that training runs on: "cpu" or "gpu"."""
    return "gpu" if gpus() else "cpu"


def compute_capability() -> tuple[int, int] | None:
    """Of the NVIDIA GPU that is used; None of another device, or where the backend does not tell."""
    for gpu in tf.config.list_physical_devices("GPU")[:1]:
        return tf.config.experimental.get_device_details(gpu).get("compute_capability")
    return None


def gpu_memory_peak() -> int:
    """Peak memory, in bytes, that this process has allocated on the first GPU since `reset_gpu_memory_peak`."""
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def reset_gpu_memory_peak() -> None:
    """Forget the peak so far; JAX has no such function."""
    tf.config.experimental.reset_memory_stats("GPU:0")


def require_determinism() -> None:
    """Use only kernels that give the same result each time, for the rest of the process."""
    tf.config.experimental.enable_op_determinism()


def tf32_setting() -> Any:
    """The backend's current TensorFloat-32 setting, for `set_tf32`."""
    return tf.config.experimental.tensor_float_32_execution_enabled()


def set_tf32(setting: Any) -> None:
    """Restore what `tf32_setting` returned."""
    tf.config.experimental.enable_tensor_float_32_execution(setting)


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid that GPUs round the operands of float32 products to TensorFloat-32."""
    set_tf32(allowed)


_distribution = ExitStack()  # the scope of the strategy in use


def divide_cpu(devices: int) -> None:
    """Make several devices of the CPU; before the backend has found its devices."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)


def distribute(devices: int | str) -> None:
    """Use several devices of this machine from now on: each has a part of every batch.

    Raises:
        ResnetlabError: there are not so many.
    """
    found = tf.config.list_logical_devices(device().upper())
    wanted = len(found) if devices == "all" else int(devices)
    if wanted > len(found):
        raise ResnetlabError(f"Received devices={devices}, and TensorFlow sees {len(found)} ({device()}).")
    end_distribution()
    if wanted > 1:
        strategy = tf.distribute.MirroredStrategy([each.name for each in found[:wanted]])
        _distribution.enter_context(strategy.scope())


def end_distribution() -> None:
    """Use one device from now on."""
    _distribution.close()


def replicas() -> int:
    """The number of devices that share each batch."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def mixing_groups() -> int:
    """How many groups of a batch's images can only be mixed among themselves, as they lie on other devices."""
    return replicas()


def sum_over_devices(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the whole batch, where each device has computed those of its part."""
    here = tf.distribute.get_replica_context()
    if here is None or here.num_replicas_in_sync == 1:
        return list(gradients)
    return list(here.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients)))


@contextmanager
def one_device() -> Iterator[None]:
    """Within the context, this process computes for itself, on its first device."""
    strategy = tf.distribute.get_strategy()
    several = replicas() > 1
    end_distribution()
    try:
        yield
    finally:
        if several:
            _distribution.enter_context(strategy.scope())


def process() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return 0, 1


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, in their order, along a new first axis; all must call it."""
    return array[None]
