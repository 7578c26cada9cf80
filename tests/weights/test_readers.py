"""Forty shapes of PyTorch checkpoints: wrapper, prefix, ending, head. Each imports, or says exactly why not."""

import argparse
import datetime
import json
import os
import pathlib
import pickle
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resnetlab as rl
from resnetlab.data.pack import prepare_pack
from resnetlab.data.sources import Source, resolve
from resnetlab.errors import ResnetlabError
from resnetlab.inference.predictor import Predictor
from resnetlab.models import architecture
from resnetlab.models.variants import PREPROCESSING
from resnetlab.run_folder import RunFolder
from resnetlab.weights.convert import CIFAR10, import_checkpoint
from resnetlab.weights.mapping import recognise
from resnetlab.weights.readers import Checkpoint, read
from resnetlab.weights.state_dicts import unwrap_state_dict
from tests.models.randomised import randomised
from tests.models.reference import as_torch, empty_weights, randomise
from tests.workers import Workers

ARCH = architecture("resnet-tiny")  # with projections: downsample.0 and .1
WRAPPERS = (
    "bare",
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "nested",
    "lightning",
    "ema only",
    "live and ema",
    "trainer",
)
PREFIXES = ("", "module.", "model.", "_orig_mod.", "backbone.", "encoder.", "module._orig_mod.", "module.module.")
ENDINGS = (".pth", ".pt", ".th", ".pth.tar", ".ckpt", ".bin", "")
HEADS = ("fc", "linear", "classifier", "head.fc", "sequential", "none")
MATRIX = [(WRAPPERS[i % 10], PREFIXES[i % 8], ENDINGS[i % 7], HEADS[i % 6]) for i in range(40)]


def weights() -> dict[str, np.ndarray]:
    """A state dict in torchvision's names, with an `fc` of ten classes."""
    return as_torch(randomised(empty_weights(ARCH), 0), ARCH)


def with_head(arrays: dict[str, np.ndarray], head: str) -> dict[str, np.ndarray]:
    body = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    weight, bias = arrays["fc.weight"], arrays["fc.bias"]
    if head == "none":
        return body
    if head == "sequential":
        return body | {"fc.0.weight": weight, "fc.0.bias": bias, "fc.2.weight": weight[:, :10], "fc.2.bias": bias}
    return body | {f"{head}.weight": weight, f"{head}.bias": bias}


def write(path: str, wrapper: str, prefix: str, arrays: dict[str, np.ndarray]) -> None:
    import torch

    counters = {"bn1.num_batches_tracked": torch.tensor(7)}
    tensors = {prefix + name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    tensors |= {prefix + name: tensor for name, tensor in counters.items()}
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content: Any = {
        "bare": tensors,
        "state_dict": {"state_dict": tensors, "best_prec1": np.float64(91.7), "epoch": 3},
        "model": {"model": tensors, "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data"))},
        "model_state_dict": {"model_state_dict": tensors, "optimizer_state_dict": optimizer},
        "net": {"net": tensors, "acc": 93.1, "epoch": 200},
        "nested": {"checkpoint": {"model": {"state_dict": tensors}}, "time": datetime.datetime(2020, 1, 1)},
        "lightning": {"state_dict": tensors, "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "loops": {}},
        "ema only": {"state_dict_ema": tensors | {"n_averaged": torch.tensor(3)}},
        "live and ema": {"state_dict": tensors, "state_dict_ema": other},
        "trainer": {"model": tensors, "optimizer": optimizer, "scheduler": {"_step_count": 1}, "rng": torch.ones(9)},
    }[wrapper]
    torch.save(content, path)


def written_and_read(
    path: str, wrapper: str, prefix: str, arrays: dict[str, np.ndarray], key: str | None
) -> Checkpoint:
    write(path, wrapper, prefix, arrays)
    return read(path, key=key)


