"""The residual network: stem, blocks, stages, head. Every variant of `architectures.py` is built by this text.

    y = relu(F(x) + x)      He 2015, figure 2: convolution, batch norm, ReLU, ..., sum, ReLU
    y = F(x) + x            He 2016, figure 1b: batch norm, ReLU, convolution, ..., sum

Where the identity carries x from block to block unchanged, the gradient at any block is the gradient at the last one
plus a correction, so it does not vanish with depth (He 2016, equation 5).

Layers are named by where they stand: `stem_conv1`, `stage2_block1_conv2`, `stage2_block1_shortcut_conv`, `head_logits`.
The end points `stem`, `stage1`, `stage2`, ... are layers too: `model.get_layer("stage4").output`.
"""

from __future__ import annotations

from typing import Any

import keras

from resnetlab.errors import UsageError
from resnetlab.models.architectures import Architecture, Block, Conv, architecture
from resnetlab.models.layers import (
    BatchNorm,
    Conv2D,
    HostNormal,
    IdentityShortcut,
    Normalize,
    StochasticDepth,
)

Tensor = Any


def build(
    model: str | Architecture,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    stochastic_depth: float = 0.0,
    seed: int = 0,
) -> keras.Model:
    """Build a residual network as an ordinary `keras.Model`.

    Args:
        model: a name that `resnetlab models` lists, or an `Architecture` of your own.
        num_classes: outputs; by default those of the architecture's data set (1000 or 10).
        input_shape: (height, width, 3); None stands for any size.
        stochastic_depth: probability of dropping the last residual branch; earlier ones drop in proportion to depth.
        seed: of the initial weights, which are the same on every backend.

    Returns:
        A model from RGB images (batch, height, width, 3), uint8 or float 0-255, to float32 logits
        (batch, num_classes). Normalisation is its first layer.

    Raises:
        UsageError: an unknown model (with the nearest names), or a value out of range.
    """
    arch = architecture(model) if isinstance(model, str) else model
    num_classes = arch.num_classes if num_classes is None else num_classes
    if num_classes < 1:
        raise UsageError(f"Received num_classes={num_classes}, expected at least 1.")
    if len(input_shape) != 3 or input_shape[-1] != 3:
        raise UsageError(f"Received input_shape={input_shape}, expected (height, width, 3).")
    if not 0.0 <= stochastic_depth < 1.0:
        raise UsageError(f"Received stochastic_depth={stochastic_depth}, expected 0 <= rate < 1.")

    network = _Network(arch, stochastic_depth, seed)
    image = keras.Input(input_shape, name="image")  # uint8 is cast on the device
    x = Normalize(arch.preprocessing, dtype="float32", name="normalize")(image)  # bfloat16 would round the means
    x = network.stem(x)  # (batch, h/4, w/4, 64) on ImageNet, (batch, h, w, 16) on CIFAR
    for block in arch.blocks():
        x = network.block(x, block)
        if block.index == arch.depths[block.stage - 1]:
            x = keras.layers.Identity(name=f"stage{block.stage}")(x)
    logits = network.head(x, num_classes)  # (batch, num_classes)
    return keras.Model(image, logits, name=arch.name.replace("-", "_") or "resnet")


