"""Exports compute what Keras does, carry their class names, and are there whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab.data import preprocess
from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.evaluation.logits import centre_crop
from resnetlab.inference import export as module
from resnetlab.inference import folding, formats, verification
from resnetlab.inference.engines import exported_engine, keras_engine, load_network
from resnetlab.inference.export import PRECISIONS, export
from resnetlab.inference.images import collect_images
from resnetlab.inference.predictor import Predictor
from resnetlab.run_folder import RunFolder
from tests.data.odd_images import corpus

Trained = tuple[RunFolder, Path, Pack]
FORMATS = [(format, precision) for format, precisions in PRECISIONS.items() for precision in precisions]
TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.02, "int8": 0.1}  # of a probability


def require(format: str) -> None:
    for package in module.PACKAGES[format][0]:
        pytest.importorskip(package)


def class_names_in(folder: Path, format: str) -> list[str]:
    """The class names as the artefact itself has them."""
    if format == "onnx":
        import onnx

        metadata = onnx.load(folder / "model.onnx").metadata_props
        return json.loads(next(entry.value for entry in metadata if entry.key == "class_names"))
    if format == "openvino":
        import openvino

        model = openvino.Core().read_model(folder / "model.xml")
        return json.loads(model.get_rt_info(["resnetlab", "class_names"]).astype(str))
    if format == "litert":
        return zipfile.ZipFile(folder / "model.tflite").read("labels.txt").decode().splitlines()
    return ["crane", "heron", "stork"]  # of a SavedModel the test below asks for a class


@pytest.mark.parametrize(("format", "precision"), FORMATS)
def test_an_export_computes_what_keras_does(trained: Trained, format: str, precision: str, tmp_path: Path) -> None:
    require(format)
    run, _, packed = trained
    folder = export(run, format, precision=precision, output=tmp_path / "out", pack=packed)
    images = np.ascontiguousarray(centre_crop(packed.images, 24))
    expected = keras_engine(load_network(run), 24)(images)
    engine = exported_engine(folder)
    for count in (1, 30, 2):
        received = engine(images[:count])
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, expected[:count], atol=TOLERANCES[precision])

    facts = json.loads((folder / "export.json").read_text())
    assert facts["verified"]["images"] == len(packed.indices("test"))
    assert facts["verified"].keys() >= {"accuracy", "accuracy_keras", "largest_difference", "same_class"}
    assert (folder / "classes.txt").read_text() == "crane\nheron\nstork\n"
    assert class_names_in(folder, format) == ["crane", "heron", "stork"]
    assert "## Verified" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_saved_model_names_the_class(trained: Trained, tmp_path: Path) -> None:
    require("saved_model")
    import tensorflow as tf

    run, _, packed = trained
    folder = export(run, "saved_model", output=tmp_path / "out")
    loaded = tf.saved_model.load(str(folder / "saved_model" / "1"))
    images = np.ascontiguousarray(centre_crop(packed.images, 24))
    answer = loaded.signatures["serving_default"](image=tf.constant(images))
    names = [packed.class_names[k] for k in answer["probabilities"].numpy().argmax(1)]
    assert [name.decode() for name in answer["class"].numpy()] == names
    variables = tf.train.list_variables(str(folder / "saved_model" / "1" / "variables" / "variables"))
    stored = sum(int(np.prod(shape)) for name, shape in variables if name != "_CHECKPOINTABLE_OBJECT_GRAPH")
    assert stored == sum(int(np.prod(w.shape)) for w in folding.folded(load_network(run), 24).weights)  # each once


def test_a_fixed_batch_is_fixed_and_the_engine_fills_it_up(trained: Trained, tmp_path: Path) -> None:
    require("onnx")
    import onnxruntime

    run, _, packed = trained
    folder = export(run, "onnx", batch_size=4, output=tmp_path / "out")  # no data: on two photographs
    assert json.loads((folder / "export.json").read_text())["verified"]["images"] == 64
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [4, 24, 24, 3]
    assert "max_batch_size: 0" in (folder / "config.pbtxt").read_text()
    assert "dims: [ 4, 24, 24, 3 ]" in (folder / "config.pbtxt").read_text()
    images = np.ascontiguousarray(centre_crop(packed.images, 24))
    expected = keras_engine(load_network(run), 24)(images)
    for count in (1, 4, 6):
        np.testing.assert_allclose(exported_engine(folder)(images[:count]), expected[:count], atol=1e-4)


# --------------------------------------------------------------------------------------- from image files on


@pytest.fixture(scope="module", params=["onnx", "openvino", "litert", "saved_model"])
def exported(request: pytest.FixtureRequest, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of each format, made without data at hand."""
    require(request.param)
    return export(trained[0], request.param, output=tmp_path_factory.mktemp("exported") / "out")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of odd images, as a data set."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    root = tmp_path_factory.mktemp("odd")
    for kind in ("a", "b"):
        (root / kind).mkdir()
    for name, image in corpus().items():
        (root / ("b" if name.startswith("bmp") else "a") / f"{name}.{image.suffix}").write_bytes(image.content)
    return root


