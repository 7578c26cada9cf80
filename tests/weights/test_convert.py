"""Other people's weights: each array used once or none at all, nothing in a file run, and a run folder at the end."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.inference.predictor import Predictor
from resnetlab.models import VARIANTS, build
from resnetlab.run_folder import RunFolder
from resnetlab.weights import importing as importing_module
from resnetlab.weights import parity
from resnetlab.weights.arrays import collect_arrays
from resnetlab.weights.convert import assign_weights, import_checkpoint
from resnetlab.weights.libraries import require_known_architecture
from resnetlab.weights.mapping import also_fitting, keras_applications, recognise, torchvision
from resnetlab.weights.readers import Checkpoint, find_class_names, read
from tests.models.randomised import randomised
from tests.models.reference import as_torch, assert_close, empty_weights, logits_of
from tests.workers import Workers

Arrays = dict[str, np.ndarray]
TINY = replace(VARIANTS["resnet18"], depths=(1, 1, 1, 1), widths=(4, 4, 8, 8), stem_width=4, name="tiny")


def tiny_source() -> tuple[keras.Model, Arrays]:
    """A small network, and random weights for it under torchvision's names."""
    model = build(TINY, num_classes=5)
    return model, as_torch(randomised(collect_arrays(model)), TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("layer2.0.conv1.weight"), "received no layer2.0.conv1.weight, expected it for stage2_block1"),
        (lambda a: a.update({"layer5.bias": np.zeros(3)}), "received layer5.bias, expected no such array"),
        (
            lambda a: a.update({"fc.weight": np.zeros((7, 8))}),
            "fc.weight: received (8, 7), expected (8, 5) for head_logits/kernel",
        ),
    ],
)
def test_porting_accepts_nothing_missing_left_over_or_misshapen(change: object, message: str) -> None:
    model, source = tiny_source()
    before = collect_arrays(model)
    change(source)
    with pytest.raises(ResnetlabError) as error:
        assign_weights(model, source, torchvision(TINY))
    assert message in str(error.value)
    for name, array in collect_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_porting_ignores_only_the_step_counts_of_pytorch() -> None:
    model, source = tiny_source()
    assign_weights(model, source | {"bn1.num_batches_tracked": np.array(3)}, torchvision(TINY))
    np.testing.assert_array_equal(collect_arrays(model)["stem_bn1/beta"], source["bn1.bias"])


# ------------------------------------------------------------------------------------------------- recognising
@pytest.fixture(scope="module")
def resnet18() -> Arrays:
    """Random weights of ResNet-18 for 3 classes under torchvision's names."""
    arch = VARIANTS["resnet18"]
    return as_torch(randomised(empty_weights(arch, 3)), arch)


def test_rows_of_the_same_shapes_are_told_apart_by_the_stride_or_by_name() -> None:
    arch = VARIANTS["resnet50"]
    source = as_torch(empty_weights(arch, 3), arch)
    assert recognise(source)[0].name == "resnet50"
    assert recognise(source, stride_on="1x1")[0].name == "resnet50-v1"
    assert recognise(source, model="resnet50-v1")[0].name == "resnet50-v1"
    assert recognise(source)[2] == 3


@pytest.mark.parametrize("row", ["resnext50-32x4d", "resnet101d", "wide-resnet101-2", "resnet34d", "plain34"])
def test_every_kind_of_block_is_recognised(row: str) -> None:
    arch = VARIANTS[row]
    assert recognise(as_torch(empty_weights(arch), arch))[0].name == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("layer3.0.bn1.bias"), "received no layer3.0.bn1.bias, expected it for stage3_block1_bn1/beta"),
        (lambda a: a.update({"aux.weight": np.zeros(3)}), "received aux.weight, expected no such array"),
        (
            lambda a: a.update({"bn1.weight": np.zeros(32)}),
            "bn1.weight: received (32,), expected (64,) for stem_bn1/gamma",
        ),
    ],
)
def test_what_is_nearly_a_network_is_refused_and_the_difference_named(
    resnet18: Arrays, change: Callable[[Arrays], Any], message: str
) -> None:
    source = dict(resnet18)
    change(source)
    with pytest.raises(ResnetlabError, match="Nearest is 'resnet18' as torchvision names it") as error:
        recognise(source)
    assert message in str(error.value)