class _Network:
    """What all layers of one network share: its architecture, its seed, its rate of stochastic depth."""

    def __init__(self, arch: Architecture, stochastic_depth: float, seed: int) -> None:
        self.arch, self.stochastic_depth, self.seed = arch, stochastic_depth, seed

    def conv(self, x: Tensor, conv: Conv, name: str) -> Tensor:
        return Conv2D(
            conv.out_channels,
            conv.kernel,
            strides=conv.stride,
            groups=conv.groups,
            use_bias=conv.bias,
            seed=self.seed,
            name=name,
        )(x)

    def norm(self, x: Tensor, name: str, *, gamma: str = "ones") -> Tensor:
        if not self.arch.batch_norm:
            return x
        return BatchNorm(epsilon=self.arch.batch_norm_epsilon, gamma_initializer=gamma, name=name)(x)

    def relu(self, x: Tensor, name: str) -> Tensor:
        return keras.layers.ReLU(name=name)(x)

    def stem(self, x: Tensor) -> Tensor:
        convs = self.arch.stem_convs
        for i, conv in enumerate(convs, start=1):
            x = self.conv(x, conv, f"stem_conv{i}")
            if i < len(convs) or not self.arch.preactivation:  # a pre-activation block begins with its own
                x = self.relu(self.norm(x, f"stem_bn{i}"), f"stem_relu{i}")
        if self.arch.stem_pools:
            x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
            x = keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
        return keras.layers.Identity(name="stem")(x)

    def block(self, x: Tensor, block: Block) -> Tensor:
        if self.arch.preactivation:
            return self.preactivation_block(x, block)
        y = x
        last = len(block.convs)
        for i, conv in enumerate(block.convs, start=1):
            y = self.conv(y, conv, f"{block.name}_conv{i}")
            # With a last gamma of zero each block begins as the identity (Goyal 2017, section 5.1).
            zero = self.arch.zero_init_last and i == last
            y = self.norm(y, f"{block.name}_bn{i}", gamma="zeros" if zero else "ones")
            if i < last:
                y = self.relu(y, f"{block.name}_relu{i}")
        if block.shortcut != "none":
            shortcut = self.shortcut(x, block)
            if block.projection:
                shortcut = self.norm(shortcut, f"{block.name}_shortcut_bn")
            y = self.add(shortcut, y, block)
        return self.relu(y, f"{block.name}_relu{last}")

    def preactivation_block(self, x: Tensor, block: Block) -> Tensor:
        y = x
        for i, conv in enumerate(block.convs, start=1):
            y = self.relu(self.norm(y, f"{block.name}_bn{i}"), f"{block.name}_relu{i}")
            if i == 1 and block.projection:  # a projection sees the activated input, an identity the bare one
                x = y
            y = self.conv(y, conv, f"{block.name}_conv{i}")
        return self.add(self.shortcut(x, block), y, block)

    def shortcut(self, x: Tensor, block: Block) -> Tensor:
        name = f"{block.name}_shortcut"
        if block.shortcut == "pool_projection" and block.stride > 1:
            x = keras.layers.AveragePooling2D(2, padding="same", name=f"{name}_pool")(x)
        if block.projection:
            return self.conv(x, block.projection, f"{name}_conv")
        if block.stride > 1 or block.in_channels != block.out_channels:
            return IdentityShortcut(block.out_channels, strides=block.stride, name=f"{name}_identity")(x)
        return x

    def add(self, shortcut: Tensor, branch: Tensor, block: Block) -> Tensor:
        if block.squeeze_width:
            branch = self.squeeze_and_excite(branch, block)
        rate = self.stochastic_depth * block.depth_fraction
        if rate:
            branch = StochasticDepth(
                rate, seed=self.seed + block.stage * 1000 + block.index, name=f"{block.name}_drop"
            )(branch)
        return keras.layers.Add(name=f"{block.name}_add")([shortcut, branch])

    def squeeze_and_excite(self, x: Tensor, block: Block) -> Tensor:
        """Scale each channel by a gate that sees the mean of all of them (Hu 2017, figure 2)."""
        name = f"{block.name}_se"
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)  # (batch, 1, 1, c)
        gate = self.dense(gate, block.squeeze_width, f"{name}_reduce", activation="relu")
        gate = self.dense(gate, block.out_channels, f"{name}_expand", activation="sigmoid")
        return keras.layers.Multiply(name=f"{name}_scale")([x, gate])

    def dense(self, x: Tensor, units: int, name: str, **kwargs: Any) -> Tensor:
        initializer = HostNormal(self.seed, name, std=0.01)  # Goyal 2017, section 5.1
        return keras.layers.Dense(units, kernel_initializer=initializer, name=name, **kwargs)(x)

    def head(self, x: Tensor, num_classes: int) -> Tensor:
        if self.arch.preactivation:
            x = self.relu(self.norm(x, "head_bn"), "head_relu")
        x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)  # (batch, features)
        return self.dense(x, num_classes, "head_logits", dtype="float32")