def blocks(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)


def run_alone(folder: Path, program: str, *arguments: str) -> str:
    """The output of a program run in an export's folder, where it must not find resnetlab."""
    program = "import sys; sys.modules['resnetlab'] = None; sys.path.insert(0, '.')\n" + program
    command = [sys.executable, "-c", program, *arguments]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_training_prediction_and_exports_read_files_alike(
    trained: Trained, odd: Path, exported: Path, tmp_path: Path
) -> None:
    run = trained[0]
    packed = pack(resolve(str(odd)), size=run.recipe().pack_size, cache_dir=tmp_path, validation=0, test=0.1)
    assert packed.audit["set_aside"] == []
    assert len(packed.names) >= 100
    files = [odd / name for name in packed.names]
    settings = json.loads((exported / "export.json").read_text())["preprocessing"]
    program = """
import json, numpy as np
from preprocess import load_image
settings, files = json.loads(sys.argv[1])
np.save(sys.argv[2], [load_image(file, **settings) for file in files])
"""
    run_alone(exported, program, json.dumps([settings, list(map(str, files))]), str(tmp_path / "read.npy"))
    read = np.load(tmp_path / "read.npy")
    stored = centre_crop(packed.images, 24)
    assert np.abs(read.astype(int) - stored).max() <= 1
    predictor = Predictor(run)
    predicted = np.stack([predictor._read(file)[1] for file in collect_images(files)[0]])
    assert np.abs(predicted.astype(int) - stored).max() <= 1
    received = exported_engine(exported)(read)
    for row, prediction in zip(received, predictor.predict(collect_images(files)[0], top=3), strict=True):
        expected = dict(prediction.top)
        np.testing.assert_allclose(row, [expected[name] for name in predictor.class_names], atol=1e-4)


def test_the_readme_s_programs_predict_what_prediction_does(
    trained: Trained, exported: Path, odd: Path, tmp_path: Path
) -> None:
    predictor, photo = Predictor(trained[0]), odd / "a" / "jpeg, orientation 6.jpg"
    (prediction,) = predictor.predict(collect_images(photo)[0], top=3)
    folder = shutil.copytree(exported, tmp_path / "out")
    shutil.copy(photo, folder / "photo.jpg")
    start, *programs = blocks(folder)
    remote = [block for block in programs if "urlopen" in block]
    for block in [block for block in programs if block not in remote]:
        printed = "\nprint(probabilities.tolist())" if "probabilities" in block else ""
        told = run_alone(folder, start + block + printed).splitlines()
        assert prediction.label in told[0]
        if printed:
            found = dict(zip(predictor.class_names, json.loads(told[1])[0], strict=True))
            assert found == pytest.approx(dict(prediction.top), abs=1e-4)
    for block in remote:
        with serving_a_saved_model(folder / "saved_model" / "1") as port:
            assert prediction.label in run_alone(folder, start + block.replace("8501", str(port)))


