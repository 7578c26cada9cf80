"""The variants: one line per model. Nothing here imports Keras.

A variant differs from its base by the values of fields, never by a function of its own; `resnet.py` builds all of them.
`published_parameters` is the exact count that a reference implementation prints, where one does.

Papers
    He 2015         K. He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385
    He 2016         K. He et al., Identity Mappings in Deep Residual Networks, arXiv:1603.05027
    Goyal 2017      P. Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677 (v1.5: stride on the 3x3)
    Xie 2016        S. Xie et al., Aggregated Residual Transformations (ResNeXt), arXiv:1611.05431
    Zagoruyko 2016  S. Zagoruyko, N. Komodakis, Wide Residual Networks, arXiv:1605.07146
    Hu 2017         J. Hu et al., Squeeze-and-Excitation Networks, arXiv:1709.01507
    Tong He 2018    T. He et al., Bag of Tricks for Image Classification (ResNet-D), arXiv:1812.01187
    Page 2018       D. Page, How to Train Your ResNet, myrtle.ai/learn/how-to-train-your-resnet
    Jordan 2024     K. Jordan, 94 % on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv:2404.00498
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from resnetlab.errors import UsageError, unknown_name

BlockKind = Literal["basic", "bottleneck", "single"]
StemKind = Literal["imagenet", "cifar", "deep", "whitening"]
TransitionKind = Literal["block", "pool"]
ShortcutKind = Literal["A", "B", "C", "D", "none"]
Preprocessing = Literal["imagenet", "cifar10", "kuangliu", "caffe", "unit"]

# Mean and standard deviation of each RGB channel, on the scale 0-255, that published weights expect.
PREPROCESSING: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "cifar10": ((125.307, 122.950, 113.865), (62.993, 62.089, 66.705)),
    "kuangliu": ((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)),  # CIFAR-10 in most PyTorch repositories
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),  # in BGR order
    "unit": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}

BOTTLENECK_EXPANSION = 4  # He 2015, figure 5
WHITENED = 24  # channels of the whitening stem: 12 principal components of 2x2x3 values, each as + and -


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A residual network as data.

    Args:
        depths: blocks of each stage.
        widths: inner channels of each stage before `width_factor`; a bottleneck stage outputs four times as many.
        block: "basic" two 3x3, "bottleneck" 1x1, 3x3, 1x1, "single" one 3x3, with its ReLU before the sum.
        stem: "imagenet" 7x7/2 and max-pool, "deep" three 3x3 and max-pool (Tong He 2018), "cifar" one 3x3, "whitening"
            the principal components of 2x2 patches, which are computed from training images (Page 2018).
        transition: how a stage changes the shape: in its first "block", or by a convolution and a max-"pool" of two
            before its blocks, in the first stage too (Page 2018).
        shortcut: where shapes change (He 2015, section 3.3): "A" zero-padded identity, "B" projection, "C" projections
            everywhere, "D" average-pool then 1x1 (Tong He 2018); "none" is a plain network.
        stride_on: the convolution of a bottleneck that downsamples: the first 1x1 (v1) or the 3x3 (v1.5).
        downsample_in: the block of a stage that downsamples: the "first" of all stages but stage 1 (the papers), or the
            "last" of all stages but the last one (keras.applications' v2).
        groups, base_width: of a bottleneck's 3x3 (Xie 2016).
        squeeze_reduction: of squeeze-and-excitation (Hu 2017); 0 is none.
        conv_bias: "outer" is the stem, the projections and the last convolution of a branch.
        zero_init_last: gamma of each branch's last batch norm begins at zero (Goyal 2017, section 5.1).
        counts_statistics: whether `published_parameters` includes running statistics, as keras.applications counts.

    Raises:
        UsageError: an illegal combination.
    """

    name: str
    paper: str
    block: BlockKind
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    width_factor: int = 1
    stem: StemKind = "imagenet"
    stem_width: int = 64
    transition: TransitionKind = "block"
    shortcut: ShortcutKind = "B"
    stride_on: Literal["1x1", "3x3"] = "3x3"
    downsample_in: Literal["first", "last"] = "first"
    preactivation: bool = False
    groups: int = 1
    base_width: int = 64
    squeeze_reduction: int = 0
    conv_bias: Literal["none", "all", "outer"] = "none"
    batch_norm: bool = True
    batch_norm_epsilon: float = 1e-5
    zero_init_last: bool = False
    preprocessing: Preprocessing = "imagenet"
    num_classes: int = 1000
    reference_size: int = 224
    published_parameters: int | None = field(default=None, compare=False)
    counts_statistics: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        def require(legal: bool, received: str, expected: str) -> None:
            if not legal:
                raise UsageError(f"Architecture {self.name!r}: received {received}, expected {expected}.")

        named = (
            ("block", BlockKind),
            ("stem", StemKind),
            ("shortcut", ShortcutKind),
            ("transition", TransitionKind),
        )
        for key, kinds in named:
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
            f"groups={self.groups}, base_width={self.base_width} in a {self.block} block",
            "a bottleneck block (the papers define groups for it alone)",
        )
        require(
            not self.preactivation
            or (self.block != "single" and self.stem != "whitening" and self.transition == "block"),
            f"block={self.block!r}, stem={self.stem!r}, transition={self.transition!r} in a pre-activation network",
            "post-activation, for which alone these are defined",
        )
        require(
            not (self.preactivation and self.shortcut == "none"),
            "a pre-activation network without shortcuts",
            "a shortcut: pre-activation is defined by keeping the shortcut an identity",
        )
        require(
            not (self.squeeze_reduction and self.shortcut == "none"),
            f"squeeze_reduction={self.squeeze_reduction} without shortcuts",
            "a network with shortcuts, whose branches it scales",
        )
        require(
            self.batch_norm or (self.conv_bias == "all" and not self.zero_init_last),
            f"batch_norm=False with conv_bias={self.conv_bias!r}, zero_init_last={self.zero_init_last}",
            "conv_bias='all' and no zero_init_last, as there is no beta to shift and no gamma to zero",
        )
        require(
            not (self.zero_init_last and (self.shortcut == "none" or self.preactivation)),
            "zero_init_last without a batch norm that ends a residual branch",
            "a post-activation network with shortcuts (else the signal is zero from there on)",
        )
        require(
            self.squeeze_reduction == 0 or min(self.widths) * self.expansion >= self.squeeze_reduction,
            f"squeeze_reduction={self.squeeze_reduction}",
            "at most the channels of the first stage",
        )

    @property
    def expansion(self) -> int:
        """Output channels of a block for each of its inner channels."""
        return BOTTLENECK_EXPANSION if self.block == "bottleneck" else 1

    @property
    def block_positions(self) -> list[float]:
        """Relative depth of each block, from 0 (first) to 1 (last), to which its drop probability is proportional."""
        blocks = sum(self.depths)
        return [block / max(blocks - 1, 1) for block in range(blocks)]


