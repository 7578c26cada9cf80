"""The layers of a residual network that Keras lacks, or has in a slower form."""

from __future__ import annotations

import threading
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from resnetlab import backend
from resnetlab.models.variants import PREPROCESSING, WHITENED, Architecture

Shape = tuple[int | None, ...]
Tensor = Any


@keras.saving.register_keras_serializable("resnetlab")
class Normalize(keras.layers.Layer):
    """Normalises RGB values in 0-255 as the network was trained with, so that a saved model takes raw images.

    `preprocessing` names a row of `PREPROCESSING`; "caffe" also turns RGB to BGR (He 2015's released models).
    """

    def __init__(self, preprocessing: str = "imagenet", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preprocessing = preprocessing

    def call(self, x: Tensor) -> Tensor:
        mean, scale = PREPROCESSING[self.preprocessing]
        dtype = keras.backend.standardize_dtype(x.dtype)
        x = (x - backend.constant(mean, dtype)) / backend.constant(scale, dtype)
        return ops.flip(x, axis=-1) if self.preprocessing == "caffe" else x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"preprocessing": self.preprocessing}


@keras.saving.register_keras_serializable("resnetlab")
class HostNormal(keras.initializers.Initializer):
    """Normal samples generated on the host from (seed, layer name), so that they are equal on every backend.

    `std=None` is He initialisation with fan-out, which preserves the variance of the gradient from layer to layer
    (K. He et al. 2015, arXiv:1502.01852, equation 14).
    """

    def __init__(self, seed: int, name: str, std: float | None = None) -> None:
        self.seed, self.name, self.std = seed, name, std

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None, **_: Any) -> Tensor:
        std = self.std if self.std is not None else (2.0 / (shape[-1] * int(np.prod(shape[:-2])))) ** 0.5
        generator = np.random.Generator(np.random.Philox(key=[self.seed, zlib.crc32(self.name.encode())]))
        return ops.convert_to_tensor(generator.standard_normal(shape, np.float32) * np.float32(std), dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "name": self.name, "std": self.std}