@contextmanager
def serving_a_saved_model(model: Path) -> Iterator[int]:
    """A server of TensorFlow Serving's interface (POST /v1/models/NAME:predict, in columns) on the port it gives."""
    import tensorflow as tf

    signature = (loaded := tf.saved_model.load(str(model))).signatures["serving_default"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            outputs = signature(image=tf.constant(np.array(request["inputs"]["image"], np.uint8)))
            answer = {"outputs": {"class": [name.decode() for name in outputs["class"].numpy()]}}
            self.send_response(200 if self.path == "/v1/models/resnet-tiny:predict" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
    del loaded  # a signature does not keep its variables alive


def test_preprocess_is_the_code_that_prediction_runs(exported: Path) -> None:
    assert (exported / "preprocess.py").read_bytes() == Path(preprocess.__file__).read_bytes()


def test_an_export_that_reads_files_in_another_way_is_not_kept(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("onnx")
    run, _, packed = trained
    wrong = {"shorter_side": 27, "centre_crop": 24, "interpolation": "bicubic"}  # the recipe has bilinear
    monkeypatch.setattr(module, "load_settings", lambda recipe: wrong)
    with pytest.raises(ResnetlabError, match=r"preprocess.py does not read .*\.jpg as training did. It was not kept"):
        export(run, "onnx", output=tmp_path / "out", pack=packed)
    assert listing(tmp_path) == {}


def test_arrays_are_verified_as_files_too(trained: Trained, tmp_path: Path) -> None:
    require("onnx")
    run = trained[0]
    packed = pack(resolve("digits"), size=run.recipe().pack_size, cache_dir=tmp_path, validation=0.1, test=0.01)
    folder = export(run, "onnx", output=tmp_path / "out", pack=packed)
    assert json.loads((folder / "export.json").read_text())["verified"]["images"] == len(packed.indices("test"))


# ---------------------------------------------------------------------------------------- whole, or not at all


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_verification_leaves_nothing_and_keeps_what_was_there(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("onnx")
    run, _, packed = trained
    original = folding._folded_weights
    with monkeypatch.context() as patched:
        patched.setattr(folding, "_folded_weights", lambda *layers: [1.1 * a for a in original(*layers)])
        with pytest.raises(ResnetlabError, match=r"The export differs from Keras by .* It was not kept"):
            export(run, "onnx", output=tmp_path / "new" / "out", pack=packed)
        assert listing(tmp_path) == {}
    folder = export(run, "onnx", output=tmp_path / "out", pack=packed)
    before = listing(tmp_path)
    monkeypatch.setattr(verification, "compare", lambda *_, **__: (_ for _ in ()).throw(ResnetlabError("wrong")))
    with pytest.raises(ResnetlabError, match="wrong"):
        export(run, "onnx", output=folder, pack=packed)
    assert listing(tmp_path) == before


def test_an_interrupted_export_leaves_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("onnx")

    def interrupted(artefact: formats.Artefact, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(formats.WRITERS, "onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(trained[0], "onnx", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_into_the_folder_one_is_in(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("onnx")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = export(trained[0], "onnx", output=Path())
    assert (folder / "export.json").is_file()
    assert folder == tmp_path / "here"


def test_what_a_killed_export_left_is_removed_by_the_next_one(trained: Trained, tmp_path: Path) -> None:
    require("onnx")
    (tmp_path / ".resnetlab-new-killed").mkdir()
    export(trained[0], "onnx", output=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("onnx")
    monkeypatch.setattr(module, "load_network", lambda *_, **__: pytest.fail("work before the check"))
    (tmp_path / "file").write_text("here")
    with pytest.raises(ResnetlabError, match=r"Cannot write the export .*Choose another with --output"):
        export(trained[0], "onnx", output=tmp_path / "file" / "out")

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)  # root may write anywhere
    with pytest.raises(ResnetlabError, match="Permission denied"):
        export(trained[0], "onnx", output=tmp_path / "out")


def test_what_is_no_export_is_not_replaced(trained: Trained, tmp_path: Path) -> None:
    require("onnx")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not an export"):
        export(trained[0], "onnx", output=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_requests_that_make_no_sense_are_told(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained[0]
    with pytest.raises(UsageError, match=r"Unknown format 'onxx'. Did you mean 'onnx'"):
        export(run, "onxx")
    with pytest.raises(UsageError, match="'int8'; saved_model exports: float32, bfloat16"):
        export(run, "saved_model", precision="int8")
    with pytest.raises(UsageError, match="batch_size=0, expected at least 1"):
        export(run, "onnx", batch_size=0)
    with pytest.raises(UsageError, match="int8 needs the run's training images"):
        export(run, "onnx", precision="int8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ResnetlabError, match=r"onnx needs onnxruntime. Install: pip install 'resnetlab\[onnx\]'"):
        export(run, "onnx")


def test_verification_lets_ties_pass_and_counts_what_accuracy_loses() -> None:
    expected = np.tile(np.float32([0.6, 0.3, 0.1]), (200, 1))
    expected[0] = (0.40001, 0.39999, 0.2)
    tied = expected.copy()
    tied[0] = (0.39999, 0.40001, 0.2)
    assert verification.compare(tied, expected, precision="float32")["same_class"] == 199 / 200
    for wrong in (expected[:, ::-1], expected + 2e-4, np.full_like(expected, np.nan), expected[:, :2]):
        with pytest.raises(ResnetlabError, match="not kept"):
            verification.compare(wrong, expected, precision="float32")

    labels = np.zeros(200, int)
    for flipped, kept in ((2, True), (3, False)):  # 1 point of 200 images is two
        received = expected.copy()
        received[:flipped] = (0.1, 0.3, 0.6)
        if kept:
            found = verification.compare(received, expected, precision="int8", labels=labels)
            assert (found["accuracy"], found["accuracy_keras"]) == (0.99, 1.0)
        else:
            with pytest.raises(ResnetlabError, match=r"accuracy falls from 100.00% to 98.50%"):
                verification.compare(received, expected, precision="int8", labels=labels)
