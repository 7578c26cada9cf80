"""Weights, shapes and cost of a network without Keras: `resnet.py` run on a recorder in place of Keras layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import NamedTuple

from resnetlab.errors import UsageError
from resnetlab.models.resnet import residual_network
from resnetlab.models.variants import WHITENED, Architecture

STATISTICS = ("moving_mean", "moving_variance")  # of a batch norm
NOT_TRAINED = (*STATISTICS, "components")  # of whitening: computed from data too


class Feature(NamedTuple):
    """A feature map (batch, height, width, channels), or (batch, channels), of which only the shape is known."""

    shape: tuple[int | None, ...]


class Weight(NamedTuple):
    layer: str
    name: str
    shape: tuple[int, ...]


class Stage(NamedTuple):
    """An end point: `blocks` residual blocks (of the stem: convolutions), and its output size and channels."""

    name: str
    blocks: int
    size: int
    channels: int


@dataclass
class ShapeRecorder:
    """Implements `resnet.Layers` on shapes."""

    arch: Architecture
    weights: list[Weight] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    multiply_adds: int = 0  # of convolutions and dense layers
    depth: int = 0  # convolutions and dense layers on the longest path, as the papers count them

    def normalize(self, x: Feature) -> Feature:
        return x

    def conv(
        self, x: Feature, filters: int, kernel: int, stride: int = 1, *, groups: int = 1, outer: bool = False, name: str
    ) -> Feature:
        _, height, width, channels = x.shape
        shape = (kernel, kernel, (channels or 0) // groups, filters)
        self.weights.append(Weight(name, "kernel", shape))
        if self.arch.conv_bias == "all" or (outer and self.arch.conv_bias == "outer"):
            self.weights.append(Weight(name, "bias", (filters,)))
        height, width = (((side or 0) + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width))
        self.multiply_adds += prod(shape) * height * width
        self.depth += "_shortcut_" not in name
        return Feature((None, height, width, filters))

    def norm(self, x: Feature, *, zero_gamma: bool = False, name: str) -> Feature:
        for weight in ("gamma", "beta", *STATISTICS) if self.arch.batch_norm else ():
            self.weights.append(Weight(name, weight, (x.shape[-1] or 0,)))
        return x

    def relu(self, x: Feature, *, name: str) -> Feature:
        return x

    def dense(self, x: Feature, units: int, *, activation: str | None = None, name: str) -> Feature:
        inputs = x.shape[-1] or 0
        self.weights += [Weight(name, "kernel", (inputs, units)), Weight(name, "bias", (units,))]
        self.multiply_adds += inputs * units
        self.depth += activation is None  # not a gate's
        return Feature((*x.shape[:-1], units))

    def whiten(self, x: Feature, *, name: str) -> Feature:
        _, height, width, channels = x.shape
        shape = (2, 2, channels or 0, WHITENED)
        self.weights += [Weight(name, "components", shape), Weight(name, "bias", (WHITENED,))]
        height, width = (height or 0) - 1, (width or 0) - 1
        self.multiply_adds += prod(shape) * height * width
        self.depth += 1
        return Feature((None, height, width, WHITENED))

    def max_pool(self, x: Feature, size: int, *, name: str) -> Feature:
        margin = size % 2
        sides = [((side or 0) + 2 * margin - size) // 2 + 1 for side in x.shape[1:3]]
        if min(sides) < 1:
            raise UsageError(f"The images are too small for {self.arch.name}: nothing is left after {name}.")
        return Feature((None, *sides, x.shape[-1]))

    def average_pool(self, x: Feature, *, name: str) -> Feature:
        return self.pad_channels(x, x.shape[-1] or 0, 2, name=name)

    def global_pool(self, x: Feature, *, keepdims: bool = False, name: str) -> Feature:
        return Feature((None, 1, 1, x.shape[-1]) if keepdims else (None, x.shape[-1]))

    def pad_channels(self, x: Feature, filters: int, stride: int, *, name: str) -> Feature:
        return Feature((None, *(-(-(side or 0) // stride) for side in x.shape[1:3]), filters))

    def drop_path(self, x: Feature, depth: float, *, name: str) -> Feature:
        return x

    def add(self, x: Feature, y: Feature, *, name: str) -> Feature:
        assert x == y, f"{name}: the shortcut has shape {x.shape}, the branch {y.shape}"
        return y

    def multiply(self, x: Feature, y: Feature, *, name: str) -> Feature:
        return x

    def end_point(self, x: Feature, *, name: str) -> Feature:
        _, size, _, channels = x.shape
        blocks = self.arch.depths[len(self.stages) - 1] if self.stages else self.depth
        self.stages.append(Stage(name, blocks, size or 0, channels or 0))
        return x


@dataclass(frozen=True)
class Summary:
    """Weights, stages and cost of a network for one square image."""

    weights: tuple[Weight, ...]
    stages: tuple[Stage, ...]
    multiply_adds: int
    depth: int

    @property
    def training_operations(self) -> int:
        """Floating-point operations of a training step for each image.

        A multiply-add is two; each of the two gradients costs as much as the forward pass.
        """
        return 3 * 2 * self.multiply_adds

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(prod(weight.shape) for weight in self.weights if weight.name not in NOT_TRAINED)

    @property
    def parameters_and_statistics(self) -> int:
        """With the running means and variances of batch norms, as keras.applications counts."""
        return sum(prod(weight.shape) for weight in self.weights)


@lru_cache(maxsize=256)
def summarize(arch: Architecture, size: int | None = None, num_classes: int | None = None) -> Summary:
    """Weights, shapes and multiply-adds of `arch` for an image (size, size, 3); defaults are the architecture's own."""
    recorder = ShapeRecorder(arch)
    side = size or arch.reference_size
    residual_network(Feature((None, side, side, 3)), recorder, num_classes or arch.num_classes)
    return Summary(tuple(recorder.weights), tuple(recorder.stages), recorder.multiply_adds, recorder.depth)
