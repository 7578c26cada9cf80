"""Recipes, run folders, exports and folders of the hub with values of every wrong type, or none.

Each maker writes into `folder` and returns the path to give to a loader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.reliability.hostile_weights import Maker, written

DEEP = "[" * 100_000 + "]" * 100_000
WRONG = (
    "null",
    "true",
    "-1",
    "1e999",
    "NaN",
    "9" * 5000,
    '""',
    '"\\ud800"',
    "[]",
    "[[[]]]",
    "{}",
    '{"a": {"b": 1}}',
    '"../../x"',
)


def recipes() -> dict[str, Maker]:
    from resnetlab.recipes import Recipe

    texts = {
        "a recipe of lists 100,000 deep": ("x.json", DEEP),
        "a TOML recipe of lists 100,000 deep": ("x.toml", f"a = {DEEP}"),
        "a TOML recipe of tables 100,000 deep": ("x.toml", "a" + ".a" * 100_000 + " = 1"),
        "a recipe that is a list": ("x.json", "[]"),
        "a recipe with a key twice, one of them wrong": ("x.json", '{"epochs": "eval", "epochs": -1}'),
        "a recipe with an unknown key": ("x.json", '{"__class__": "os.system"}'),
        "a recipe that is its own base": ("x.json", '{"base": "x.json"}'),
        "a recipe with a base outside of its folder": ("x.json", '{"base": "../outside.json"}'),
        "a recipe with an absolute base": ("x.json", '{"base": "/etc/hostname.json"}'),
        "a recipe with a million pixels a side": ("x.json", '{"image_size": 1000000}'),
        "a recipe with a batch of a trillion": ("x.json", '{"batch_size": 1000000000000}'),
        "a recipe that is no UTF-8": ("x.json", "\udcff"),
        "a recipe with a YAML program": ("x.toml", '!!python/object/apply:os.system ["touch canary"]'),
    }
    found = {
        what: written(name, text.encode("utf-8", errors="surrogateescape")) for what, (name, text) in texts.items()
    }
    for key in Recipe.model_fields:
        for number, value in enumerate(WRONG):
            found[f"a recipe with {key} of {value[:12]} ({number})"] = written(
                "x.json", f'{{"{key}": {value}}}'.encode()
            )
    return found


def run_folder(folder: Path) -> Path:
    """A sound run folder, without weights."""
    from resnetlab.recipes import Recipe
    from resnetlab.run_folder import RunFolder, RunInfo

    path = folder / "run"
    info = RunInfo(model="resnet-tiny", class_names=("a", "b"), source="digits", data="digits")
    run = RunFolder.create(path, recipe=Recipe(model="resnet-tiny"), info=info)
    run.write_split([("a/1.png", "a", "train", "0" * 16)])
    run.write_metrics([{"epoch": 1, "loss": 1.0}])
    return path


def run_folders() -> dict[str, Maker]:
    from resnetlab.run_folder import RunInfo

    def changed(name: str, change: Callable[[str], str | bytes]) -> Maker:
        def make(folder: Path) -> Path:
            path = run_folder(folder)
            text = (path / name).read_text("utf-8") if (path / name).exists() else ""
            content = change(text)
            (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            return path

        return make

    def with_field(text: str, key: str, value: str) -> str:
        fields = json.loads(text)
        fields.pop(key, None)
        return json.dumps(fields)[:-1] + f', "{key}": {value}}}'

    def own_ancestor(folder: Path) -> Path:
        path = run_folder(folder)
        file = path / "run.json"
        file.write_text(with_field(file.read_text(), "weights", json.dumps(str(path))))
        return path

    def linked(folder: Path) -> Path:
        path = run_folder(folder)
        (path / "run.json").unlink()
        (path / "run.json").symlink_to("run.json")
        return path

    found: dict[str, Maker] = {
        "a run that descends from itself": own_ancestor,
        "a run.json that is a link to itself": linked,
    }
    for name in ("run.json", "recipe.json", "metrics.jsonl"):
        found |= {
            f"{name} 100,000 deep": changed(name, lambda _: DEEP),
            f"{name} of binary": changed(name, lambda _: bytes(range(256))),
            f"{name} that is a list": changed(name, lambda _: "[1]"),
            f"{name} that is cut": changed(name, lambda text: text[: len(text) // 2]),
        }
    for name in ("split.csv", "ancestors.csv"):
        found |= {
            f"{name} of binary": changed(name, lambda _: bytes(range(256))),
            f"{name} with a field of 200 kB": changed(name, lambda _: "hash,subset\n" + "a" * 200_000 + ",train\n"),
            f"{name} without its columns": changed(name, lambda _: "x,y\n1,2\n"),
            f"{name} with nul bytes": changed(name, lambda _: "hash,subset\n\0,\0\n"),
        }
    for key in RunInfo.model_fields:
        for number, value in enumerate(WRONG):
            found[f"run.json with {key} of {value[:12]} ({number})"] = changed(
                "run.json", lambda text, key=key, value=value: with_field(text, key, value)
            )
    return found


def hub_folders() -> dict[str, Maker]:
    """Folders with config.json beside weights."""
    import numpy as np
    from safetensors.numpy import save_file

    def folder_with(config: str, processor: str | None = None) -> Maker:
        def make(folder: Path) -> Path:
            path = folder / "hub"
            path.mkdir()
            (path / "config.json").write_bytes(config.encode("utf-8", errors="surrogateescape"))
            if processor is not None:
                (path / "preprocessor_config.json").write_text(processor)
            save_file(
                {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.ones(2, np.float32)},
                path / "model.safetensors",
            )
            return path

        return make

    found = {
        "config.json 100,000 deep": folder_with(DEEP),
        "config.json of nothing": folder_with(""),
        "config.json that is no UTF-8": folder_with("\udcff"),
        "config.json of another network": folder_with('{"model_type": "bert", "auto_map": {"AutoModel": "os.system"}}'),
        "preprocessor_config.json 100,000 deep": folder_with('{"model_type": "resnet"}', DEEP),
    }
    for key in ("model_type", "id2label", "pretrained_cfg", "downsample_in_bottleneck"):
        for number, value in enumerate(WRONG):
            fields = '"model_type": "resnet", ' if key != "model_type" else ""
            found[f"config.json with {key} of {value[:12]} ({number})"] = folder_with(f'{{{fields}"{key}": {value}}}')
    for key in ("size", "crop_size", "resample", "image_mean", "image_std", "crop_pct"):
        for number, value in enumerate(WRONG):
            given = {
                "size": '"size": 224',
                "image_mean": '"image_std": [1, 1, 1]',
                "image_std": '"image_mean": [1, 1, 1]',
            }
            more = given.get(key, '"size": 224')
            found[f"preprocessor with {key} of {value[:12]} ({number})"] = folder_with(
                '{"model_type": "resnet"}', f'{{{more}, "{key}": {value}}}'
            )
    for key in ("input_size", "crop_pct", "interpolation", "mean", "std", "label_names", "license"):
        for number, value in enumerate(WRONG):
            found[f"timm's config with {key} of {value[:12]} ({number})"] = folder_with(
                f'{{"pretrained_cfg": {{"std": [1, 1, 1], "{key}": {value}}}, "label_names": {value}}}'
            )
    return found


def exports() -> dict[str, Maker]:
    """Folders that say they are exports."""

    def folder_with(facts: str, **files: bytes) -> Maker:
        def make(folder: Path) -> Path:
            path = folder / "export"
            path.mkdir()
            (path / "export.json").write_bytes(facts.encode("utf-8", errors="surrogateescape"))
            for name, content in files.items():
                (path / name.replace("_", ".")).write_bytes(content)
            return path

        return make

    def external(folder: Path) -> Path:
        """An ONNX model whose weights lie in a file outside of its folder."""
        import onnx

        path = folder / "export"
        path.mkdir()
        (folder.parent / "secret.bin").write_bytes(bytes(64))
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[16], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "../../secret.bin"), ("offset", "0"), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
        node = onnx.helper.make_node("Identity", ["w"], ["probabilities"])
        image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["n", 32, 32, 3])
        out = onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, [16])
        graph = onnx.helper.make_graph([node], "g", [image], [out], [tensor])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        (path / "model.onnx").write_bytes(model.SerializeToString())
        (path / "export.json").write_text('{"format": "onnx", "precision": "float32", "batch_size": null}')
        return path

    whole = '"format": "onnx", "precision": "float32", "batch_size": null'
    found: dict[str, Maker] = {
        "export.json 100,000 deep": folder_with(DEEP),
        "export.json that is no UTF-8": folder_with("\udcff"),
        "an ONNX file of zeros": folder_with(f"{{{whole}}}", model_onnx=bytes(1000)),
        "an ONNX file that is empty": folder_with(f"{{{whole}}}", model_onnx=b""),
        "no ONNX file": folder_with(f"{{{whole}}}"),
        "an ONNX file with weights outside of its folder": external,
    }
    for key in ("format", "batch_size"):
        for number, value in enumerate(WRONG):
            if (key, value) == ("batch_size", "null"):
                continue
            found[f"export.json with {key} of {value[:12]} ({number})"] = folder_with(
                f'{{{whole}, "{key}": {value}}}', model_onnx=b""
            )
    return found


def makers() -> Iterator[tuple[str, dict[str, Maker]]]:
    """Every group of cases here, by the loader that reads it."""
    yield "recipe", recipes()
    yield "run", run_folders()
    yield "weights", hub_folders()
    yield "export", exports()