@pytest.mark.parametrize(("wrapper", "prefix", "ending", "head"), MATRIX)
def test_a_checkpoint_imports_or_says_why_not(
    on: Workers, tmp_path: Path, wrapper: str, prefix: str, ending: str, head: str
) -> None:
    expected = weights()
    path = str(tmp_path / f"net{ending}")
    arrays = with_head(expected, head)
    checkpoint = on("torch")(written_and_read, path=path, wrapper=wrapper, prefix=prefix, arrays=arrays, key=None)
    has_head = head not in ("sequential", "none")
    arch, naming, classes = recognise(checkpoint.arrays, head=has_head)
    assert (arch.name, naming.family, classes) == ("resnet-tiny", "torchvision", 10 if has_head else 1)
    for name, array in expected.items():
        if has_head or not name.startswith("fc."):
            np.testing.assert_array_equal(checkpoint.arrays[name], array, err_msg=name)
    if wrapper == "live and ema":
        assert "state_dict was taken" in str(checkpoint.note)
        assert "--key" in str(checkpoint.note)
    if has_head:
        assert not checkpoint.foreign_head
        return
    with pytest.raises(ResnetlabError, match="expected one linear layer") as error:
        import_checkpoint(checkpoint, tmp_path / "run")
    assert "resnetlab train DATA --weights" in str(error.value)
    assert "fc.0.weight (10, 64)" in str(error.value) if head == "sequential" else "no head among" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_other_set_of_weights_is_taken_by_its_key(on: Workers, tmp_path: Path) -> None:
    arguments = {"path": str(tmp_path / "x.pth"), "wrapper": "live and ema", "prefix": "module.", "arrays": weights()}
    averaged = on("torch")(written_and_read, key="state_dict_ema", **arguments)
    np.testing.assert_array_equal(averaged.arrays["conv1.weight"], weights()["conv1.weight"] + 1)


def test_weights_without_a_head_are_imported_to_be_trained_on(tmp_path: Path) -> None:
    run = import_checkpoint(Checkpoint("x.pth", with_head(weights(), "none")), tmp_path / "run", new_head=True)
    assert run.info().class_names == ("no head",)


def test_a_grey_scale_stem_is_named(tmp_path: Path) -> None:
    arrays = weights()
    arrays["conv1.weight"] = arrays["conv1.weight"][:, :1]
    with pytest.raises(ResnetlabError, match=r"conv1\.weight .*1 channel \(grey-scale\), expected 3"):
        import_checkpoint(Checkpoint("x.pth", arrays), tmp_path / "run")