def test_weights_of_another_architecture_than_the_one_named_are_refused(resnet18: Arrays) -> None:
    with pytest.raises(ResnetlabError, match=r"These are not the weights of 'resnet34'.*and \d+ more"):
        recognise(resnet18, model="resnet34")
    with pytest.raises(UsageError, match="Unknown model 'resnet35'"):
        recognise(resnet18, model="resnet35")


# ----------------------------------------------------------------------------------------- files, read as data
def test_keras_files_of_every_kind_hold_the_same_arrays(tmp_path: Path) -> None:
    model = keras.applications.ResNet50(weights=None, classes=3, input_shape=(32, 32, 3))
    for layer in model.layers:
        layer.set_weights(
            [np.asarray(w) for w in randomised({f"{i}": w for i, w in enumerate(layer.get_weights())}).values()]
        )
    expected = collect_arrays(model)
    model.save_weights(tmp_path / "new.weights.h5")
    model.save(tmp_path / "model.keras")
    with h5py.File(tmp_path / "old.h5", "w") as file:  # as keras.applications' published files are laid out
        for path, array in expected.items():
            file[f"{path.split('/')[0]}/{path}:0"] = array
        file["optimizer_weights/SGD/iter:0"] = np.zeros(())
    for name in ("new.weights.h5", "model.keras", "old.h5"):
        received = read(str(tmp_path / name)).arrays
        assert received.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(received[key], expected[key])
    assert recognise(received)[0].name == "keras-resnet50"
    keras.backend.clear_session()


def test_a_lambda_layer_is_refused_and_not_run(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(2)])
    keras.Sequential([keras.Input((4,)), inner]).save(tmp_path / "lambda.keras")
    with pytest.raises(ResnetlabError, match=r"has a Lambda layer.*refused, and nothing of it was run"):
        read(str(tmp_path / "lambda.keras"))


def test_a_file_that_points_into_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(400))
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("a/kernel", (100,), "f4", external=[(str(tmp_path / "secret"), 0, 400)])
    with pytest.raises(ResnetlabError, match="/a/kernel refers to other files: refused"):
        read(str(tmp_path / "outside.h5"))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["b/kernel"] = np.ones(3)
        file["c"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "/a")
    with pytest.raises(ResnetlabError, match=r"c refers to the file .*outside\.h5: refused"):
        read(str(tmp_path / "link.h5"))


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("a/kernel", (1 << 40,), "f4", chunks=(1 << 20,))
    with pytest.raises(ResnetlabError, match="a/kernel, with all before it, claims 4,398,046,511,104 bytes"):
        read(str(tmp_path / "bomb.h5"))


@pytest.mark.parametrize("name", ["half.h5", "half.safetensors", "half.keras", "half.pth", "empty.h5", "text.pth"])
def test_damaged_files_are_told(name: str, tmp_path: Path, on: Workers) -> None:
    arrays = {"a": np.arange(1000, dtype=np.float32)}
    path, kind = tmp_path / name, name.split(".")[1]
    if name == "text.pth":
        path.write_text("hello")
    elif name == "empty.h5":
        path.write_bytes(b"")
    else:
        if kind == "h5":
            with h5py.File(path, "w") as file:
                file["a"] = arrays["a"]
        elif kind == "safetensors":
            save_file(arrays, path)
        elif kind == "keras":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("config.json", "{}")
        else:
            on("torch")(save_with_torch, path=path, arrays=arrays)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = on("torch")(refusal, source=str(path))
    assert message.startswith(str(path)), message


class Runs:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def save_with_torch(path: Path, arrays: dict[str, Any], harmful: Path | None = None) -> None:
    import torch

    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors | ({"harm": Runs(harmful)} if harmful else {}), path)


def read_arrays(source: str) -> Arrays:
    return read(source).arrays


def refusal(source: str) -> str:
    with pytest.raises(ResnetlabError) as error:
        read(source)
    return str(error.value)


def test_a_pickle_with_a_program_in_it_is_refused_and_not_run(tmp_path: Path, on: Workers) -> None:
    on("torch")(save_with_torch, path=tmp_path / "new.pth", arrays={"a": np.ones(2)}, harmful=tmp_path / "harm")
    with (tmp_path / "old.pth").open("wb") as file:
        pickle.dump({"harm": Runs(tmp_path / "harm")}, file)
    for name in ("new.pth", "old.pth"):
        assert "refused, and nothing of it was run" in on("torch")(refusal, source=str(tmp_path / name))
    assert not (tmp_path / "harm").exists()


