"""The residual network: stem, blocks, stages, head. This file builds every variant of `variants.py`.

    y = relu(F(x) + x)      He 2015, figure 2: F is convolution, batch norm, ReLU, ..., convolution, batch norm
    y = F(x) + x            He 2016, figure 1b: F is batch norm, ReLU, convolution, ...

Where the identity carries x from block to block unchanged, the gradient at any block is the gradient at the last one
plus a correction, so it does not vanish with depth (He 2016, equation 5).

`net` supplies the layers: `layers.KerasLayers` makes Keras layers, and `shapes.ShapeRecorder` records weights, shapes
and multiply-adds without Keras. Layers are named by position: `stem_conv1`, `stage2_block1_conv2`,
`stage2_block1_shortcut_conv`, `head_logits`; so are the end points `stem`, `stage1`, `stage2`, ...
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

from resnetlab import environment
from resnetlab.errors import UsageError
from resnetlab.models.variants import BOTTLENECK_EXPANSION, Architecture, architecture

if TYPE_CHECKING:
    import keras

Tensor = Any  # (batch, height, width, channels): a Keras tensor, or a recorded shape


class Layers(Protocol):
    """The layers of a network of `arch`. Convolutions have no bias unless `arch.conv_bias` gives them one."""

    arch: Architecture

    def normalize(self, x: Tensor) -> Tensor: ...
    def conv(
        self, x: Tensor, filters: int, kernel: int, stride: int = 1, *, groups: int = 1, outer: bool = False, name: str
    ) -> Tensor: ...
    def norm(self, x: Tensor, *, zero_gamma: bool = False, name: str) -> Tensor: ...
    def relu(self, x: Tensor, *, name: str) -> Tensor: ...
    def dense(self, x: Tensor, units: int, *, activation: str | None = None, name: str) -> Tensor: ...
    def whiten(self, x: Tensor, *, name: str) -> Tensor: ...
    def max_pool(self, x: Tensor, size: int, *, name: str) -> Tensor: ...
    def average_pool(self, x: Tensor, *, name: str) -> Tensor: ...
    def global_pool(self, x: Tensor, *, keepdims: bool = False, name: str) -> Tensor: ...
    def pad_channels(self, x: Tensor, filters: int, stride: int, *, name: str) -> Tensor: ...
    def drop_path(self, x: Tensor, depth: float, *, name: str) -> Tensor: ...
    def add(self, x: Tensor, y: Tensor, *, name: str) -> Tensor: ...
    def multiply(self, x: Tensor, y: Tensor, *, name: str) -> Tensor: ...
    def end_point(self, x: Tensor, *, name: str) -> Tensor: ...


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

    >>> rl.build("resnet20", num_classes=3).output_shape
    (None, 3)
    """
    arch = architecture(model) if isinstance(model, str) else model
    num_classes = arch.num_classes if num_classes is None else num_classes
    if num_classes < 1:
        raise UsageError(f"Received num_classes={num_classes}, expected at least 1.")
    if len(input_shape) != 3 or input_shape[-1] != 3:
        raise UsageError(f"Received input_shape={input_shape}, expected (height, width, 3).")
    if not 0.0 <= stochastic_depth < 1.0:
        raise UsageError(f"Received stochastic_depth={stochastic_depth}, expected 0 <= rate < 1.")
    if stochastic_depth and arch.shortcut == "none":
        raise UsageError(
            f"Received stochastic_depth={stochastic_depth} for {arch.name}, which has no shortcuts: expected 0."
        )
    if "keras" not in sys.modules:  # the first backend that is installed, as everywhere
        environment.configure()
    import keras

    from resnetlab.models.layers import KerasLayers

    image = keras.Input(input_shape, name="image")
    logits = residual_network(image, KerasLayers(arch, stochastic_depth, seed), num_classes)
    return keras.Model(image, logits, name=arch.name.replace("-", "_") or "resnet")


