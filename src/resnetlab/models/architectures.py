"""The table of architectures. A variant is a row: nothing here imports Keras.

An `Architecture` resolves itself into a stem, `Block`s and a head, all made of `Conv`s. `resnet.py` turns those into
layers; `parameters` and `multiply_adds` count the very same `Conv`s, so the table cannot disagree with the network.

Papers
    He 2015      K. He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385
    He 2016      K. He et al., Identity Mappings in Deep Residual Networks, arXiv:1603.05027
    Goyal 2017   P. Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677 (v1.5: stride on the 3x3)
    Xie 2016     S. Xie et al., Aggregated Residual Transformations (ResNeXt), arXiv:1611.05431
    Zagoruyko 2016   S. Zagoruyko, N. Komodakis, Wide Residual Networks, arXiv:1605.07146
    Hu 2017      J. Hu et al., Squeeze-and-Excitation Networks, arXiv:1709.01507
    Tong He 2018     T. He et al., Bag of Tricks for Image Classification (ResNet-D), arXiv:1812.01187
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, get_args

from resnetlab.errors import UsageError, unknown

BlockKind = Literal["basic", "bottleneck"]
StemKind = Literal["imagenet", "cifar", "deep"]
ShortcutKind = Literal["A", "B", "C", "D", "none"]
Preprocessing = Literal["imagenet", "cifar10", "caffe", "unit"]

# Mean and scale of each RGB channel, in units of a byte, as the weights that are published for an architecture expect.
PREPROCESSING: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "cifar10": ((125.307, 122.950, 113.865), (62.993, 62.089, 66.705)),
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),  # and then BGR
    "unit": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}

BOTTLENECK_EXPANSION = 4  # He 2015, figure 5
STATISTICS = ("moving_mean", "moving_variance")  # of a batch norm: kept, not trained


@dataclass(frozen=True)
class Conv:
    """A convolution with "half" padding: kernel // 2 zeros on every side, so stride 1 keeps the size."""

    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def weights(self) -> int:
        """Weights of the kernel, without the bias."""
        return self.kernel**2 * (self.in_channels // self.groups) * self.out_channels

    def output_size(self, size: int) -> int:
        return (size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class Block:
    """One residual block, resolved: what to convolve, and how the input reaches the sum."""

    stage: int  # from 1
    index: int  # in its stage, from 1
    convs: tuple[Conv, ...]  # of the residual branch, in order
    shortcut: Literal["identity", "pad", "projection", "pool_projection", "none"]
    projection: Conv | None
    squeeze_width: int  # hidden units of squeeze-and-excitation, 0 without it
    depth_fraction: float  # 0 at the first block, 1 at the last: stochastic depth grows along it

    @property
    def name(self) -> str:
        return f"stage{self.stage}_block{self.index}"

    @property
    def in_channels(self) -> int:
        return self.convs[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.convs[-1].out_channels

    @property
    def stride(self) -> int:
        return max(conv.stride for conv in self.convs)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A residual network as data.

    `widths` are the inner widths of the stages before `width_factor`; a bottleneck stage puts out four times its width.
    `stride_on` says which convolution of a bottleneck downsamples: the first 1x1 (v1) or the 3x3 (v1.5).
    `downsample_in` says which block of a stage does it: the first one (the papers), or the last one of all stages but
    the last (keras.applications' v2). Shortcuts, after He 2015 section 3.3: A zero-padded identity, B projection where
    shapes change, C projection everywhere, D average-pool then 1x1 (Tong He 2018), "none" a plain network.
    """

    name: str
    paper: str
    depths: tuple[int, ...]
    block: BlockKind
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: StemKind = "imagenet"
    stem_width: int = 64
    shortcut: ShortcutKind = "B"
    stride_on: Literal["1x1", "3x3"] = "3x3"
    downsample_in: Literal["first", "last"] = "first"
    preactivation: bool = False
    groups: int = 1
    base_width: int = 64
    width_factor: int = 1
    squeeze_reduction: int = 0
    conv_bias: Literal["none", "all", "outer"] = "none"  # outer: stem, projections, last of a block
    batch_norm: bool = True
    batch_norm_epsilon: float = 1e-5
    zero_init_last: bool = False  # gamma of each block's last batch norm (Goyal 2017, section 5.1)
    preprocessing: Preprocessing = "imagenet"
    num_classes: int = 1000
    reference_size: int = 224
    published_parameters: int | None = field(default=None, compare=False)  # exact, or None where the paper rounds
    counts_statistics: bool = field(default=False, compare=False)  # keras.applications counts running statistics too

    def __post_init__(self) -> None:
        def require(legal: bool, received: str, expected: str) -> None:
            if not legal:
                raise UsageError(f"Architecture {self.name!r}: received {received}, expected {expected}.")

        for key, kinds in (("block", BlockKind), ("stem", StemKind), ("shortcut", ShortcutKind)):
            value = getattr(self, key)
            require(value in get_args(kinds), f"{key}={value!r}", f"one of {get_args(kinds)}")
        require(
            len(self.depths) == len(self.widths) and min(self.depths, default=0) > 0,
            f"depths={self.depths} with widths={self.widths}",
            "one positive number of blocks for each width",
        )
        for key in ("groups", "base_width", "width_factor", "stem_width", "num_classes"):
            require(getattr(self, key) >= 1, f"{key}={getattr(self, key)}", "at least 1")
        require(
            self.block == "bottleneck" or (self.groups == 1 and self.base_width == 64),
            f"groups={self.groups}, base_width={self.base_width} in a basic block",
            "a bottleneck block (the papers define groups for it alone)",
        )
        require(
            not (self.preactivation and self.shortcut == "none"),
            "a pre-activation network without shortcuts",
            "a shortcut: pre-activation is about what the shortcut carries",
        )
        require(
            self.batch_norm or (self.conv_bias == "all" and not self.zero_init_last),
            f"batch_norm=False with conv_bias={self.conv_bias!r}, zero_init_last={self.zero_init_last}",
            "conv_bias='all' and no zero_init_last, as there is no beta to shift and no gamma to zero",
        )
        require(
            not (self.zero_init_last and (self.shortcut == "none" or self.preactivation)),
            "zero_init_last without a batch norm that ends a residual branch",
            "a post-activation network with shortcuts (else the signal dies)",
        )
        require(
            self.squeeze_reduction == 0 or min(self.widths) * self.expansion >= self.squeeze_reduction,
            f"squeeze_reduction={self.squeeze_reduction}",
            "at most the channels of the first stage",
        )

    @property
    def expansion(self) -> int:
        return BOTTLENECK_EXPANSION if self.block == "bottleneck" else 1

    @property
    def depth(self) -> int:
        """Layers as the papers count them: convolutions on the longest path, without projections, plus the head."""
        convs_per_block = 3 if self.block == "bottleneck" else 2
        return len(self.stem_convs) + sum(self.depths) * convs_per_block + 1

    @property
    def stem_convs(self) -> tuple[Conv, ...]:
        bias = self.conv_bias != "none"
        width = self.stem_width
        if self.stem == "deep":
            half = width // 2
            return (Conv(3, half, 3, 2, bias=bias), Conv(half, half, 3, bias=bias), Conv(half, width, 3, bias=bias))
        if self.stem == "cifar":
            return (Conv(3, width, 3, bias=bias),)
        return (Conv(3, width, 7, 2, bias=bias),)

    @property
    def stem_pools(self) -> bool:
        return self.stem != "cifar"

    @property
    def features(self) -> int:
        """Channels that reach the head."""
        return self.widths[-1] * self.width_factor * self.expansion

    def blocks(self) -> Iterator[Block]:
        """The residual blocks from stem to head."""
        channels, done, total = self.stem_width, 0, sum(self.depths)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            for index in range(1, depth + 1):
                downsamples = (
                    stage > 1 and index == 1
                    if self.downsample_in == "first"
                    else stage < len(self.depths) and index == depth
                )
                yield self._block(
                    stage,
                    index,
                    in_channels=channels,
                    width=width * self.width_factor,
                    stride=2 if downsamples else 1,
                    depth_fraction=done / max(total - 1, 1),
                )
                channels, done = width * self.width_factor * self.expansion, done + 1

    def _block(
        self, stage: int, index: int, *, in_channels: int, width: int, stride: int, depth_fraction: float
    ) -> Block:
        out_channels = width * self.expansion
        inner_bias, outer_bias = self.conv_bias == "all", self.conv_bias != "none"
        convs: tuple[Conv, ...]
        if self.block == "basic":
            convs = (
                Conv(in_channels, width, 3, stride, bias=inner_bias),
                Conv(width, width, 3, bias=outer_bias),
            )
        else:
            inner = width * self.base_width // 64 * self.groups
            first, second = (stride, 1) if self.stride_on == "1x1" else (1, stride)
            convs = (
                Conv(in_channels, inner, 1, first, bias=inner_bias),
                Conv(inner, inner, 3, second, self.groups, bias=inner_bias),
                Conv(inner, out_channels, 1, bias=outer_bias),
            )
        widens = in_channels != out_channels
        projects = self.shortcut == "C" or (self.shortcut in "BD" and widens)
        shortcut: Literal["identity", "pad", "projection", "pool_projection", "none"]
        if self.shortcut == "none":
            shortcut = "none"
        elif projects:
            shortcut = "pool_projection" if self.shortcut == "D" else "projection"
        else:
            shortcut = "pad" if widens else "identity"
        # -D averages first, so that the 1x1 does not skip three pixels of four.
        projection_stride = 1 if self.shortcut == "D" else stride
        return Block(
            stage=stage,
            index=index,
            convs=convs,
            shortcut=shortcut,
            projection=Conv(in_channels, out_channels, 1, projection_stride, bias=outer_bias) if projects else None,
            squeeze_width=out_channels // self.squeeze_reduction if self.squeeze_reduction else 0,
            depth_fraction=depth_fraction,
        )

    # What follows counts; `tests/models/test_architectures.py` holds it to the built networks.

    def weights(self, num_classes: int | None = None) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(layer, weight, shape) of all weights, under the names that `resnet.py` gives them."""

        def conv(name: str, conv: Conv) -> Iterator[tuple[str, str, tuple[int, ...]]]:
            yield name, "kernel", (conv.kernel, conv.kernel, conv.in_channels // conv.groups, conv.out_channels)
            if conv.bias:
                yield name, "bias", (conv.out_channels,)

        def norm(name: str, channels: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
            for weight in ("gamma", "beta", *STATISTICS) if self.batch_norm else ():
                yield name, weight, (channels,)

        def dense(name: str, inputs: int, units: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
            yield name, "kernel", (inputs, units)
            yield name, "bias", (units,)

        for i, c in enumerate(self.stem_convs, start=1):
            yield from conv(f"stem_conv{i}", c)
            if i < len(self.stem_convs) or not self.preactivation:
                yield from norm(f"stem_bn{i}", c.out_channels)
        for block in self.blocks():
            for i, c in enumerate(block.convs, start=1):
                yield from conv(f"{block.name}_conv{i}", c)
                yield from norm(f"{block.name}_bn{i}", c.in_channels if self.preactivation else c.out_channels)
            if block.projection:
                yield from conv(f"{block.name}_shortcut_conv", block.projection)
                if not self.preactivation:
                    yield from norm(f"{block.name}_shortcut_bn", block.out_channels)
            if block.squeeze_width:
                yield from dense(f"{block.name}_se_reduce", block.out_channels, block.squeeze_width)
                yield from dense(f"{block.name}_se_expand", block.squeeze_width, block.out_channels)
        if self.preactivation:
            yield from norm("head_bn", self.features)
        yield from dense("head_logits", self.features, num_classes or self.num_classes)

    def parameters(self, num_classes: int | None = None, *, statistics: bool = False) -> int:
        """Trainable parameters; with `statistics`, also the running means and variances."""
        shapes = (shape for _, weight, shape in self.weights(num_classes) if statistics or weight not in STATISTICS)
        return sum(map(prod, shapes))

    def multiply_adds(self, size: int | None = None, num_classes: int | None = None) -> int:
        """Multiply-adds of convolutions and dense layers for one forward pass of a (size, size, 3) image."""
        size, total = size or self.reference_size, 0
        for conv in self.stem_convs:
            size = conv.output_size(size)
            total += conv.weights * size**2
        if self.stem_pools:
            size = (size + 1) // 2
        for block in self.blocks():
            entry = size
            for conv in block.convs:
                size = conv.output_size(size)
                total += conv.weights * size**2
            if block.projection:
                side = -(-entry // 2) if block.shortcut == "pool_projection" and block.stride == 2 else entry
                total += block.projection.weights * block.projection.output_size(side) ** 2
            total += 2 * block.out_channels * block.squeeze_width
        return total + self.features * (num_classes or self.num_classes)

    def stages(self, size: int | None = None) -> list[tuple[str, int, int, int]]:
        """(end point, blocks, size, channels) of the stem and of each stage for a square image of `size`."""
        size = size or self.reference_size
        for conv in self.stem_convs:
            size = conv.output_size(size)
        if self.stem_pools:
            size = (size + 1) // 2
        rows = [("stem", len(self.stem_convs), size, self.stem_width)]
        for block in self.blocks():
            size = -(-size // block.stride)
            if block.index == self.depths[block.stage - 1]:
                rows.append((f"stage{block.stage}", block.index, size, block.out_channels))
        return rows


def _table() -> dict[str, Architecture]:
    rows: list[Architecture] = []

    def add(base: Architecture, **differs: object) -> None:
        rows.append(replace(base, **differs))  # type: ignore[arg-type]

    basic_depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
    bottleneck_depths = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
    published = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}

    basic = Architecture(name="", paper="He 2015", block="basic", depths=basic_depths[18])
    bottleneck = Architecture(name="", paper="He 2015", block="bottleneck", depths=bottleneck_depths[50])

    # He 2015, table 1. A plain name means v1.5 (what torchvision and the field call ResNet-50); -v1 is the paper's own.
    for depth, depths in basic_depths.items():
        facts = {"depths": depths, "published_parameters": published[depth]}
        add(basic, name=f"resnet{depth}", zero_init_last=True, **facts)
        add(basic, name=f"resnet{depth}-v1", **facts)  # a basic block has only 3x3s: v1 differs in initialisation
    for depth in (50, 101, 152):
        facts = {"depths": bottleneck_depths[depth], "published_parameters": published[depth]}
        add(bottleneck, name=f"resnet{depth}", paper="Goyal 2017", zero_init_last=True, **facts)
        add(bottleneck, name=f"resnet{depth}-v1", stride_on="1x1", **facts)

    # keras.applications: its published weights load into these.
    keras_v1 = {50: 25_636_712, 101: 44_707_176, 152: 60_419_944}
    keras_v2 = {50: 25_613_800, 101: 44_675_560, 152: 60_380_648}
    keras_row = replace(bottleneck, batch_norm_epsilon=1.001e-5, counts_statistics=True)
    for depth in (50, 101, 152):
        add(
            keras_row,
            name=f"keras-resnet{depth}",
            depths=bottleneck_depths[depth],
            stride_on="1x1",
            conv_bias="all",
            preprocessing="caffe",
            published_parameters=keras_v1[depth],
        )
        add(
            keras_row,
            name=f"keras-resnet{depth}v2",
            paper="He 2016",
            depths=bottleneck_depths[depth],
            preactivation=True,
            downsample_in="last",
            conv_bias="outer",
            preprocessing="unit",
            published_parameters=keras_v2[depth],
        )

    # He 2016: pre-activation.
    for depth, depths in basic_depths.items():
        add(basic, name=f"preresnet{depth}", paper="He 2016", depths=depths, preactivation=True)
    for depth, depths in bottleneck_depths.items():
        add(
            bottleneck,
            name=f"preresnet{depth}",
            paper="He 2016",
            depths=depths,
            preactivation=True,
            stride_on="1x1",
        )

    # Tong He 2018: deep stem and averaging shortcut.
    resnet_d = {"paper": "Tong He 2018", "stem": "deep", "shortcut": "D", "zero_init_last": True}
    for depth, depths in basic_depths.items():
        add(basic, name=f"resnet{depth}d", depths=depths, **resnet_d)
    for depth, count in ((50, 25_576_264), (101, 44_568_392)):
        facts = {"depths": bottleneck_depths[depth], "published_parameters": count}
        add(bottleneck, name=f"resnet{depth}d", **resnet_d, **facts)

    # Wider in other ways.
    modern = replace(bottleneck, zero_init_last=True)
    add(
        modern,
        name="resnext50-32x4d",
        paper="Xie 2016",
        groups=32,
        base_width=4,
        published_parameters=25_028_904,
    )
    add(
        modern,
        name="resnext101-32x8d",
        paper="Xie 2016",
        depths=bottleneck_depths[101],
        groups=32,
        base_width=8,
        published_parameters=88_791_336,
    )
    add(modern, name="se-resnet50", paper="Hu 2017", squeeze_reduction=16, published_parameters=28_088_024)
    add(
        modern,
        name="wide-resnet50-2",
        paper="Zagoruyko 2016",
        base_width=128,
        published_parameters=68_883_240,
    )
    add(
        modern,
        name="wide-resnet101-2",
        paper="Zagoruyko 2016",
        depths=bottleneck_depths[101],
        base_width=128,
        published_parameters=126_886_696,
    )

    # CIFAR: He 2015 section 4.2 (6n+2 layers, shortcut A), He 2016 (9n+2), Zagoruyko 2016 (6n+4).
    cifar = replace(
        basic,
        widths=(16, 32, 64),
        depths=(3, 3, 3),
        stem="cifar",
        stem_width=16,
        shortcut="A",
        preprocessing="cifar10",
        num_classes=10,
        reference_size=32,
    )
    for depth in (20, 32, 44, 56, 110, 1202):
        add(cifar, name=f"resnet{depth}", depths=((depth - 2) // 6,) * 3)
    cifar_preactivation = replace(cifar, paper="He 2016", preactivation=True, shortcut="B")
    for depth in (164, 1001):
        add(
            cifar_preactivation,
            name=f"preresnet{depth}",
            block="bottleneck",
            stride_on="1x1",
            depths=((depth - 2) // 9,) * 3,
        )
    for depth, factor in ((16, 8), (28, 10)):
        add(
            cifar_preactivation,
            name=f"wrn-{depth}-{factor}",
            paper="Zagoruyko 2016",
            width_factor=factor,
            depths=((depth - 4) // 6,) * 3,
        )

    # The plain networks of the degradation study: He 2015, figures 1 and 4.
    for depth in (18, 34):
        add(basic, name=f"plain{depth}", depths=basic_depths[depth], shortcut="none")
    for depth in (20, 32, 44, 56):
        add(cifar, name=f"plain{depth}", depths=((depth - 2) // 6,) * 3, shortcut="none")

    # Small enough to train in seconds: for tests, and for the quick start on 8x8 digits.
    add(
        cifar,
        name="resnet-tiny",
        paper="this project",
        depths=(1, 1, 1),
        shortcut="B",
        zero_init_last=True,
        preprocessing="imagenet",
    )
    return {row.name: row for row in rows}


ARCHITECTURES: dict[str, Architecture] = _table()


def architecture(name: str) -> Architecture:
    """The row called `name`; an unknown name raises a UsageError with the nearest ones."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise unknown("model", name, ARCHITECTURES, hint="`resnetlab models` lists all.") from None