def training_checkpoint(path: Path, arrays: Arrays) -> None:
    import torch

    state = {f"module.{name}": torch.from_numpy(array).half() for name, array in arrays.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, path)


def test_a_training_checkpoint_holds_the_state_dict(tmp_path: Path, on: Workers) -> None:
    arrays = {"conv1.weight": np.array([1.5, 2.0], np.float32), "layer1.0.conv1.weight": np.ones(2, np.float32)}
    on("torch")(training_checkpoint, path=tmp_path / "last.pth", arrays=arrays)
    received = on("torch")(read_arrays, source=str(tmp_path / "last.pth"))
    assert received.keys() == arrays.keys()
    assert received["conv1.weight"].dtype == np.float32
    np.testing.assert_array_equal(received["conv1.weight"], arrays["conv1.weight"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-thing", "expected a weights file"),
        ("{folder}", "expected config.json and one of model.safetensors"),
        ("{folder}/notes.txt", "is not that of a PyTorch, safetensors, HDF5 or Keras file"),
    ],
)
def test_what_are_no_weights_is_wrong_usage(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=message):
        read(source.format(folder=tmp_path))


def test_without_a_network_it_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: object) -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.applications, "ResNet50V2", offline)
    with pytest.raises(ResnetlabError) as error:
        read("resnet50v2")
    assert "resnet50v2_weights_tf_dim_ordering_tf_kernels.h5" in str(error.value)
    assert f"put it into {tmp_path}/models" in str(error.value)


# ------------------------------------------------------------------------------------- what travels with weights
def hub_folder(folder: Path, arrays: Arrays, config: dict[str, Any], **files: Any) -> Path:
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors")
    for name, value in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n", "utf-8")
    return folder


def test_what_transformers_says_travels_with_the_weights(tmp_path: Path) -> None:
    folder = hub_folder(
        tmp_path / "net",
        {"a": np.ones(2, np.float16)},
        {
            "model_type": "resnet",
            "downsample_in_bottleneck": True,
            "id2label": {"10": "crane", "0": "Pepper,_bell", "2": "crane"},
        },
        preprocessor_config={
            "crop_pct": 0.9,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
            "size": {"shortest_edge": 256},
        },
    )
    found = read(str(folder))
    assert found.settings == {"image_size": 256, "crop_pct": 0.9, "interpolation": "bicubic", "preprocessing": "unit"}
    assert (found.class_names, found.licence, found.stride_on) == (
        ("Pepper,_bell", "crane", "crane (2)"),
        "apache-2.0",
        "1x1",
    )
    assert found.arrays["a"].dtype == np.float32


def test_what_timm_says_travels_with_the_weights(tmp_path: Path) -> None:
    told = {
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "crop_pct": 0.875,
        "test_crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "license": "cc-by-nc-4.0",
    }
    config = {"architecture": "resnet50", "pretrained_cfg": told, "label_names": ["cat", "dog"]}
    found = read(str(hub_folder(tmp_path / "net", {"a": np.ones(2, np.float32)}, config)))
    assert found.settings == {
        "image_size": 288,
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "preprocessing": "imagenet",
    }
    assert (found.class_names, found.licence, found.stride_on) == (("cat", "dog"), "cc-by-nc-4.0", "3x3")
    assert found.architecture == "resnet50"
    config["model_args"] = {"act_layer": "silu"}
    with pytest.raises(ResnetlabError, match="model_args"):
        read(str(hub_folder(tmp_path / "other", {"a": np.ones(2, np.float32)}, config)))


@pytest.mark.parametrize("config", [{"hidden_act": "gelu"}, {"downsample_in_first_stage": True}])
def test_another_network_of_transformers_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = hub_folder(tmp_path / "net", {"a": np.ones(2, np.float32)}, {"model_type": "resnet", **config})
    with pytest.raises(ResnetlabError, match=next(iter(config))):
        read(str(folder))


def test_a_processor_that_does_not_crop_is_told(tmp_path: Path) -> None:
    said = {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.95}
    for size in (224, 384):
        processor = said | {"size": {"shortest_edge": size}}
        folder = hub_folder(
            tmp_path / f"{size}", {"a": np.ones(2, np.float32)}, {"model_type": "resnet"},
            preprocessor_config=processor,
        )  # fmt: skip
        note = read(str(folder)).note
        assert ("square" in note) if note else size == 224