def residual_network(x: Tensor, net: Layers, num_classes: int) -> Tensor:
    """Images (batch, height, width, 3) to logits (batch, num_classes)."""
    arch = net.arch
    block = {
        ("single", False): single_block,
        ("basic", False): basic_block,
        ("bottleneck", False): bottleneck_block,
        ("basic", True): preactivation_basic_block,
        ("bottleneck", True): preactivation_bottleneck_block,
    }[arch.block, arch.preactivation]
    x = stem(net.normalize(x), net)  # (batch, h/4, w/4, 64) on ImageNet, (batch, h, w, 16) on CIFAR
    positions, last_stage = iter(arch.block_positions), len(arch.depths)
    for stage, (depth, width) in enumerate(zip(arch.depths, arch.widths, strict=True), start=1):
        if arch.transition == "pool":
            x = pooled_transition(x, net, f"stage{stage}_transition", width * arch.width_factor)
        for index in range(1, depth + 1):
            if arch.transition == "pool":
                stride = 1
            elif arch.downsample_in == "first":
                stride = 2 if stage > 1 and index == 1 else 1
            else:
                stride = 2 if stage < last_stage and index == depth else 1
            x = block(x, net, f"stage{stage}_block{index}", width * arch.width_factor, stride, next(positions))
        x = net.end_point(
            x, name=f"stage{stage}"
        )  # from the second on (with pools, from the first) half the height and width
    if arch.preactivation:
        x = net.relu(net.norm(x, name="head_bn"), name="head_relu")
    return net.dense(net.global_pool(x, name="head_pool"), num_classes, name="head_logits")


