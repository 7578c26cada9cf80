"""The table against published numbers, against arithmetic by hand, and against the networks that are built of it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from resnetlab.errors import UsageError
from resnetlab.models import VARIANTS, Architecture, architecture, build, summarize

PUBLISHED = {  # parameters at 1000 classes: torchvision, timm, keras.applications (with running statistics)
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "keras-resnet50": 25_636_712,
    "keras-resnet101": 44_707_176,
    "keras-resnet152": 60_419_944,
    "keras-resnet50v2": 25_613_800,
    "keras-resnet101v2": 44_675_560,
    "keras-resnet152v2": 60_380_648,
    "resnext50-32x4d": 25_028_904,
    "resnext101-32x8d": 88_791_336,
    "wide-resnet50-2": 68_883_240,
    "wide-resnet101-2": 126_886_696,
    "resnet50d": 25_576_264,
    "se-resnet50": 28_088_024,
}
ROUNDED = {  # millions at 10 classes, as the papers' tables give them: He 2015, He 2016, Zagoruyko 2016
    "resnet20": "0.27",
    "resnet32": "0.46",
    "resnet44": "0.66",
    "resnet56": "0.85",
    "resnet110": "1.7",
    "resnet1202": "19.4",
    "preresnet164": "1.7",
    "wrn-16-8": "11.0",
    "wrn-28-10": "36.5",
}
EXACT_CIFAR = {  # what independent PyTorch implementations print
    "resnet20": 269_722,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    "wrn-28-10": 36_479_194,
    "preresnet1001": 10_327_706,
}
PAPER_MULTIPLY_ADDS = {  # He 2015, table 1
    "resnet18-v1": 1.8e9,
    "resnet34-v1": 3.6e9,
    "resnet50-v1": 3.8e9,
    "resnet101-v1": 7.6e9,
    "resnet152-v1": 11.3e9,
}
TORCHVISION_GMACS = {  # torchvision's table of pre-trained weights, whose column is called GFLOPS
    "resnet18": 1.81,
    "resnet34": 3.66,
    "resnet50": 4.09,
    "resnet101": 7.80,
    "resnet152": 11.51,
    "resnext50-32x4d": 4.23,
    "resnext101-32x8d": 16.41,
    "wide-resnet50-2": 11.40,
    "wide-resnet101-2": 22.75,
}
BUILT_WHOLE = ("resnet18", "resnet50", "keras-resnet50", "keras-resnet50v2", "se-resnet50", "resnet110", "wrn-16-8")


def counted(arch: Architecture) -> int:
    """Parameters as the published count has them."""
    summary = summarize(arch)
    return summary.parameters_and_statistics if arch.counts_statistics else summary.parameters


def small(arch: Architecture) -> Architecture:
    """The same row with at most two blocks in a stage, and a quarter as wide: with every kind of block it has."""
    narrow = {"widths": tuple(width // 4 for width in arch.widths), "stem_width": arch.stem_width // 4}
    return replace(arch, depths=tuple(min(depth, 2) for depth in arch.depths), **narrow)


# Rows that differ in more than depth, name and paper: building one of each kind builds every kind of block there is.
DISTINCT = {replace(small(row), name="", paper=""): name for name, row in VARIANTS.items()}.values()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    arch = VARIANTS[name]
    assert counted(arch) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.published_parameters])
def test_rows_have_the_parameters_that_they_state(name: str) -> None:
    arch = VARIANTS[name]
    assert counted(arch) == arch.published_parameters


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_round_to_those_of_the_papers(name: str) -> None:
    digits = len(ROUNDED[name].partition(".")[2])
    assert f"{summarize(VARIANTS[name]).parameters / 1e6:.{digits}f}" == ROUNDED[name]


@pytest.mark.parametrize("name", EXACT_CIFAR)
def test_parameters_are_those_of_other_implementations(name: str) -> None:
    assert summarize(VARIANTS[name]).parameters == EXACT_CIFAR[name]


def test_he_2016_counts_preresnet1001_without_batch_norm() -> None:
    arch = VARIANTS["preresnet1001"]  # 10.2 M in the paper's table 4; 10.3 M with gammas and betas
    in_batch_norm = sum(shape[0] for _, weight, shape in summarize(arch).weights if weight in ("gamma", "beta"))
    assert f"{(summarize(arch).parameters - in_batch_norm) / 1e6:.1f}" == "10.2"


@pytest.mark.parametrize("name", PAPER_MULTIPLY_ADDS)
def test_multiply_adds_are_those_of_he_2015(name: str) -> None:
    assert summarize(VARIANTS[name], 224).multiply_adds == pytest.approx(PAPER_MULTIPLY_ADDS[name], rel=0.02)


@pytest.mark.parametrize("name", TORCHVISION_GMACS)
def test_multiply_adds_are_those_of_torchvision(name: str) -> None:
    assert summarize(VARIANTS[name], 224).multiply_adds / 1e9 == pytest.approx(TORCHVISION_GMACS[name], abs=0.0051)


def test_multiply_adds_of_resnet20_by_hand() -> None:
    stem = 3 * 16 * 9 * 32**2
    stage1 = 6 * (16 * 16 * 9 * 32**2)
    stage2 = 16 * 32 * 9 * 16**2 + 5 * (32 * 32 * 9 * 16**2)
    stage3 = 32 * 64 * 9 * 8**2 + 5 * (64 * 64 * 9 * 8**2)
    assert summarize(VARIANTS["resnet20"], 32).multiply_adds == stem + stage1 + stage2 + stage3 + 64 * 10


@pytest.mark.parametrize("name", VARIANTS)
def test_depth_is_the_one_in_the_name(name: str) -> None:
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    if name == "resnet-tiny":
        assert summarize(VARIANTS[name]).depth == 8
    elif name.startswith("wrn"):  # "total number of convolutional layers" (Zagoruyko 2016): with the projections
        assert sum(len(shape) == 4 for _, _, shape in summarize(VARIANTS[name]).weights) == int(digits[0])
    elif VARIANTS[name].stem == "deep":  # whose three 3x3s are named after the one 7x7 they replace
        assert summarize(VARIANTS[name]).depth - 2 == int(digits[0])
    else:
        assert summarize(VARIANTS[name]).depth == int(digits[0])


def built_parameters(model: keras.Model) -> tuple[int, int]:
    """Trainable parameters, and all of them with the running statistics."""
    trainable, frozen = (
        sum(int(np.prod(w.shape)) for w in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    )
    return trainable, trainable + frozen


def built_multiply_adds(model: keras.Model) -> int:
    """From the shapes of the built layers alone: each weight of a kernel is used once at each place it writes to."""
    total = 0
    for layer in model.layers:
        if (kernel := getattr(layer, "kernel", getattr(layer, "components", None))) is not None:
            _, *sides, _ = layer.output.shape
            total += int(np.prod(kernel.shape)) * int(np.prod(sides))
    return total


@pytest.mark.parametrize("name", DISTINCT)
def test_weights_counts_and_shapes_are_those_of_the_built_network(name: str) -> None:
    arch, size = small(VARIANTS[name]), 49  # odd at every stage: 49, 25, 13, 7
    model, summary = build(arch, num_classes=7, input_shape=(size, size, 3)), summarize(arch, size, 7)
    built = [(layer.name, weight.name, tuple(weight.shape)) for layer in model.layers for weight in layer.weights]
    assert sorted(summary.weights) == sorted(built)
    assert (summary.parameters, summary.parameters_and_statistics) == built_parameters(model)
    assert summary.multiply_adds == built_multiply_adds(model)
    for endpoint, _, side, channels in summary.stages:
        assert model.get_layer(endpoint).output.shape == (None, side, side, channels)
    keras.backend.clear_session()


@pytest.mark.parametrize("name", BUILT_WHOLE)
def test_counts_are_those_of_the_whole_network_at_its_reference_size(name: str) -> None:
    arch = VARIANTS[name]
    model = build(arch, input_shape=(arch.reference_size, arch.reference_size, 3))
    summary = summarize(arch)
    assert (summary.parameters, summary.parameters_and_statistics) == built_parameters(model)
    assert summary.multiply_adds == built_multiply_adds(model)
    assert [blocks for _, blocks, *_ in summary.stages[1:]] == list(arch.depths)
    keras.backend.clear_session()


def test_counts_without_batch_norm_are_those_of_the_built_network() -> None:
    arch = replace(small(VARIANTS["resnet20"]), batch_norm=False, conv_bias="all")
    model, summary = build(arch, num_classes=7), summarize(arch, num_classes=7)
    assert (summary.parameters, summary.parameters_and_statistics) == built_parameters(model)
    assert not [layer for layer in model.layers if "bn" in layer.name]


LEGAL = {"name": "mine", "paper": "none", "depths": (1, 1, 1, 1), "block": "bottleneck"}
ILLEGAL = [
    ({"block": "botleneck"}, "block='botleneck'", "'bottleneck'"),
    ({"stem": "big"}, "stem='big'", "'imagenet'"),
    ({"shortcut": "E"}, "shortcut='E'", "'none'"),
    ({"depths": (1, 1, 1)}, "depths=(1, 1, 1)", "one positive number of blocks for each width"),
    ({"depths": (1, 0, 1, 1)}, "depths=(1, 0, 1, 1)", "one positive number of blocks for each width"),
    ({"depths": (), "widths": ()}, "depths=()", "one positive number of blocks for each width"),
    ({"groups": 0}, "groups=0", "at least 1"),
    ({"width_factor": -1}, "width_factor=-1", "at least 1"),
    ({"num_classes": 0}, "num_classes=0", "at least 1"),
    ({"block": "basic", "groups": 32}, "groups=32", "bottleneck"),
    ({"block": "basic", "base_width": 128}, "base_width=128", "bottleneck"),
    ({"preactivation": True, "shortcut": "none"}, "pre-activation", "a shortcut"),
    ({"zero_init_last": True, "shortcut": "none"}, "zero_init_last", "with shortcuts"),
    ({"zero_init_last": True, "preactivation": True}, "zero_init_last", "post-activation"),
    ({"batch_norm": False}, "batch_norm=False with conv_bias='none'", "conv_bias='all'"),
    ({"squeeze_reduction": 16, "shortcut": "none"}, "squeeze_reduction=16 without shortcuts", "with shortcuts"),
    ({"squeeze_reduction": 1024}, "squeeze_reduction=1024", "at most the channels"),
]


@pytest.mark.parametrize(("changes", "received", "expected"), ILLEGAL)
def test_an_illegal_combination_says_what_was_received_and_expected(
    changes: dict[str, object], received: str, expected: str
) -> None:
    assert Architecture(**LEGAL).name == "mine"
    with pytest.raises(UsageError) as error:
        Architecture(**(LEGAL | changes))
    message = str(error.value)
    assert "'mine'" in message
    assert received in message.partition("expected")[0]
    assert expected in message.partition("expected")[2]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'resnet51'.*Did you mean.*'resnet50'"):
        architecture("resnet51")
    assert architecture("resnet50").name == "resnet50"


FORMER = json.loads((Path(__file__).parent.parent / "fixtures" / "architectures-0.1.json").read_text())


def test_the_variants_are_those_of_the_former_version() -> None:
    assert set(FORMER) <= set(VARIANTS)


@pytest.mark.parametrize("name", FORMER)
def test_counts_names_and_shapes_are_those_of_the_former_version(name: str) -> None:
    arch, summary, former = VARIANTS[name], summarize(VARIANTS[name]), FORMER[name]
    weights = sorted([layer, weight, list(shape)] for layer, weight, shape in summary.weights)
    if "weight_list" in former:
        assert weights == former["weight_list"]
    assert hashlib.sha256(json.dumps(weights).encode()).hexdigest() == former["weights_sha256"]
    assert [list(stage) for stage in summary.stages] == former["stages"]
    assert (summary.parameters, summary.parameters_and_statistics, summary.multiply_adds, summary.depth) == (
        former["parameters"],
        former["with_statistics"],
        former["multiply_adds"],
        former["depth"],
    )
    assert (arch.paper, arch.published_parameters) == (former["paper"], former["published_parameters"])
