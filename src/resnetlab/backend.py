"""The only module that knows the backends: the operations that dominate training time, by the fastest kernels.

Keras 3 normalises batches by separate elementwise operations on every backend, updates weights one operation at a
time on TensorFlow, and on PyTorch copies every feature map to another layout and back. The functions here call
each backend's specialised kernels instead; no other code in this project branches on the backend.
All feature maps are (batch, height, width, channels).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import keras
import numpy as np

from resnetlab import environment
from resnetlab.cluster import Cluster
from resnetlab.errors import ResnetlabError, first_informative_line

NAME = keras.backend.backend()
Tensor = Any  # of whichever backend is active

if NAME == "tensorflow":
    import tensorflow as tf

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

elif NAME == "torch":
    import torch
    import torch.nn.functional as F

    torch.backends.cudnn.benchmark = True  # shapes are the same in every step: let cuDNN choose by measuring

    # A permuted view of a (batch, height, width, channels) tensor *is* PyTorch's channels_last: nothing is copied.

    def convolution(
        x: Tensor, kernel: Tensor, *, stride: int, groups: int, padded: bool = True, training: bool = False
    ) -> Tensor:
        """As on TensorFlow, above."""
        half = int(kernel.shape[0]) // 2 if padded else 0
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=stride, padding=half, groups=groups)
        return y.permute(0, 2, 3, 1)

    def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """As on TensorFlow, above."""
        count = x.numel() // x.shape[-1]
        if count == 1:  # which PyTorch refuses
            mean = x.reshape(-1)
            return (x - mean) * gamma * epsilon**-0.5 + beta, mean, torch.zeros_like(gamma)
        mean, variance = torch.zeros_like(gamma), torch.ones_like(gamma)
        # With momentum 1 the running statistics become the batch's own.
        y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, gamma, beta, training=True, momentum=1.0, eps=epsilon)
        return y.permute(0, 2, 3, 1), mean, variance * ((count - 1) / count)

    def batch_norm_inference(
        x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
    ) -> Tensor:
        """As on TensorFlow, above."""
        y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, gamma, beta, training=False, eps=epsilon)
        return y.permute(0, 2, 3, 1)

    def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
        """As on TensorFlow, above. Keras's own op makes the view contiguous NCHW, which slows down later ops."""
        return F.max_pool2d(x.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1)

    def average_pool(x: Tensor, size: int, stride: int) -> Tensor:
        """As on TensorFlow, above."""
        y = F.avg_pool2d(x.permute(0, 3, 1, 2), size, stride, ceil_mode=True, count_include_pad=False)
        return y.permute(0, 2, 3, 1)

    def momentum_update(
        variable: Any, velocity: Any, gradient: Tensor, *, rate: Tensor, momentum: float, nesterov: bool
    ) -> bool:
        """As on TensorFlow, above."""
        return False  # sgd_update does it for all variables at once

    def add_scaled(xs: Sequence[Tensor], ys: Sequence[keras.Variable], scale: float) -> list[Tensor]:
        """As on TensorFlow, above."""
        return list(torch._foreach_add(list(xs), _values(ys), alpha=scale))

    # A loop over 161 variables launches 1,600 tiny operations per step, so the _foreach_ functions are used on lists.
    # Learning rates stay tensors: reading one as a number would synchronise with the device.

    def _values(variables: Sequence[keras.Variable]) -> list[Tensor]:
        return [variable.value for variable in variables]

    def _subtract(variables: list[Tensor], steps: list[Tensor], rate: Tensor, fractions: Any) -> None:
        """variable -= rate * fraction * step."""
        steps = torch._foreach_mul(steps, keras.ops.convert_to_tensor(rate))
        if fractions is not None:
            torch._foreach_mul_(steps, fractions)
        torch._foreach_sub_(variables, steps)

    @torch.no_grad()
    def sgd_update(
        variables: Sequence[keras.Variable],
        velocities: Sequence[keras.Variable],
        gradients: Sequence[Tensor],
        *,
        rate: Tensor,
        fractions: Sequence[float] | None,
        momentum: float,
        nesterov: bool,
    ) -> bool:
        """As on TensorFlow, above."""
        weights, rate = _values(variables), keras.ops.convert_to_tensor(rate)
        if rate.device.type == "cpu" and fractions is None:  # as a number it saves passes over memory
            down = -float(rate)
            if momentum:
                slots = _values(velocities)
                torch._foreach_mul_(slots, momentum)
                torch._foreach_add_(slots, list(gradients), alpha=down)
                torch._foreach_add_(weights, slots, alpha=momentum if nesterov else 1.0)
            if nesterov or not momentum:
                torch._foreach_add_(weights, list(gradients), alpha=down)
            return True
        steps = torch._foreach_mul(list(gradients), rate)
        if fractions is not None:
            torch._foreach_mul_(steps, fractions)
        if momentum:
            slots = _values(velocities)
            torch._foreach_mul_(slots, momentum)
            torch._foreach_sub_(slots, steps)
            if nesterov:
                ahead = torch._foreach_mul(slots, momentum)
                torch._foreach_sub_(ahead, steps)
                torch._foreach_add_(weights, ahead)
            else:
                torch._foreach_add_(weights, slots)
        else:
            torch._foreach_sub_(weights, steps)
        return True

    def _move_moments(
        first: list[Tensor], second: list[Tensor], gradients: list[Tensor], betas: tuple[float, float]
    ) -> None:
        torch._foreach_lerp_(first, gradients, 1.0 - betas[0])
        torch._foreach_mul_(second, betas[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - betas[1])

    @torch.no_grad()
    def adam_update(
        variables: Sequence[keras.Variable],
        moments: tuple[Sequence[keras.Variable], Sequence[keras.Variable]],
        gradients: Sequence[Tensor],
        *,
        rate: Tensor,
        fractions: Sequence[float] | None,
        betas: tuple[float, float],
        step: Tensor,
        epsilon: float,
        decay: float,
        decays: Sequence[bool],
    ) -> bool:
        """As on TensorFlow, above. `decays` states which variables are decayed; `step` counts from 1."""
        weights, (first, second), rate = _values(variables), map(_values, moments), keras.ops.convert_to_tensor(rate)
        if decay and any(decays):
            chosen = [i for i, yes in enumerate(decays) if yes]
            some = [weights[i] for i in chosen]
            _subtract(some, list(some), rate * decay, fractions and [fractions[i] for i in chosen])
        _move_moments(first, second, list(gradients), betas)
        scale = torch.sqrt(1.0 - betas[1] ** step) / (1.0 - betas[0] ** step)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_add_(denominator, epsilon)
        _subtract(weights, torch._foreach_div(first, denominator), rate * scale, fractions)
        return True

    @torch.no_grad()
    def lamb_update(
        variables: Sequence[keras.Variable],
        moments: tuple[Sequence[keras.Variable], Sequence[keras.Variable]],
        gradients: Sequence[Tensor],
        *,
        rate: Tensor,
        fractions: Sequence[float] | None,
        betas: tuple[float, float],
        step: Tensor,
        epsilon: float,
        decay: float,
        decays: Sequence[bool],
    ) -> bool:
        """As on TensorFlow, above."""
        weights, (first, second) = _values(variables), map(_values, moments)
        _move_moments(first, second, list(gradients), betas)
        denominator = torch._foreach_sqrt(torch._foreach_div(second, 1.0 - betas[1] ** step))
        torch._foreach_add_(denominator, epsilon)
        updates = list(torch._foreach_div(torch._foreach_div(first, 1.0 - betas[0] ** step), denominator))
        chosen = [i for i, yes in enumerate(decays) if yes]
        if chosen:
            some, theirs = [weights[i] for i in chosen], [updates[i] for i in chosen]
            torch._foreach_add_(theirs, some, alpha=decay)
            norm, theirs_norm = (torch.stack(torch._foreach_norm(each)) for each in (some, theirs))
            ratio = norm / torch.clamp(theirs_norm, min=1e-12)
            ratio = torch.where((norm > 0) & (theirs_norm > 0), ratio, torch.ones_like(ratio))
            torch._foreach_mul_(theirs, list(ratio.unbind()))
        _subtract(weights, updates, rate, fractions)
        return True

    def update_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
        """As on TensorFlow, above."""
        with torch.no_grad():
            moving = [average.value for average in averages]
            differences = torch._foreach_sub([value.value for value in values], moving)
            torch._foreach_mul_(differences, weight)
            torch._foreach_add_(moving, differences)

    def constant(values: tuple[Any, ...] | float, dtype: str = "float32") -> Tensor:
        """As on TensorFlow, above."""
        return _constant(values, dtype, str(keras.src.backend.torch.core.get_device()))

    @lru_cache(maxsize=256)
    def _constant(values: tuple[Any, ...] | float, dtype: str, device: str) -> Tensor:
        return keras.ops.convert_to_tensor(np.array(values), dtype)

    def feed(example: Any) -> Callable[[Callable[[], Iterator[Any]]], Any]:
        """As on TensorFlow, above: from pinned memory, so that the copy does not wait for the previous step."""
        return lambda make: make() if _device_type() != "cuda" else _pinned(make())

    def _pinned(batches: Iterator[Any]) -> Iterator[Any]:
        def copy(array: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)).pin_memory().to("cuda", non_blocking=True)

        try:
            for batch in batches:
                yield keras.tree.map_structure(lambda x: None if x is None else copy(x), batch)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def set_kernel_layout(variable: keras.Variable) -> None:
        """As on TensorFlow, above: (out, k, k, in) in memory, which is channels_last of PyTorch's (out, in, k, k).

        In any other order each step copies every kernel twice, and its gradient once.
        """
        if len(variable.shape) == 4 and not variable.value.is_meta:
            variable.value.data = variable.value.data.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)

    def update_running_statistic(variable: keras.Variable, value: Tensor, momentum: float) -> None:
        """As on TensorFlow, above."""
        if keras.src.backend.common.stateless_scope.in_stateless_scope():
            variable.assign(keras.ops.convert_to_tensor(variable) * momentum + value * (1.0 - momentum))
        else:
            with torch.no_grad():
                variable.value.lerp_(value, 1.0 - momentum)

    def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """As on TensorFlow, above."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x).sum(), x)[0]

    def gpus() -> list[str]:
        """As on TensorFlow, above."""
        if kind := {"mps": "Apple GPU (MPS)", "xpu": "Intel GPU (XPU)"}.get(_device_type()):
            return [kind]
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

    def _device_type() -> str:
        """The type of the device that Keras uses: "cpu", "cuda", "mps" or "xpu"."""
        return str(keras.src.backend.torch.core.get_device()).partition(":")[0]

    def device() -> str:
        """As on TensorFlow, above."""
        return "cpu" if _device_type() == "cpu" else "gpu"

    def compute_capability() -> tuple[int, int] | None:
        """As on TensorFlow, above."""
        return torch.cuda.get_device_capability() if _device_type() == "cuda" else None

    def reset_gpu_memory_peak() -> None:
        """As on TensorFlow, above."""
        if _device_type() == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def gpu_memory_peak() -> int:
        """As on TensorFlow, above."""
        if _device_type() == "mps":  # MPS does not track the peak
            return int(torch.mps.driver_allocated_memory())
        return int((torch.xpu if _device_type() == "xpu" else torch.cuda).max_memory_allocated())

    def require_determinism() -> None:
        """As on TensorFlow, above."""
        torch.backends.cudnn.benchmark = False  # it may choose another kernel each time
        torch.use_deterministic_algorithms(True)

    def tf32_setting() -> Any:
        """As on TensorFlow, above."""
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def set_tf32(setting: Any) -> None:
        """As on TensorFlow, above."""
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = setting

    def allow_tf32(allowed: bool) -> None:
        """As on TensorFlow, above."""
        set_tf32((allowed, allowed))

elif NAME == "jax":
    import jax
    from jax.experimental import multihost_utils

    # XLA fuses the elementwise chains of a batch norm and of an update by itself.

    def convolution(
        x: Tensor, kernel: Tensor, *, stride: int, groups: int, padded: bool = True, training: bool = False
    ) -> Tensor:
        """As on TensorFlow, above."""
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
        return False  # XLA fuses Keras's own update

    def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
        """As on TensorFlow, above."""
        return keras.ops.max_pool(x, size, stride, "valid", data_format="channels_last")

    def average_pool(x: Tensor, size: int, stride: int) -> Tensor:
        """As on TensorFlow, above."""
        return keras.ops.average_pool(x, size, stride, "same", data_format="channels_last")

    def add_scaled(xs: Sequence[Tensor], ys: Sequence[keras.Variable], scale: float) -> list[Tensor]:
        """As on TensorFlow, above."""
        return [x + scale * keras.ops.convert_to_tensor(y) for x, y in zip(xs, ys, strict=True)]

    def sgd_update(*_: Any, **__: Any) -> bool:
        """As on TensorFlow, above."""
        return False

    adam_update = lamb_update = sgd_update

    def update_averages(averages: Sequence[keras.Variable], values: Sequence[keras.Variable], weight: Tensor) -> None:
        """As on TensorFlow, above."""
        for average, value in zip(averages, values, strict=True):
            before = keras.ops.convert_to_tensor(average)
            average.assign(before + (keras.ops.convert_to_tensor(value) - before) * weight)

    def constant(values: tuple[Any, ...] | float, dtype: str = "float32") -> Tensor:
        """As on TensorFlow, above."""
        return keras.ops.convert_to_tensor(values, dtype)

    def feed(example: Any) -> Callable[[Callable[[], Iterator[Any]]], Any]:
        """As on TensorFlow, above."""
        return lambda make: make()

    def set_kernel_layout(variable: keras.Variable) -> None:
        """As on TensorFlow, above."""

    def update_running_statistic(variable: keras.Variable, value: Tensor, momentum: float) -> None:
        """As on TensorFlow, above."""
        variable.assign(keras.ops.convert_to_tensor(variable) * momentum + value * (1.0 - momentum))

    def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """As on TensorFlow, above."""
        return jax.grad(lambda value: function(value).sum())(x)

    def gpus() -> list[str]:
        """As on TensorFlow, above."""
        return [device.device_kind for device in jax.devices() if device.platform != "cpu"]

    def device() -> str:
        """As on TensorFlow, above."""
        return "cpu" if jax.devices()[0].platform == "cpu" else "gpu"

    def compute_capability() -> tuple[int, int] | None:
        """As on TensorFlow, above."""
        major, dot, minor = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")
        return (int(major), int(minor)) if dot else None

    def reset_gpu_memory_peak() -> None:
        """As on TensorFlow, above: not on JAX."""

    def gpu_memory_peak() -> int:
        """As on TensorFlow, above."""
        return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))

    def require_determinism() -> None:
        """As on TensorFlow, above; raises RuntimeError where `environment.configure` was not asked for it."""
        if device() == "gpu" and environment.XLA_DETERMINISM not in os.environ.get("XLA_FLAGS", ""):
            raise RuntimeError(f"JAX has started without XLA_FLAGS={environment.XLA_DETERMINISM}")

    def tf32_setting() -> Any:
        """As on TensorFlow, above."""
        return jax.config.jax_default_matmul_precision

    def set_tf32(setting: Any) -> None:
        """As on TensorFlow, above."""
        jax.config.update("jax_default_matmul_precision", setting)

    def allow_tf32(allowed: bool) -> None:
        """As on TensorFlow, above."""
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
        """As on TensorFlow, above; `environment.configure` has done it."""

    def distribute(devices: int | str) -> None:
        """As on TensorFlow, above, those of all processes.

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
        """As on TensorFlow, above."""
        keras.distribution.set_distribution(None)

    def replicas() -> int:
        """As on TensorFlow, above."""
        chosen = keras.distribution.distribution()
        return 1 if chosen is None else int(chosen.num_model_replicas)

    def process() -> tuple[int, int]:
        """The number of this process, from 0, and how many there are."""
        return jax.process_index(), jax.process_count()

    def gather(array: np.ndarray) -> np.ndarray:
        """The arrays of all processes, in their order, along a new first axis; all must call it."""
        return np.asarray(multihost_utils.process_allgather(array)).reshape(-1, *array.shape)

    @contextmanager
    def one_device() -> Iterator[None]:
        """As on TensorFlow, above."""
        chosen = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(chosen)