def stem(x: Tensor, net: Layers) -> Tensor:
    width = net.arch.stem_width
    if net.arch.stem == "whitening":
        x = net.whiten(x, name="stem_conv1")
        return net.end_point(net.relu(x, name="stem_relu1"), name="stem")
    convs = {  # filters, kernel size, stride
        "imagenet": [(width, 7, 2)],
        "deep": [(width // 2, 3, 2), (width // 2, 3, 1), (width, 3, 1)],
        "cifar": [(width, 3, 1)],
    }[net.arch.stem]
    for i, (filters, kernel, stride) in enumerate(convs, start=1):
        x = net.conv(x, filters, kernel, stride, outer=True, name=f"stem_conv{i}")
        if i < len(convs) or not net.arch.preactivation:  # a pre-activation block begins with its own
            x = net.relu(net.norm(x, name=f"stem_bn{i}"), name=f"stem_relu{i}")
    if net.arch.stem != "cifar":
        x = net.max_pool(x, 3, name="stem_pool")
    return net.end_point(x, name="stem")


def pooled_transition(x: Tensor, net: Layers, name: str, width: int) -> Tensor:
    """Page 2018: a convolution, and a max-pool that halves height and width."""
    x = net.conv(x, width, 3, name=f"{name}_conv")
    x = net.max_pool(x, 2, name=f"{name}_pool")
    return net.relu(net.norm(x, name=f"{name}_bn"), name=f"{name}_relu")


def single_block(x: Tensor, net: Layers, name: str, width: int, stride: int, position: float) -> Tensor:
    """y = x + relu(norm(conv(x))): half a basic block. Jordan 2024 has it without the shortcut."""
    y = net.conv(x, width, 3, stride, outer=True, name=f"{name}_conv1")
    y = net.norm(y, zero_gamma=net.arch.zero_init_last, name=f"{name}_bn1")
    return add_shortcut(x, net.relu(y, name=f"{name}_relu1"), net, name, stride, position)


def basic_block(x: Tensor, net: Layers, name: str, width: int, stride: int, position: float) -> Tensor:
    """He 2015, figure 5, left."""
    y = net.conv(x, width, 3, stride, name=f"{name}_conv1")
    y = net.norm(y, name=f"{name}_bn1")
    y = net.relu(y, name=f"{name}_relu1")
    y = net.conv(y, width, 3, outer=True, name=f"{name}_conv2")
    y = net.norm(y, zero_gamma=net.arch.zero_init_last, name=f"{name}_bn2")
    y = add_shortcut(x, y, net, name, stride, position)
    return net.relu(y, name=f"{name}_relu2")


def bottleneck_block(x: Tensor, net: Layers, name: str, width: int, stride: int, position: float) -> Tensor:
    """He 2015, figure 5, right; with the stride on the 3x3 since Goyal 2017, and groups after Xie 2016."""
    inner, stride1, stride2 = bottleneck_shape(net.arch, width, stride)
    y = net.conv(x, inner, 1, stride1, name=f"{name}_conv1")
    y = net.norm(y, name=f"{name}_bn1")
    y = net.relu(y, name=f"{name}_relu1")
    y = net.conv(y, inner, 3, stride2, groups=net.arch.groups, name=f"{name}_conv2")
    y = net.norm(y, name=f"{name}_bn2")
    y = net.relu(y, name=f"{name}_relu2")
    y = net.conv(y, BOTTLENECK_EXPANSION * width, 1, outer=True, name=f"{name}_conv3")
    y = net.norm(y, zero_gamma=net.arch.zero_init_last, name=f"{name}_bn3")
    y = add_shortcut(x, y, net, name, stride, position)
    return net.relu(y, name=f"{name}_relu3")


def preactivation_basic_block(x: Tensor, net: Layers, name: str, width: int, stride: int, position: float) -> Tensor:
    """He 2016, figure 4e. The paper activates the input of the first block before it splits; here that is so only where
    the block changes its shape, as all but preresnet18 and preresnet34 do. As in keras.applications, the max-pool of
    ImageNet's stem comes before the first batch norm; in the authors' code it comes after it."""
    a = net.relu(net.norm(x, name=f"{name}_bn1"), name=f"{name}_relu1")
    y = net.conv(a, width, 3, stride, name=f"{name}_conv1")
    y = net.relu(net.norm(y, name=f"{name}_bn2"), name=f"{name}_relu2")
    y = net.conv(y, width, 3, outer=True, name=f"{name}_conv2")
    return add_shortcut(x, y, net, name, stride, position, activated=a)


def preactivation_bottleneck_block(
    x: Tensor, net: Layers, name: str, width: int, stride: int, position: float
) -> Tensor:
    """He 2016, figure 4e, with the three convolutions of a bottleneck."""
    inner, stride1, stride2 = bottleneck_shape(net.arch, width, stride)
    a = net.relu(net.norm(x, name=f"{name}_bn1"), name=f"{name}_relu1")
    y = net.conv(a, inner, 1, stride1, name=f"{name}_conv1")
    y = net.relu(net.norm(y, name=f"{name}_bn2"), name=f"{name}_relu2")
    y = net.conv(y, inner, 3, stride2, groups=net.arch.groups, name=f"{name}_conv2")
    y = net.relu(net.norm(y, name=f"{name}_bn3"), name=f"{name}_relu3")
    y = net.conv(y, BOTTLENECK_EXPANSION * width, 1, outer=True, name=f"{name}_conv3")
    return add_shortcut(x, y, net, name, stride, position, activated=a)


def bottleneck_shape(arch: Architecture, width: int, stride: int) -> tuple[int, int, int]:
    """Channels inside a bottleneck (Xie 2016: base_width of each group), and the strides of its 1x1 and 3x3."""
    return width * arch.base_width // 64 * arch.groups, *((stride, 1) if arch.stride_on == "1x1" else (1, stride))


def add_shortcut(
    x: Tensor, branch: Tensor, net: Layers, name: str, stride: int, position: float, *, activated: Tensor = None
) -> Tensor:
    """The sum of a residual branch and its shortcut. Pre-activation blocks project the activated input."""
    arch, channels = net.arch, branch.shape[-1]
    if arch.shortcut == "none":
        return branch
    widens = x.shape[-1] != channels
    if arch.shortcut == "C" or (arch.shortcut in ("B", "D") and widens):
        x = x if activated is None else activated
        if arch.shortcut == "D" and stride > 1:  # average first, so that the 1x1 does not ignore three of four pixels
            x, stride = net.average_pool(x, name=f"{name}_shortcut_pool"), 1
        x = net.conv(x, channels, 1, stride, outer=True, name=f"{name}_shortcut_conv")
        if activated is None:
            x = net.norm(x, name=f"{name}_shortcut_bn")
    elif stride > 1 or widens:
        x = net.pad_channels(x, channels, stride, name=f"{name}_shortcut_identity")
    if arch.squeeze_reduction:
        branch = squeeze_excite(branch, net, f"{name}_se")
    return net.add(x, net.drop_path(branch, position, name=f"{name}_drop"), name=f"{name}_add")


def squeeze_excite(x: Tensor, net: Layers, name: str) -> Tensor:
    """Scale each channel by a gate computed from the means of all channels (Hu 2017, figure 2)."""
    channels = x.shape[-1]
    gate = net.global_pool(x, keepdims=True, name=f"{name}_squeeze")  # (batch, 1, 1, channels)
    gate = net.dense(gate, channels // net.arch.squeeze_reduction, activation="relu", name=f"{name}_reduce")
    gate = net.dense(gate, channels, activation="sigmoid", name=f"{name}_expand")
    return net.multiply(x, gate, name=f"{name}_scale")
