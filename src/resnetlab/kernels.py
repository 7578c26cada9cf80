"""The one file that knows the backends: each operation a residual network spends its time in, by the fastest kernel.

Keras 3 normalises batches by separate elementwise operations on every backend, updates weights one operation at a
time on TensorFlow, and on PyTorch copies every feature map to another layout and back. The functions here call what
each backend has for the purpose instead; nothing else in this project branches on the backend.
All feature maps are (batch, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

BACKEND = keras.backend.backend()
Tensor = Any  # of whichever backend is active

if BACKEND == "tensorflow":
    import tensorflow as tf

    def convolution(x: Tensor, kernel: Tensor, *, stride: int, groups: int) -> Tensor:
        """2-D convolution with "half" padding: kernel // 2 zeros on each side.

        Keras's "same" pads stride 2 on the bottom and right only; the papers' code, and its published weights, on
        both sides. `kernel` is (k, k, in / groups, out), the result (batch, ceil(h / stride), ceil(w / stride), out).
        """
        half = int(kernel.shape[0]) // 2
        padding = "VALID" if half == 0 else "SAME"  # which is half padding at stride 1
        if half and stride > 1:
            # Not conv2d's own explicit padding: its gradients leave oneDNN, and take up to 15 times as long.
            x, padding = tf.pad(x, [(0, 0), (half, half), (half, half), (0, 0)]), "VALID"
        if groups > 1:  # TensorFlow has no gradient of a grouped convolution on the CPU: Keras compiles it with XLA
            return keras.ops.conv(x, kernel, strides=stride, padding=padding.lower(), data_format="channels_last")
        return tf.nn.conv2d(x, kernel, strides=stride, padding=padding)

    def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise with the batch's own statistics: (normalised, mean, biased variance), both (channels,) float32."""
        # The raw operation: tf.nn's wrapper raises epsilon to 1.001e-5, which an old cuDNN asked for.
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, exponential_avg_factor=1.0
        )
        count = tf.cast(tf.size(x) // tf.size(mean), tf.float32)  # the kernel's variance is the unbiased one
        return y, mean, variance * ((count - 1.0) / count)

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
        """velocity = momentum * velocity - rate * gradient, and the weight follows it, in one pass over the memory.

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

    def scaled_add(x: Tensor, y: keras.Variable, scale: float) -> Tensor:
        """x + scale * y."""
        return x + scale * y

    def move_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
        """average += (value - average) * weight, for each pair of variables."""
        for average, value in zip(averages, values, strict=True):
            average.assign_add((value - average) * tf.cast(weight, average.dtype))

    def gpus() -> list[str]:
        """Names of the GPUs that the backend sees."""
        devices = tf.config.list_physical_devices("GPU")
        return [tf.config.experimental.get_device_details(d).get("device_name", d.name) for d in devices]

    def device() -> str:
        """Where training computes: "cpu" or "gpu"."""
        return "gpu" if gpus() else "cpu"

    def gpu_memory_peak() -> int:
        """Most bytes of the first GPU's memory that this process has held at once."""
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])

    def tf32_setting() -> Any:
        """The backend's own setting of what `allow_tf32` sets."""
        return tf.config.experimental.tensor_float_32_execution_enabled()

    def set_tf32(setting: Any) -> None:
        """Restore what `tf32_setting` returned."""
        tf.config.experimental.enable_tensor_float_32_execution(setting)

    def allow_tf32(allowed: bool) -> None:
        """Whether float32 products may be rounded to TensorFloat-32 on GPUs that have it."""
        set_tf32(allowed)