def test_the_first_of_imagenets_synonyms_is_the_name(tmp_path: Path) -> None:
    labels = {str(number): f"name {number}, other name" for number in range(1000)}
    config = {"model_type": "resnet", "id2label": labels}
    found = read(str(hub_folder(tmp_path / "net", {"a": np.ones(2, np.float32)}, config)))
    assert found.class_names == tuple(f"name {number}" for number in range(1000))


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "tv_resnet50", "ssl_resnext101_32x8d", "gluon_resnet18_v1b"])
def test_names_of_timm_for_networks_of_ours(name: str) -> None:
    require_known_architecture("x", name)


def test_a_network_of_timm_with_the_shapes_of_another_is_refused(tmp_path: Path) -> None:
    arch = VARIANTS["resnet18"]
    arrays = as_torch(randomised(empty_weights(arch, 3)), arch)
    config = {"architecture": "resnetblur18", "pretrained_cfg": {}}
    source = read(str(hub_folder(tmp_path / "net", arrays, config)))
    with pytest.raises(ResnetlabError, match="'resnetblur18', which is not among those known here"):
        import_checkpoint(source, tmp_path / "run", check=False)
    import_checkpoint(source, tmp_path / "run", model="resnet18", check=False)


def test_a_head_of_one_logit_is_refused(tmp_path: Path) -> None:
    arch = VARIANTS["resnet18"]
    save_file(as_torch(randomised(empty_weights(arch, 1)), arch), tmp_path / "cat-or-dog.safetensors")
    source = read(str(tmp_path / "cat-or-dog.safetensors"))
    with pytest.raises(ResnetlabError, match="one logit"):
        import_checkpoint(source, tmp_path / "run")
    assert import_checkpoint(source, tmp_path / "run", new_head=True, check=False).info().class_names == ("class 0",)


@pytest.mark.parametrize("preprocessing", ["caffe", "imagenet"])
def test_the_check_prepares_images_as_the_import_does(preprocessing: str) -> None:
    arch, pixels = VARIANTS["keras-resnet50"], parity.images(32)
    assert arch.preprocessing == "caffe"
    model = build(replace(arch, preprocessing=preprocessing), num_classes=3, input_shape=(32, 32, 3))
    theirs = keras.applications.ResNet50(weights=None, classes=3, classifier_activation=None, input_shape=(32, 32, 3))
    arrays = collect_arrays(theirs)
    assign_weights(model, arrays, keras_applications(arch))
    found, _ = parity._keras(arrays, arch, pixels, preprocessing)
    assert_close(np.asarray(model.predict_on_batch(pixels)), found)


def test_networks_with_the_same_shapes_are_named(tmp_path: Path) -> None:
    assert also_fitting(VARIANTS["resnet20"]) == ["plain20"]
    assert also_fitting(VARIANTS["resnet18"]) == []
    assert "resnet50-v1" in also_fitting(VARIANTS["resnet50"])
    arch = VARIANTS["plain20"]
    save_file(dict(randomised(empty_weights(arch, 3))), tmp_path / "net.safetensors")
    source = read(str(tmp_path / "net.safetensors"))
    told = import_checkpoint(source, tmp_path / "run", check=False).read_json("import.json")["assumed"]
    assert "architecture (plain20 has the same shapes)" in told
    told = import_checkpoint(source, tmp_path / "again", model="plain20", check=False).read_json("import.json")
    assert not any(each.startswith("architecture") for each in told["assumed"])


def test_imagenets_classes_are_a_thousand_different_ones_in_their_order() -> None:
    names = find_class_names(Checkpoint("x", {}), 1000)
    assert len(set(names)) == 1000
    assert (names[0], names[281], names[817], names[999]) == ("tench", "tabby", "sports car", "toilet tissue")
    assert find_class_names(Checkpoint("x", {}), 3) == ("class 0", "class 1", "class 2")