else:
    raise ImportError(
        f"resnetlab runs on the Keras backends tensorflow, jax and torch; received KERAS_BACKEND={NAME!r}. "
        "Set KERAS_BACKEND before Keras is imported."
    )


if NAME != "tensorflow":

    def mixing_groups() -> int:
        """As on TensorFlow, above."""
        return 1

    def sum_over_devices(gradients: Sequence[Tensor]) -> list[Tensor]:
        """As on TensorFlow, above; JAX adds them up by itself."""
        return list(gradients)


if NAME != "jax":

    def process() -> tuple[int, int]:
        """As on JAX, above."""
        return 0, 1

    def gather(array: np.ndarray) -> np.ndarray:
        """As on JAX, above."""
        return array[None]


if NAME == "torch":

    def end_distribution() -> None:
        """As on TensorFlow, above."""

    def replicas() -> int:
        """As on TensorFlow, above."""
        return 1

    @contextmanager
    def one_device() -> Iterator[None]:
        """As on TensorFlow, above."""
        yield


def mirrored() -> bool:
    """Whether several devices share training by TensorFlow's `MirroredStrategy`.

    A step can then not be compiled by XLA, nor depend on a condition; and each device would predict the whole batch.
    """
    return NAME == "tensorflow" and replicas() > 1


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in full float32: on Ampere and newer GPUs all backends use TF32 by default.

    Needed wherever results are compared with a tolerance below 1e-3. Functions must also be traced inside the context,
    as XLA and JAX fix the precision at compile time.
    """
    before = tf32_setting()
    allow_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)
