"""A program for a child process: import a framework, query its build, and run a test on every device.

What is computed is a convolution, and a training step as `resnetlab train` compiles it: with XLA for TensorFlow on a
GPU and for JAX, eagerly for PyTorch. So a missing ptxas or libdevice, which compiled code needs, is found here.

A broken CUDA installation can crash or hang an interpreter, and so can PyTorch imported after TensorFlow:
each framework is asked in a process of its own. The answer is what `facts.Probe` holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from resnetlab.child_process import serve

RATE = 0.5  # of the training step


def _compute(
    answer: dict[str, Any],
    name: str,
    kind: str,
    convolve: Callable[[Any, Any], Any],
    train: Callable[[Any, Any], Any],
) -> None:
    """Run a convolution of small integers and a training step on one device, and record whether they are correct.

    Small integers are exact in float32, TF32 and bfloat16 alike, so the convolution is compared without a tolerance.
    `train` returns the kernel after one step of gradient descent at RATE on `_loss`.
    """
    import numpy as np

    image = np.float32(np.arange(8 * 8 * 3).reshape(1, 8, 8, 3) % 5 - 2)  # (batch, h, w, in)
    kernel = np.float32(np.arange(3 * 3 * 3 * 4).reshape(3, 3, 3, 4) % 3 - 1)  # (kh, kw, in, out)
    error = ""
    try:
        if not np.array_equal(convolve(image, kernel), _convolution(image, kernel)):
            error = "the convolution's result is wrong"
    except Exception as caught:
        error = _text(caught)
    if not error:
        kernel = kernel + np.float32(np.random.default_rng(0).normal(0, 0.1, kernel.shape))
        update = -RATE * _gradient(image.astype(np.float64), kernel.astype(np.float64))
        try:
            received = np.asarray(train(image, kernel), np.float64) - kernel
            if not np.abs(received - update).max() <= 0.05 * np.abs(update).max():  # TF32 and bfloat16 are within it
                error = "the training step's result is wrong"
        except Exception as caught:
            error = f"the training step: {_text(caught)}"
    answer["devices"].append({"name": name, "kind": kind, "computes": not error, "error": error})


def _convolution(image: Any, kernel: Any) -> Any:
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))  # (batch, h-2, w-2, in, kh, kw)
    return np.einsum("bhwiyx,yxio->bhwo", windows, kernel)


def _loss(image: Any, kernel: Any) -> float:
    """The mean of exp(y / 2 + y of the first channel / 4), where y is the batch-normalised convolution."""
    import numpy as np

    y = _convolution(image, kernel)
    y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
    return float(np.exp(y / 2 + y[..., :1] / 4).mean())


def _gradient(image: Any, kernel: Any) -> Any:
    """Gradient of `_loss` with respect to the kernel, by central differences."""
    import numpy as np

    gradient = np.zeros_like(kernel)
    for place in np.ndindex(kernel.shape):
        around = [kernel.copy(), kernel.copy()]
        for sign, changed in zip((1, -1), around, strict=True):
            changed[place] += sign * 1e-4
        gradient[place] = (_loss(image, around[0]) - _loss(image, around[1])) / 2e-4
    return gradient


def _tensorflow(answer: dict[str, Any]) -> None:
    tf: Any = importlib.import_module("tensorflow")
    build = tf.sysconfig.get_build_info()
    answer |= {
        "version": tf.__version__,
        "gpu_build": bool(build.get("is_cuda_build") or build.get("is_rocm_build")),
        "cuda": build.get("cuda_version", ""),
        "cudnn": build.get("cudnn_version", ""),
        "architectures": list(build.get("cuda_compute_capabilities", [])),
    }
    tf.config.set_soft_device_placement(False)
    for device in tf.config.list_logical_devices():

        def convolve(image: Any, kernel: Any, name: str = device.name) -> Any:
            with tf.device(name):
                return tf.nn.conv2d(tf.identity(image), tf.identity(kernel), 1, "VALID").numpy()

        def train(image: Any, kernel: Any, name: str = device.name, gpu: bool = device.device_type == "GPU") -> Any:
            with tf.device(name):
                variable, image = tf.Variable(kernel), tf.identity(image)
                scale, offset = tf.ones(kernel.shape[-1]), tf.zeros(kernel.shape[-1])

                @tf.function(jit_compile=gpu)
                def step() -> None:
                    with tf.GradientTape() as tape:
                        y = tf.nn.conv2d(image, variable, 1, "VALID")
                        y = tf.raw_ops.FusedBatchNormV3(
                            x=y, scale=scale, offset=offset, mean=[], variance=[], epsilon=1e-5
                        )[0]
                        loss = tf.reduce_mean(tf.exp(y / 2 + y[..., :1] / 4))
                    variable.assign_sub(RATE * tape.gradient(loss, variable))

                step()
                return variable.numpy()

        _compute(answer, device.name.split("device:")[-1], device.device_type, convolve, train)


def _jax(answer: dict[str, Any]) -> None:
    jax: Any = importlib.import_module("jax")
    answer |= {"version": jax.__version__, "gpu_build": False}
    for major in range(12, 30):  # the CUDA plugin is a package for each major version of CUDA
        with contextlib.suppress(ImportError):
            answer |= {
                "cuda": str(major),
                "gpu_build": bool(importlib.import_module(f"jax_cuda{major}_plugin")),
            }
            with contextlib.suppress(Exception):
                built: Any = importlib.import_module(f"jax_cuda{major}_plugin._versions")
                answer["cuda"] = _version(built.cuda_runtime_build_version(), 1000, 10)
                answer["cudnn"] = _version(built.cudnn_build_version(), 10000, 100)
    devices = list(jax.devices())
    with contextlib.suppress(RuntimeError):  # the CPU is not listed beside a GPU, and may be excluded by JAX_PLATFORMS
        devices += [cpu for cpu in jax.devices("cpu") if cpu not in devices]
    for device in devices:

        def convolve(image: Any, kernel: Any, device: Any = device) -> Any:
            image, kernel = jax.device_put(image, device), jax.device_put(kernel, device)
            return jax.lax.conv_general_dilated(
                image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        def train(image: Any, kernel: Any, device: Any = device) -> Any:
            image, kernel = jax.device_put(image, device), jax.device_put(kernel, device)

            def loss(kernel: Any) -> Any:
                y = jax.lax.conv_general_dilated(
                    image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                y = (y - y.mean((0, 1, 2))) * jax.lax.rsqrt(y.var((0, 1, 2)) + 1e-5)
                return jax.numpy.exp(y / 2 + y[..., :1] / 4).mean()

            return jax.jit(lambda kernel: kernel - RATE * jax.grad(loss)(kernel))(kernel)

        kind = "GPU" if device.platform in ("gpu", "cuda", "rocm") else device.platform.upper()
        _compute(answer, f"{kind}:{device.id}", kind, convolve, train)


def _torch(answer: dict[str, Any]) -> None:
    torch: Any = importlib.import_module("torch")
    answer |= {
        "version": torch.__version__,
        "gpu_build": bool(torch.version.cuda or torch.version.hip or torch.backends.mps.is_built()),
        "cuda": torch.version.cuda or "",
        "architectures": list(torch.cuda.get_arch_list()),
    }
    with contextlib.suppress(RuntimeError):  # raised where the library loaded is older than the one built against
        answer["cudnn"] = _version(torch.backends.cudnn.version() or 0, 10000, 100)
    devices = [("cpu", "CPU"), *((f"cuda:{i}", "GPU") for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append(("mps", "GPU"))
    for name, kind in devices:

        def convolve(image: Any, kernel: Any, name: str = name) -> Any:
            image = torch.from_numpy(image).permute(0, 3, 1, 2).to(name)
            kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1).to(name)
            return torch.nn.functional.conv2d(image, kernel).permute(0, 2, 3, 1).cpu().numpy()

        def train(image: Any, kernel: Any, name: str = name) -> Any:
            image = torch.from_numpy(image).permute(0, 3, 1, 2).to(name)
            kernel = torch.tensor(kernel).permute(3, 2, 0, 1).to(name).requires_grad_()
            y = torch.nn.functional.conv2d(image, kernel)
            y = torch.nn.functional.batch_norm(y, None, None, training=True, eps=1e-5)
            torch.exp(y / 2 + y[:, :1] / 4).mean().backward()
            with torch.no_grad():
                torch._foreach_add_([kernel], [kernel.grad], alpha=-RATE)
            return kernel.detach().permute(2, 3, 1, 0).cpu().numpy()

        _compute(answer, name, kind, convolve, train)


def _libraries(answer: dict[str, Any], sonames: list[str]) -> None:
    """Try to load each library with the system's loader: record its version, if known, or the error."""
    for soname in sonames:
        try:
            library = ctypes.CDLL(soname)
        except OSError as caught:
            answer[soname] = {"loads": False, "error": str(caught)}
            continue
        version, number = "", ctypes.c_int()
        with contextlib.suppress(AttributeError):
            if soname.startswith("libcudnn."):
                version = _version(library.cudnnGetVersion(), 10000, 100)
            elif soname.startswith("libnccl."):
                version = _version(library.ncclGetVersion(ctypes.byref(number)) or number.value, 10000, 100)
            elif soname.startswith("libcudart."):
                version = _version(library.cudaRuntimeGetVersion(ctypes.byref(number)) or number.value, 1000, 10)
        answer[soname] = {"loads": True, "version": version}


def _version(number: int, major: int, minor: int) -> str:
    """NVIDIA's versions as one number: CUDA 12090 is 12.9, cuDNN 91002 is 9.10 (the patch level left out)."""
    return f"{number // major}.{number % major // minor}" if number else ""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:600]}".removesuffix(": ")


def answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Probe one framework, or look for shared libraries."""
    found: dict[str, Any] = {}
    if "libraries" in request:
        _libraries(found, request["libraries"])
    else:
        found["devices"] = []
        try:
            {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[request["framework"]](found)
        except BaseException as caught:
            found["error"] = _text(caught)
    yield found


if __name__ == "__main__":
    serve(answer)