# --------------------------------------------------------------------------------------------------- run folders
def transformers_folder(folder: Path) -> Arrays:
    """A ResNet of the transformers library, saved as it saves, and its logits for the images of the check."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    labels = dict(enumerate(("cat", "dog", "owl")))
    config = ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=3, id2label=labels
    )
    model = ResNetForImageClassification(config).eval()
    drawn = randomised(collect_arrays(model.state_dict()))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in drawn.items()}, strict=False)
    model.save_pretrained(folder)
    return drawn


def test_a_ported_run_predicts_what_its_source_does_and_says_where_it_is_from(tmp_path: Path, on: Workers) -> None:
    drawn = on("torch")(transformers_folder, folder=tmp_path / "net")
    run = import_checkpoint(read(str(tmp_path / "net")), tmp_path / "run", settings={"image_size": 64})
    told = run.read_json("import.json")
    assert (told["family"], told["arrays"]) == ("transformers", len(drawn))  # without the counters of steps
    assert told["check"]["against"].startswith("transformers ")
    assert told["check"]["difference"] < 1e-5
    assert told["assumed"] == ["crop_pct", "interpolation", "preprocessing"]
    predictor = Predictor(RunFolder.open(run.path))
    assert predictor.class_names == ("cat", "dog", "owl")
    model = build("resnet18", num_classes=3)
    assign_weights(model, drawn, recognise(drawn)[1])
    images = parity.images(64)
    padded = np.pad(images, [(0, 0), (4, 5), (4, 5), (0, 0)])  # the middle 64 of 73 is looked at
    assert padded.shape[1] == run.recipe().pack_size
    assert_close(predictor.logits(padded), logits_of(model, images))


def test_a_port_that_is_not_equal_to_its_source_leaves_nothing(
    tmp_path: Path, resnet18: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "logits", lambda *_, **__: (np.ones((2, 3), np.float32), "torchvision 1.0"))
    with pytest.raises(ResnetlabError, match=r"differ from those of torchvision 1\.0 by .*Nothing was written"):
        import_checkpoint(Checkpoint("x.pth", resnet18), tmp_path / "run", settings={"image_size": 32})
    assert not (tmp_path / "run").exists()


def test_a_port_into_the_folder_one_is_in(tmp_path: Path, resnet18: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = import_checkpoint(Checkpoint("x.pth", resnet18), Path(), settings={"image_size": 32})
    assert run.path == tmp_path / "here"
    assert run.info().model == "resnet18"


def test_a_port_needs_a_name_for_each_class(tmp_path: Path, resnet18: Arrays) -> None:
    with pytest.raises(UsageError, match="Received 2 different class names, expected 3"):
        import_checkpoint(Checkpoint("x.pth", resnet18), tmp_path / "run", class_names=("cat", "dog", "cat"))
    assert not (tmp_path / "run").exists()


def test_the_source_implementations_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = parity.logits("x.pth", "resnet18", "torchvision", size=32, preprocessing="imagenet")
    assert found == "torchvision cannot run here: torch, torchvision or timm is not installed"


def test_what_lies_beside_weights_is_not_imported(
    tmp_path: Path, resnet18: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = tmp_path / "harm"
    for name in ("torch", "torchvision", "timm", "transformers", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(harm)!r}, 'w')", "utf-8")
    save_file(resnet18, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)  # so that the child starts wherever this runs
    found = parity.logits("net.safetensors", "resnet18", "transformers", size=32, preprocessing="imagenet")
    assert "transformers could not run it" in found  # after it has imported NumPy: no torch, or no classifier.1.bias
    assert not harm.exists()
    subprocess.run([sys.executable, "-m", parity.__name__], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert harm.exists()  # by a child that imports what lies in its folder


def test_bfloat16_is_read_and_what_are_no_finite_numbers_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.array([1.5, -2.0], ml_dtypes.bfloat16)}, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(read(str(tmp_path / "half.safetensors")).arrays["a"], np.float32([1.5, -2.0]))
    save_file({"a": np.array([1.0, np.nan], np.float32)}, tmp_path / "nan.safetensors")
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["a/kernel"] = "hello"
    with pytest.raises(ResnetlabError, match="a has 1 values that are not finite, of 2"):
        read(str(tmp_path / "nan.safetensors"))
    with pytest.raises(ResnetlabError, match="a/kernel holds object, expected numbers"):
        read(str(tmp_path / "text.h5"))


def test_a_zip_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (65 << 20))
    with pytest.raises(ResnetlabError, match=r"'config\.json' claims 68,157,440 bytes"):
        read(str(tmp_path / "bomb.keras"))


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "twice.h5", "w") as file:
        file["a/conv1_conv/kernel"] = file["b/conv1_conv/kernel"] = np.ones(3)
    with pytest.raises(ResnetlabError, match="received conv1_conv/kernel twice"):
        read(str(tmp_path / "twice.h5"))


def test_a_crop_size_is_the_image_size(tmp_path: Path) -> None:
    processor = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 2}
    folder = tmp_path / "net"
    hub_folder(folder, {"a": np.ones(2, np.float32)}, {"model_type": "resnet"}, preprocessor_config=processor)
    assert read(str(folder)).settings == {"image_size": 224, "crop_pct": 0.875, "interpolation": "bilinear"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 1}), "utf-8")
    with pytest.raises(ResnetlabError, match="received resample=1, expected one of"):
        read(str(folder))


def test_names_on_the_hub_may_have_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    hub = SimpleNamespace(snapshot_download=lambda name, **_: asked.append(name) or 1 / 0)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # it need not be installed
    with pytest.raises(ResnetlabError, match="cannot be downloaded"):
        read("timm/resnet50.a1_in1k")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResnetlabError, match="huggingface_hub must be installed"):
        read("timm/resnet50.a1_in1k")
    assert asked == ["timm/resnet50.a1_in1k"]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"do_normalize": False}, "received do_normalize=false"),
        ({"do_rescale": False}, "received do_rescale=false"),
        ({"rescale_factor": 1 / 127.5}, "received rescale_factor=0.0078"),
    ],
)
def test_images_that_transformers_prepares_in_another_way_are_refused(
    tmp_path: Path, stated: dict[str, Any], told: str
) -> None:
    processor = {"size": 224, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]} | stated
    arrays = {"a": np.ones(2, np.float32)}
    folder = hub_folder(tmp_path / "net", arrays, {"model_type": "resnet"}, preprocessor_config=processor)
    with pytest.raises(ResnetlabError, match=told):
        read(str(folder))


def test_a_crop_that_is_turned_off_is_none(tmp_path: Path) -> None:
    processor = {"size": {"height": 224, "width": 224}, "crop_size": 112, "do_center_crop": False}
    arrays = {"a": np.ones(2, np.float32)}
    folder = hub_folder(tmp_path / "net", arrays, {"model_type": "resnet"}, preprocessor_config=processor)
    found = read(str(folder))
    assert found.settings == {"image_size": 224}
    assert "resizes whole images to a square" in (found.note or "")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": np.ones((64, 3, 7, 7), np.int8)}, tmp_path / "net.safetensors")
    with pytest.raises(ResnetlabError, match=r"conv1.weight \(64, 3, 7, 7\) is of int8: quantised"):
        read(str(tmp_path / "net.safetensors"))


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (
            [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 1), keras.layers.GlobalAveragePooling2D()],
            "Rescaling",
        ),
        ([keras.layers.Conv2D(2, 1), keras.layers.GlobalMaxPooling2D()], "GlobalMaxPooling2D"),
        ([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "sigmoid")], "activation 'sigmoid'"),
    ],
)
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_keras_model_with_other_layers_is_refused(
    tmp_path: Path, layers: list[keras.layers.Layer], told: str, ending: str
) -> None:
    """Layers without weights, which the arrays do not show."""
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.save(tmp_path / f"net.{ending}")
    with pytest.raises(ResnetlabError, match=told):
        read(str(tmp_path / f"net.{ending}"))


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UsageError, match="Received 'runs/photo', expected a weights file"):
        read("runs/photo")


def test_a_new_commit_on_the_hub_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = iter(["one", "one", "two"])
    hub = SimpleNamespace(snapshot_download=lambda name, **_: str(tmp_path / next(commits)))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    for commit in ("one", "two"):
        (tmp_path / commit).mkdir()
        (tmp_path / commit / "config.json").write_text("{}", "utf-8")
    imported: list[Path] = []

    def importing(source: str, folder: Path, *_: Any, **__: Any) -> None:
        imported.append(folder)
        folder.mkdir(parents=True)

    monkeypatch.setattr(importing_module, "import_weights", importing)
    monkeypatch.setattr(importing_module.RunFolder, "open", lambda path: path)
    for _ in range(3):
        importing_module.import_to_cache("me/net", None, {}, backend=None, device="cpu")
    assert len(imported) == len(set(imported)) == 2