# ------------------------------------------------------------------------------------------------ shared base variants
D18, D34, D50, D101, D152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

BASIC = Architecture(name="", paper="He 2015", block="basic", depths=D18)
BOTTLENECK = Architecture(name="", paper="He 2015", block="bottleneck", depths=D50, stride_on="1x1")
MODERN = replace(BOTTLENECK, stride_on="3x3", zero_init_last=True)  # v1.5, with the last gamma of a block at zero
KERAS_V1 = replace(
    BOTTLENECK, conv_bias="all", preprocessing="caffe", batch_norm_epsilon=1.001e-5, counts_statistics=True
)
KERAS_V2 = replace(
    KERAS_V1,
    paper="He 2016",
    stride_on="3x3",
    preactivation=True,
    downsample_in="last",
    conv_bias="outer",
    preprocessing="unit",
)
PRE_BASIC = replace(BASIC, paper="He 2016", preactivation=True)
PRE_BOTTLENECK = replace(BOTTLENECK, paper="He 2016", preactivation=True)
D_BASIC = replace(BASIC, paper="Tong He 2018", stem="deep", shortcut="D", zero_init_last=True)
D_BOTTLENECK = replace(MODERN, paper="Tong He 2018", stem="deep", shortcut="D")
CIFAR = replace(  # He 2015, section 4.2: 6n+2 layers
    BASIC,
    depths=(3, 3, 3),
    widths=(16, 32, 64),
    stem="cifar",
    stem_width=16,
    shortcut="A",
    preprocessing="cifar10",
    num_classes=10,
    reference_size=32,
)
CIFAR_PRE = replace(CIFAR, paper="He 2016", preactivation=True, shortcut="B")
CIFAR_PRE_BOTTLENECK = replace(CIFAR_PRE, block="bottleneck", stride_on="1x1")  # 9n+2 layers
CIFAR_WIDE = replace(  # ImageNet's networks on 32x32, as in kuangliu/pytorch-cifar
    CIFAR,
    paper="kuangliu",
    depths=D18,
    widths=(64, 128, 256, 512),
    stem_width=64,
    shortcut="B",
    preprocessing="kuangliu",
)
CIFAR_B = replace(  # He 2015's with projections, as in chenyaofo/pytorch-cifar-models
    CIFAR, paper="chenyaofo", shortcut="B", preprocessing="kuangliu"
)
WIDE = replace(CIFAR_PRE, paper="Zagoruyko 2016")  # 6n+4 layers
# Page 2018, Jordan 2024: for the most accuracy in the least time, on images of 32x32. Jordan's networks have GELU where
# these have ReLU, a max-pool before the head where these have the mean, scaled logits without a bias, kernels that begin
# as identities, and batch norms without a gamma; fast-resnet8 has shortcuts, which his has not.
FAST = replace(
    CIFAR,
    paper="Jordan 2024",
    stem="whitening",
    transition="pool",
    depths=(1, 1, 1),
)
PLAIN = replace(BASIC, shortcut="none")
PLAIN_CIFAR = replace(CIFAR, shortcut="none")

