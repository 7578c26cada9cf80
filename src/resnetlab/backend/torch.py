"""The operations on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F

Tensor = Any

torch.backends.cudnn.benchmark = True  # shapes are the same in every step: let cuDNN choose by measuring

# A permuted view of a (batch, height, width, channels) tensor *is* PyTorch's channels_last: nothing is copied.


def convolution(
    x: Tensor, kernel: Tensor, *, stride: int, groups: int, padded: bool = True, training: bool = False
) -> Tensor:
    """As in `tensorflow.py`."""
    half = int(kernel.shape[0]) // 2 if padded else 0
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=stride, padding=half, groups=groups)
    return y.permute(0, 2, 3, 1)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """As in `tensorflow.py`."""
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
    """As in `tensorflow.py`."""
    y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, gamma, beta, training=False, eps=epsilon)
    return y.permute(0, 2, 3, 1)


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """As in `tensorflow.py`. Keras's own op makes the view contiguous NCHW, which slows down later ops."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1)


def average_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """As in `tensorflow.py`."""
    y = F.avg_pool2d(x.permute(0, 3, 1, 2), size, stride, ceil_mode=True, count_include_pad=False)
    return y.permute(0, 2, 3, 1)


def momentum_update(
    variable: Any, velocity: Any, gradient: Tensor, *, rate: Tensor, momentum: float, nesterov: bool
) -> bool:
    """As in `tensorflow.py`."""
    return False  # sgd_update does it for all variables at once


def add_scaled(xs: Sequence[Tensor], ys: Sequence[keras.Variable], scale: float) -> list[Tensor]:
    """As in `tensorflow.py`."""
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
    """As in `tensorflow.py`."""
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
    """As in `tensorflow.py`. `decays` states which variables are decayed; `step` counts from 1."""
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
    """As in `tensorflow.py`."""
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
    """As in `tensorflow.py`."""
    with torch.no_grad():
        moving = [average.value for average in averages]
        differences = torch._foreach_sub([value.value for value in values], moving)
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(moving, differences)


def constant(values: tuple[Any, ...] | float, dtype: str = "float32") -> Tensor:
    """As in `tensorflow.py`."""
    return _constant(values, dtype, str(keras.src.backend.torch.core.get_device()))


@lru_cache(maxsize=256)
def _constant(values: tuple[Any, ...] | float, dtype: str, device: str) -> Tensor:
    return keras.ops.convert_to_tensor(np.array(values), dtype)


def feed(example: Any) -> Callable[[Callable[[], Iterator[Any]]], Any]:
    """As in `tensorflow.py`: from pinned memory, so that the copy does not wait for the previous step."""
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
    """As in `tensorflow.py`: (out, k, k, in) in memory, which is channels_last of PyTorch's (out, in, k, k).

    In any other order each step copies every kernel twice, and its gradient once.
    """
    if len(variable.shape) == 4 and not variable.value.is_meta:
        variable.value.data = variable.value.data.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)


def update_running_statistic(variable: keras.Variable, value: Tensor, momentum: float) -> None:
    """As in `tensorflow.py`."""
    if keras.src.backend.common.stateless_scope.in_stateless_scope():
        variable.assign(keras.ops.convert_to_tensor(variable) * momentum + value * (1.0 - momentum))
    else:
        with torch.no_grad():
            variable.value.lerp_(value, 1.0 - momentum)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As in `tensorflow.py`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]


def gpus() -> list[str]:
    """As in `tensorflow.py`."""
    if kind := {"mps": "Apple GPU (MPS)", "xpu": "Intel GPU (XPU)"}.get(_device_type()):
        return [kind]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _device_type() -> str:
    """The type of the device that Keras uses: "cpu", "cuda", "mps" or "xpu"."""
    return str(keras.src.backend.torch.core.get_device()).partition(":")[0]


def device() -> str:
    """As in `tensorflow.py`."""
    return "cpu" if _device_type() == "cpu" else "gpu"


def compute_capability() -> tuple[int, int] | None:
    """As in `tensorflow.py`."""
    return torch.cuda.get_device_capability() if _device_type() == "cuda" else None


def reset_gpu_memory_peak() -> None:
    """As in `tensorflow.py`."""
    if _device_type() == "cuda":
        torch.cuda.reset_peak_memory_stats()


def gpu_memory_peak() -> int:
    """As in `tensorflow.py`."""
    if _device_type() == "mps":  # MPS does not track the peak
        return int(torch.mps.driver_allocated_memory())
    return int((torch.xpu if _device_type() == "xpu" else torch.cuda).max_memory_allocated())


def require_determinism() -> None:
    """As in `tensorflow.py`."""
    torch.backends.cudnn.benchmark = False  # it may choose another kernel each time
    torch.use_deterministic_algorithms(True)


def tf32_setting() -> Any:
    """As in `tensorflow.py`."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def set_tf32(setting: Any) -> None:
    """As in `tensorflow.py`."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = setting


def allow_tf32(allowed: bool) -> None:
    """As in `tensorflow.py`."""
    set_tf32((allowed, allowed))


def mixing_groups() -> int:
    """As in `tensorflow.py`."""
    return 1


def sum_over_devices(gradients: Sequence[Tensor]) -> list[Tensor]:
    """As in `tensorflow.py`; here there is one device."""
    return list(gradients)


def process() -> tuple[int, int]:
    """As in `tensorflow.py`."""
    return 0, 1


def gather(array: np.ndarray) -> np.ndarray:
    """As in `tensorflow.py`."""
    return array[None]


def end_distribution() -> None:
    """As in `tensorflow.py`."""


def replicas() -> int:
    """As in `tensorflow.py`."""
    return 1


@contextmanager
def one_device() -> Iterator[None]:
    """As in `tensorflow.py`."""
    yield