def several_in_one(kind: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two networks in one state dict, the first with `arrays`, the second with others."""
    other = {name: array + 1 for name, array in arrays.items()}
    first, second, more = {
        "moco": ("module.encoder_q.", "module.encoder_k.", {"module.queue": np.ones((8, 4), np.float32)}),
        "moco v3": ("module.base_encoder.", "module.momentum_encoder.", {}),
        "byol": ("online_encoder.net.", "target_encoder.net.", {"online_predictor.weight": np.ones(3, np.float32)}),
        "distillation": ("student.", "teacher.", {}),
        "averaged": ("model.", "ema_model.module.", {"ema_model.n_averaged": np.array(3)}),
    }[kind]
    return {first + n: a for n, a in arrays.items()} | {second + n: a for n, a in other.items()} | more


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("moco", "state_dict.module.encoder_q", "encoder_k"),
        ("moco v3", "state_dict.module.base_encoder", "momentum_encoder"),
        ("byol", "state_dict.online_encoder", "target_encoder"),
        ("distillation", "state_dict.student", "teacher"),
        ("averaged", "state_dict.model", "ema_model"),
    ],
)
def test_of_two_networks_in_one_state_dict_the_live_one_is_taken_and_the_other_by_its_key(
    on: Workers, tmp_path: Path, kind: str, first: str, second: str
) -> None:
    arguments = {"path": str(tmp_path / "x.pth"), "wrapper": "state_dict", "prefix": ""}
    source = several_in_one(kind, weights())
    live = on("torch")(written_and_read, key=None, arrays=source, **arguments)
    assert f"{first} was taken" in str(live.note)
    assert str(live.note).endswith(second)
    other = on("torch")(written_and_read, key=second, arrays=source, **arguments)
    for name, array in weights().items():
        np.testing.assert_array_equal(live.arrays[name], array, err_msg=name)
        np.testing.assert_array_equal(other.arrays[name], array + 1, err_msg=name)
    assert recognise(live.arrays)[0].name == recognise(other.arrays)[0].name == "resnet-tiny"


def bare_checkpoint(arrays: dict[str, np.ndarray]) -> Checkpoint:
    found = unwrap_state_dict(arrays)
    return Checkpoint("x.pth", found.arrays, foreign_head=found.foreign_head)


def test_what_stands_beside_one_network_does_not_hide_it(tmp_path: Path) -> None:
    inside = {f"model.{name}": array for name, array in weights().items()}
    criterion = {"class_weights": np.ones(10, np.float32), "val_metric.sum": np.ones(1, np.float32)}
    assert unwrap_state_dict(inside | criterion).arrays.keys() == weights().keys()
    with pytest.raises(ResnetlabError, match=r"Nearest is 'resnet-tiny'.*: received extra\.bias, expected no such"):
        recognise(unwrap_state_dict(inside | {"extra.bias": np.ones(3, np.float32)}).arrays)


def test_a_second_head_after_the_network_is_not_taken_for_its_own(tmp_path: Path) -> None:
    after = {"fc.weight": np.ones((10, 10), np.float32), "fc.bias": np.ones(10, np.float32)}
    with pytest.raises(ResnetlabError, match=r"head\.fc\.weight \(10, 10\)"):
        import_checkpoint(bare_checkpoint({f"backbone.{n}": a for n, a in weights().items()} | after), tmp_path / "run")


def test_fastai_is_told_that_its_head_is_not_one_linear_layer(tmp_path: Path) -> None:
    body = {f"0.{name}": array for name, array in with_head(weights(), "none").items()}
    head = {"1.2.weight": np.ones(128, np.float32), "1.8.weight": np.ones((10, 128), np.float32)}
    with pytest.raises(ResnetlabError, match=r"not one linear layer \(head\.1\.2\.weight \(128,\)"):
        import_checkpoint(bare_checkpoint(body | head), tmp_path / "run")


@pytest.mark.parametrize("unit", [1, 255])
@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ("mean", "std")),
        ("1.", ("0.mean", "0.std")),
        ("module.model.", ("module.normalizer.new_mean", "module.normalizer.new_std")),
        ("backbone.", ("data_preprocessor.mean", "data_preprocessor.std")),
    ],
)
def test_a_normalisation_inside_the_network_is_taken_over_or_refused(
    on: Workers, tmp_path: Path, prefix: str, names: tuple[str, str], unit: int
) -> None:
    network = {prefix + name: array for name, array in weights().items()}
    arguments = {"path": str(tmp_path / "x.pth"), "wrapper": "model", "prefix": "", "key": None}
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    values = [np.array(value, np.float32).reshape(3, 1, 1) * unit for value in (mean, std)]
    found = on("torch")(written_and_read, arrays=network | dict(zip(names, values, strict=True)), **arguments)
    assert found.settings == {"preprocessing": "kuangliu"}
    assert recognise(found.arrays)[0].name == "resnet-tiny"
    strange = on("torch")(
        refusal, arrays=network | dict(zip(names, [values[0], values[1] * 2], strict=True)), **arguments
    )
    assert "std=[0.4046, 0.3988, 0.402]" in strange


def refusal(**arguments: Any) -> str:
    with pytest.raises(ResnetlabError) as error:
        written_and_read(**arguments)
    return str(error.value)


def save_and_read(path: str, kind: str, arrays: dict[str, np.ndarray]) -> Checkpoint | str:
    import collections
    import fractions

    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    broken = tensors | {"bn1.bias": torch.full((16,), float("nan"))}
    content: Any = {
        "list": [tensors],
        "pair": (tensors, 3),
        "list inside": {"models": [tensors]},
        "values": {
            "state_dict": tensors,
            "range": range(3),
            "queue": collections.deque([1, 2]),
            "version": torch.__version__,
            "ratio": fractions.Fraction(1, 2),
        },
        "optimizer": optimizer.state_dict(),
        "numpy": arrays,
        "not finite": broken,
    }[kind]
    torch.save(content, path)
    try:
        return read(path)
    except ResnetlabError as error:
        return str(error)


@pytest.mark.parametrize("kind", ["list", "pair", "list inside", "values"])
def test_lists_and_the_values_that_scripts_leave_beside_weights(on: Workers, tmp_path: Path, kind: str) -> None:
    found = on("torch")(save_and_read, path=str(tmp_path / "x.pth"), kind=kind, arrays=weights())
    assert isinstance(found, Checkpoint), found
    np.testing.assert_array_equal(found.arrays["conv1.weight"], weights()["conv1.weight"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("optimizer", "the state of an optimizer"),
        ("numpy", "conv1.weight: not a tensor"),
        ("not finite", "bn1.bias has 16 values that are not finite, of 16"),
    ],
)
def test_what_is_no_state_dict_is_named(on: Workers, tmp_path: Path, kind: str, message: str) -> None:
    assert message in on("torch")(save_and_read, path=str(tmp_path / "x.pth"), kind=kind, arrays=weights())


def test_folders_of_other_layouts_are_named(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ResnetlabError, match=r"torch\.distributed.*dcp_to_torch"):
        read(str(tmp_path))
    (tmp_path / ".metadata").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ResnetlabError, match=r"several files \(model\.safetensors\.index\.json\)"):
        read(str(tmp_path))


def test_cifar_networks_with_projections_are_recognised_with_their_usual_normalisation() -> None:
    for name in ("resnet20-b", "resnet56-b", "cifar-resnet18"):
        arch = architecture(name)
        assert recognise(unwrap_state_dict(as_torch(empty_weights(arch, 10), arch)).arrays)[0].name == name
        mean, std = PREPROCESSING[arch.preprocessing]
        np.testing.assert_allclose(mean, np.multiply((0.4914, 0.4822, 0.4465), 255), atol=1e-2)
        np.testing.assert_allclose(std, np.multiply((0.2023, 0.1994, 0.2010), 255), atol=1e-2)


class Harmful:
    """What is pickled of it creates a file when it is unpickled carelessly."""

    def __init__(self, harmed: str) -> None:
        self.harmed = harmed

    def __reduce__(self) -> Any:
        return os.system, (f"touch {shlex.quote(self.harmed)}",)


def write_harmful(path: str, harmed: str) -> str:
    import torch

    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "extra": Harmful(harmed)}, path)
    try:
        read(path)
    except ResnetlabError as error:
        return str(error)
    return "read"


def test_a_refused_global_is_named_and_nothing_is_run(on: Workers, tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    message = on("torch")(write_harmful, path=str(tmp_path / "x.pth"), harmed=str(harmed))
    assert "system" in message
    assert "nothing of it was run" in message
    assert not harmed.exists()
    pickle.loads(pickle.dumps(Harmful(str(harmed))))
    assert harmed.exists()  # so it would have been seen


@pytest.mark.long
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_our_own_whitening_stem_is_read_back(ending: str, tmp_path: Path) -> None:
    network = rl.build("fast-resnet8", num_classes=4, input_shape=(16, 16, 3))
    randomise(network)
    path = tmp_path / f"fast{ending}"
    network.save(path) if ending == ".keras" else network.save_weights(path)
    run = rl.from_pretrained(path, run=tmp_path / "run", model="fast-resnet8", image_size=16)
    for array, saved in zip(run.model.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(array, saved)


def cifar10_test_images() -> Source:
    """CIFAR-10 with all of its test images and, as a pack needs some, every hundredth training image."""
    whole = resolve("cifar10")
    kept = [row for row, sample in enumerate(whole.samples) if sample.subset == "test" or row % 100 == 0]
    images = None if whole.images is None else whole.images[kept]
    return replace(whole, samples=tuple(whole.samples[row] for row in kept), images=images)


@pytest.mark.parametrize(
    ("file", "right"),
    [
        ("resnet20-12fca82f.th", 9173),
        pytest.param("resnet56-4bfd9763.th", 9339, marks=[pytest.mark.long, pytest.mark.benchmark]),
    ],
)
def test_public_cifar_weights_give_their_published_errors_to_the_image(
    on: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, right: int
) -> None:
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path))
    source = Path(os.environ.get("RESNETLAB_DATA", "-"), "weights", file)
    if not source.is_file():
        pytest.skip("RESNETLAB_DATA is not set: no public weights here")
    run = import_checkpoint(on("torch")(read, source=str(source)), tmp_path / file)
    predictor = Predictor(RunFolder.open(run.path))
    assert predictor.class_names == CIFAR10
    pack = prepare_pack(cifar10_test_images(), predictor.recipe)
    assert sorted(pack.class_names) == sorted(CIFAR10)
    test = pack.indices("test")
    found = np.array([CIFAR10.index(name) for name in pack.class_names])[pack.labels[test]]
    logits = predictor.logits(pack.images, test)
    assert (len(test), int((logits.argmax(axis=1) == found).sum())) == (10_000, right)
    told = json.loads((run.path / "import.json").read_text())
    assert told["assumed"][0] == "shortcut padding both"