elif BACKEND == "torch":
    import torch
    import torch.nn.functional as F

    torch.backends.cudnn.benchmark = True  # shapes do not change from step to step: let cuDNN choose by trying

    # A permuted view of a (batch, height, width, channels) tensor *is* PyTorch's channels_last: nothing is copied.

    def convolution(x: Tensor, kernel: Tensor, *, stride: int, groups: int) -> Tensor:
        """As on TensorFlow, above."""
        half = int(kernel.shape[0]) // 2
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=stride, padding=half, groups=groups)
        return y.permute(0, 2, 3, 1)

    def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """As on TensorFlow, above."""
        mean, variance = torch.zeros_like(gamma), torch.ones_like(gamma)
        # With momentum 1 the running statistics become the batch's own.
        y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, gamma, beta, training=True, momentum=1.0, eps=epsilon)
        count = x.numel() // x.shape[-1]
        return y.permute(0, 2, 3, 1), mean, variance * ((count - 1) / count)

    def batch_norm_inference(
        x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
    ) -> Tensor:
        """As on TensorFlow, above."""
        y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, gamma, beta, training=False, eps=epsilon)
        return y.permute(0, 2, 3, 1)

    def momentum_update(
        variable: Any, velocity: Any, gradient: Tensor, *, rate: Tensor, momentum: float, nesterov: bool
    ) -> bool:
        """As on TensorFlow, above."""
        return False  # Keras calls PyTorch's fused updates

    def scaled_add(x: Tensor, y: keras.Variable, scale: float) -> Tensor:
        """As on TensorFlow, above."""
        return torch.add(x, y.value, alpha=scale)

    def move_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
        """As on TensorFlow, above."""
        with torch.no_grad():
            moving = [average.value for average in averages]
            differences = torch._foreach_sub([value.value for value in values], moving)
            torch._foreach_mul_(differences, weight)
            torch._foreach_add_(moving, differences)

    def gpus() -> list[str]:
        """As on TensorFlow, above."""
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

    def device() -> str:
        """As on TensorFlow, above."""
        return "cpu" if str(keras.ops.zeros(()).device) == "cpu" else "gpu"  # CUDA, MPS or XPU

    def gpu_memory_peak() -> int:
        """As on TensorFlow, above."""
        return int(torch.cuda.max_memory_allocated())

    def tf32_setting() -> Any:
        """As on TensorFlow, above."""
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def set_tf32(setting: Any) -> None:
        """As on TensorFlow, above."""
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = setting

    def allow_tf32(allowed: bool) -> None:
        """As on TensorFlow, above."""
        set_tf32((allowed, allowed))

elif BACKEND == "jax":
    import jax

    # XLA fuses the elementwise chains of a batch norm and of an update by itself.

    def convolution(x: Tensor, kernel: Tensor, *, stride: int, groups: int) -> Tensor:
        """As on TensorFlow, above."""
        half = int(kernel.shape[0]) // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=[(half, half), (half, half)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """As on TensorFlow, above."""
        mean, variance = keras.ops.moments(keras.ops.cast(x, "float32"), axes=(0, 1, 2))
        return batch_norm_inference(x, gamma, beta, mean, variance, epsilon=epsilon), mean, variance

    def batch_norm_inference(
        x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
    ) -> Tensor:
        """As on TensorFlow, above."""
        scale = gamma * jax.lax.rsqrt(variance + epsilon)
        y = keras.ops.cast(x, "float32") * scale + (beta - mean * scale)
        return keras.ops.cast(y, x.dtype)

    def momentum_update(
        variable: Any, velocity: Any, gradient: Tensor, *, rate: Tensor, momentum: float, nesterov: bool
    ) -> bool:
        """As on TensorFlow, above."""
        return False  # XLA fuses what Keras writes

    def scaled_add(x: Tensor, y: keras.Variable, scale: float) -> Tensor:
        """As on TensorFlow, above."""
        return x + scale * keras.ops.convert_to_tensor(y)

    def move_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
        """As on TensorFlow, above."""
        for average, value in zip(averages, values, strict=True):
            before = keras.ops.convert_to_tensor(average)
            average.assign(before + (keras.ops.convert_to_tensor(value) - before) * weight)

    def gpus() -> list[str]:
        """As on TensorFlow, above."""
        return [device.device_kind for device in jax.devices() if device.platform == "gpu"]

    def device() -> str:
        """As on TensorFlow, above."""
        return "cpu" if jax.devices()[0].platform == "cpu" else "gpu"

    def gpu_memory_peak() -> int:
        """As on TensorFlow, above."""
        return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])

    def tf32_setting() -> Any:
        """As on TensorFlow, above."""
        return jax.config.jax_default_matmul_precision

    def set_tf32(setting: Any) -> None:
        """As on TensorFlow, above."""
        jax.config.update("jax_default_matmul_precision", setting)

    def allow_tf32(allowed: bool) -> None:
        """As on TensorFlow, above."""
        set_tf32("tensorfloat32" if allowed else "float32")

else:
    raise ImportError(
        f"resnetlab runs on the Keras backends tensorflow, jax and torch; received KERAS_BACKEND={BACKEND!r}. "
        "Set KERAS_BACKEND before Keras is imported."
    )


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in float32: on Ampere GPUs and newer ones all backends round them to TF32 by default.

    For whatever is compared with a tolerance below 1e-3. What is to be computed so must be traced inside, too: XLA and
    JAX fix the precision when they compile.
    """
    before = tf32_setting()
    allow_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)