@keras.saving.register_keras_serializable("resnetlab")
class Conv2D(keras.layers.Layer):
    """Convolution with "half" padding on both sides, as in the papers' code. The kernel is (k, k, in / groups, out)."""

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        self.groups, self.use_bias, self.seed = groups, use_bias, seed

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        if channels is None or channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"{self.name}: received {channels} input channels, {self.filters} filters and {self.groups} groups; "
                "expected both to be divisible by the groups."
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels // self.groups, self.filters),
            initializer=HostNormal(self.seed, self.name),
        )
        backend.set_kernel_layout(self.kernel)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros") if self.use_bias else None

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        kernel = ops.convert_to_tensor(self.kernel)
        y = backend.convolution(x, kernel, stride=self.strides, groups=self.groups, training=bool(training))
        return y if self.bias is None else y + self.bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        pad = 2 * (self.kernel_size // 2) - self.kernel_size
        return (batch, *(side and (side + pad) // self.strides + 1 for side in sides), self.filters)

    def get_config(self) -> dict[str, Any]:
        keys = ("filters", "kernel_size", "strides", "groups", "use_bias", "seed")
        return super().get_config() | {key: getattr(self, key) for key in keys}


@keras.saving.register_keras_serializable("resnetlab")
class PatchWhitening(keras.layers.Layer):
    """Principal components of 2x2 patches, of mean square 1: (h, w, 3) to (h - 1, w - 1, 24), each as + and -.

    The components are not trained: `training.whitening` computes them from training images. The bias is trained.
    At first they are an orthonormal basis of the patches.
    """

    def build(self, input_shape: Shape) -> None:
        self.components = self.add_weight(
            name="components",
            shape=(2, 2, input_shape[-1], WHITENED),
            initializer=_whitening_basis,
            trainable=False,
        )
        self.bias = self.add_weight(name="bias", shape=(WHITENED,), initializer="zeros")

    def call(self, x: Tensor) -> Tensor:
        kernel, bias = ops.convert_to_tensor(self.components), ops.convert_to_tensor(self.bias)
        return backend.convolution(x, kernel, stride=1, groups=1, padded=False) + bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        return (batch, *(side and side - 1 for side in sides), WHITENED)


def _whitening_basis(shape: tuple[int, ...], dtype: str | None = None, **_: Any) -> Tensor:
    basis = np.eye(WHITENED // 2, dtype=np.float32)
    return ops.convert_to_tensor(np.concatenate([basis, -basis], axis=1).reshape(shape), dtype)


@keras.saving.register_keras_serializable("resnetlab")
class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalisation over the last axis, computed by each backend's fused kernel.

    Weights, gradients and running statistics are those of `keras.layers.BatchNormalization`; momentum 0.9 suits runs
    of a few thousand steps, where the running statistics lag behind with Keras's 0.99.

    With `frozen_statistics`, training also normalises with the running statistics and does not update them, while gamma
    and beta are trained. `trainable=False` freezes all four.
    """

    def __init__(
        self, momentum: float = 0.9, epsilon: float = 1e-5, *, frozen_statistics: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        self.frozen_statistics = frozen_statistics

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        gamma, beta, moving_mean, moving_variance = (  # float32 under mixed precision too
            ops.convert_to_tensor(v, "float32") for v in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        if not training or not self.trainable or self.frozen_statistics:
            return backend.batch_norm_inference(inputs, gamma, beta, moving_mean, moving_variance, epsilon=self.epsilon)
        y, mean, variance = backend.batch_norm(inputs, gamma, beta, epsilon=self.epsilon)
        backend.update_running_statistic(self.moving_mean, mean, self.momentum)
        backend.update_running_statistic(self.moving_variance, variance, self.momentum)
        return y

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"frozen_statistics": self.frozen_statistics}


@keras.saving.register_keras_serializable("resnetlab")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """Keras's max-pooling with "valid" padding, by each backend's own kernel."""

    def call(self, inputs: Tensor) -> Tensor:
        return backend.max_pool(inputs, self.pool_size[0], self.strides[0])


@keras.saving.register_keras_serializable("resnetlab")
class AveragePooling2D(keras.layers.AveragePooling2D):
    """Keras's average-pooling with "same" padding, by each backend's own kernel."""

    def call(self, inputs: Tensor) -> Tensor:
        return backend.average_pool(inputs, self.pool_size[0], self.strides[0])


@keras.saving.register_keras_serializable("resnetlab")
class IdentityShortcut(keras.layers.Layer):
    """Shortcut A (He 2015, section 3.3): every second pixel at stride 2, and zeros for the added channels."""

    def __init__(self, filters: int, *, strides: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.strides = filters, strides

    def call(self, x: Tensor) -> Tensor:
        if self.strides > 1:  # a pool of one pixel: five times as fast as a strided slice on TensorFlow
            x = backend.average_pool(x, 1, self.strides)
        new = self.filters - x.shape[-1]
        return ops.pad(x, [(0, 0), (0, 0), (0, 0), (0, new)]) if new else x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        return (batch, *(side and -(-side // self.strides) for side in sides), self.filters)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable("resnetlab")
class StochasticDepth(keras.layers.Layer):
    """Drops whole residual branches, independently per sample, with probability `rate` (Huang 2016, arXiv:1603.09382).

    Branches that are kept are scaled by 1 / (1 - rate), so that nothing changes at inference. The layer samples its own
    masks unless they are supplied with each batch (`SupplyMasks`), as in `resnetlab train`, which makes them the same
    on every backend, with and without XLA.
    """

    def __init__(self, rate: float, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{self.name}: received rate={rate}, expected 0 <= rate < 1.")
        self.rate, self.seed = rate, seed
        self.generator = keras.random.SeedGenerator((seed + zlib.crc32(self.name.encode())) % 2**31)
        # By thread, as each device of TensorFlow's strategy has one: (batch,), 0 or 1 / (1 - rate), for the next call.
        self.supplied_masks: dict[int, Tensor] = {}

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if not training or self.rate == 0.0:
            return x
        if (mask := self.supplied_masks.pop(threading.get_ident(), None)) is not None:
            return x * ops.cast(ops.reshape(mask, (-1, 1, 1, 1)), x.dtype)
        draw = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.generator)
        return x * ops.cast(draw >= self.rate, x.dtype) / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


class SupplyMasks(keras.layers.Layer):
    """Returns its first input; in training, hands the columns of its second to the stochastic depth of `network`."""

    def __init__(self, network: keras.Model, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.stochastic_depth_layers = lambda: [layer for layer in network.layers if isinstance(layer, StochasticDepth)]

    def call(self, x: Tensor, masks: Tensor, training: bool | None = None) -> Tensor:
        if training:
            for i, layer in enumerate(self.stochastic_depth_layers()):
                layer.supplied_masks[threading.get_ident()] = masks[:, i]
        return x

    def compute_output_shape(self, x_shape: Shape, masks_shape: Shape) -> Shape:
        return x_shape


class KerasLayers:
    """Implements `resnet.Layers`: the Keras layers of a network of `arch`, with initial weights drawn from `seed`."""

    def __init__(self, arch: Architecture, stochastic_depth: float = 0.0, seed: int = 0) -> None:
        self.arch, self.stochastic_depth, self.seed = arch, stochastic_depth, seed

    def normalize(self, x: Tensor) -> Tensor:
        return Normalize(self.arch.preprocessing, dtype="float32", name="normalize")(x)  # bfloat16 rounds the means

    def conv(
        self, x: Tensor, filters: int, kernel: int, stride: int = 1, *, groups: int = 1, outer: bool = False, name: str
    ) -> Tensor:
        bias = self.arch.conv_bias == "all" or (outer and self.arch.conv_bias == "outer")
        return Conv2D(filters, kernel, strides=stride, groups=groups, use_bias=bias, seed=self.seed, name=name)(x)

    def norm(self, x: Tensor, *, zero_gamma: bool = False, name: str) -> Tensor:
        if not self.arch.batch_norm:
            return x
        gamma = "zeros" if zero_gamma else "ones"
        return BatchNorm(epsilon=self.arch.batch_norm_epsilon, gamma_initializer=gamma, name=name)(x)

    def relu(self, x: Tensor, *, name: str) -> Tensor:
        return keras.layers.ReLU(name=name)(x)

    def dense(self, x: Tensor, units: int, *, activation: str | None = None, name: str) -> Tensor:
        initializer = HostNormal(self.seed, name, std=0.01)  # Goyal 2017, section 5.1
        dtype = None if activation else "float32"  # logits are float32 under mixed precision too
        return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, dtype=dtype, name=name)(
            x
        )

    def whiten(self, x: Tensor, *, name: str) -> Tensor:
        return PatchWhitening(name=name)(x)

    def max_pool(self, x: Tensor, size: int, *, name: str) -> Tensor:
        if size % 2:
            x = keras.layers.ZeroPadding2D(size // 2, name=name.replace("pool", "pad"))(x)
        return MaxPooling2D(size, strides=2, name=name)(x)

    def average_pool(self, x: Tensor, *, name: str) -> Tensor:
        return AveragePooling2D(2, padding="same", name=name)(x)

    def global_pool(self, x: Tensor, *, keepdims: bool = False, name: str) -> Tensor:
        return keras.layers.GlobalAveragePooling2D(keepdims=keepdims, name=name)(x)

    def pad_channels(self, x: Tensor, filters: int, stride: int, *, name: str) -> Tensor:
        return IdentityShortcut(filters, strides=stride, name=name)(x)

    def drop_path(self, x: Tensor, depth: float, *, name: str) -> Tensor:
        rate = self.stochastic_depth * depth
        return StochasticDepth(rate, seed=self.seed, name=name)(x) if rate else x

    def add(self, x: Tensor, y: Tensor, *, name: str) -> Tensor:
        return keras.layers.Add(name=name)([x, y])

    def multiply(self, x: Tensor, y: Tensor, *, name: str) -> Tensor:
        return keras.layers.Multiply(name=name)([x, y])

    def end_point(self, x: Tensor, *, name: str) -> Tensor:
        return keras.layers.Identity(name=name)(x)