# ---------------------------------------------------------------------------------------------------------- the variants
# A plain name, such as resnet50, is v1.5, which torchvision and the field call ResNet-50; -v1 is the paper's own.
# fmt: off
_ALL = (
    replace(BASIC, name="resnet18", depths=D18, zero_init_last=True, published_parameters=11_689_512),
    replace(BASIC, name="resnet18-v1", depths=D18, published_parameters=11_689_512),
    replace(BASIC, name="resnet34", depths=D34, zero_init_last=True, published_parameters=21_797_672),
    replace(BASIC, name="resnet34-v1", depths=D34, published_parameters=21_797_672),
    replace(MODERN, name="resnet50", paper="Goyal 2017", depths=D50, published_parameters=25_557_032),
    replace(BOTTLENECK, name="resnet50-v1", depths=D50, published_parameters=25_557_032),
    replace(MODERN, name="resnet101", paper="Goyal 2017", depths=D101, published_parameters=44_549_160),
    replace(BOTTLENECK, name="resnet101-v1", depths=D101, published_parameters=44_549_160),
    replace(MODERN, name="resnet152", paper="Goyal 2017", depths=D152, published_parameters=60_192_808),
    replace(BOTTLENECK, name="resnet152-v1", depths=D152, published_parameters=60_192_808),

    replace(KERAS_V1, name="keras-resnet50", depths=D50, published_parameters=25_636_712),
    replace(KERAS_V2, name="keras-resnet50v2", depths=D50, published_parameters=25_613_800),
    replace(KERAS_V1, name="keras-resnet101", depths=D101, published_parameters=44_707_176),
    replace(KERAS_V2, name="keras-resnet101v2", depths=D101, published_parameters=44_675_560),
    replace(KERAS_V1, name="keras-resnet152", depths=D152, published_parameters=60_419_944),
    replace(KERAS_V2, name="keras-resnet152v2", depths=D152, published_parameters=60_380_648),

    replace(PRE_BASIC, name="preresnet18", depths=D18),
    replace(PRE_BASIC, name="preresnet34", depths=D34),
    replace(PRE_BOTTLENECK, name="preresnet50", depths=D50),
    replace(PRE_BOTTLENECK, name="preresnet101", depths=D101),
    replace(PRE_BOTTLENECK, name="preresnet152", depths=D152),
    replace(PRE_BOTTLENECK, name="preresnet200", depths=(3, 24, 36, 3)),

    replace(D_BASIC, name="resnet18d", depths=D18),
    replace(D_BASIC, name="resnet34d", depths=D34),
    replace(D_BOTTLENECK, name="resnet50d", depths=D50, published_parameters=25_576_264),
    replace(D_BOTTLENECK, name="resnet101d", depths=D101, published_parameters=44_568_392),

    replace(MODERN, name="resnext50-32x4d", paper="Xie 2016", depths=D50, groups=32, base_width=4, published_parameters=25_028_904),
    replace(MODERN, name="resnext101-32x8d", paper="Xie 2016", depths=D101, groups=32, base_width=8, published_parameters=88_791_336),
    replace(MODERN, name="se-resnet50", paper="Hu 2017", depths=D50, squeeze_reduction=16, published_parameters=28_088_024),
    replace(MODERN, name="wide-resnet50-2", paper="Zagoruyko 2016", depths=D50, base_width=128, published_parameters=68_883_240),
    replace(MODERN, name="wide-resnet101-2", paper="Zagoruyko 2016", depths=D101, base_width=128, published_parameters=126_886_696),

    replace(CIFAR, name="resnet20", depths=(3, 3, 3)),
    replace(CIFAR, name="resnet32", depths=(5, 5, 5)),
    replace(CIFAR, name="resnet44", depths=(7, 7, 7)),
    replace(CIFAR, name="resnet56", depths=(9, 9, 9)),
    replace(CIFAR, name="resnet110", depths=(18, 18, 18)),
    replace(CIFAR, name="resnet1202", depths=(200, 200, 200)),
    replace(CIFAR_B, name="resnet20-b", depths=(3, 3, 3)),
    replace(CIFAR_B, name="resnet32-b", depths=(5, 5, 5)),
    replace(CIFAR_B, name="resnet44-b", depths=(7, 7, 7)),
    replace(CIFAR_B, name="resnet56-b", depths=(9, 9, 9)),
    replace(CIFAR_WIDE, name="cifar-resnet18", depths=D18),
    replace(CIFAR_WIDE, name="cifar-resnet34", depths=D34),
    replace(CIFAR_WIDE, name="cifar-resnet50", block="bottleneck", depths=D50),
    replace(CIFAR_PRE_BOTTLENECK, name="preresnet164", depths=(18, 18, 18)),
    replace(CIFAR_PRE_BOTTLENECK, name="preresnet1001", depths=(111, 111, 111)),
    replace(WIDE, name="wrn-16-8", depths=(2, 2, 2), width_factor=8),
    replace(WIDE, name="wrn-28-10", depths=(4, 4, 4), width_factor=10),

    replace(FAST, name="fast-resnet8", block="single", widths=(64, 256, 256)),
    replace(FAST, name="fast-resnet11", widths=(128, 384, 512)),

    # Without shortcuts: He 2015, figures 1 and 4.
    replace(PLAIN, name="plain18", depths=D18),
    replace(PLAIN, name="plain34", depths=D34),
    replace(PLAIN_CIFAR, name="plain20", depths=(3, 3, 3)),
    replace(PLAIN_CIFAR, name="plain32", depths=(5, 5, 5)),
    replace(PLAIN_CIFAR, name="plain44", depths=(7, 7, 7)),
    replace(PLAIN_CIFAR, name="plain56", depths=(9, 9, 9)),

    # Trains in seconds: for tests, and for the quick start on 8x8 digits.
    replace(CIFAR, name="resnet-tiny", paper="this project", depths=(1, 1, 1), shortcut="B", zero_init_last=True, preprocessing="imagenet"),
)
# fmt: on

VARIANTS: dict[str, Architecture] = {variant.name: variant for variant in _ALL}


def architecture(name: str) -> Architecture:
    """Look up an architecture by its model name. Raises UsageError with the closest names if it is unknown."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise unknown_name("model", name, VARIANTS, hint="`resnetlab models` lists all.") from None
